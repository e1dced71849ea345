"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# A slow example says that the host is busy, not that the code is wrong.
settings.register_profile("bertier", deadline=None)
settings.load_profile("bertier")
