"""The clock of arrivals, deadlines and waits."""

from __future__ import annotations

import time


def now_ms() -> float:
    """Return the monotonic time, ms."""
    return time.monotonic() * 1e3
