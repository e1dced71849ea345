"""Several gateway processes behind the same ports, with one parent that has the models and the catalog."""

from __future__ import annotations

from gateway.catalog import host
from gateway.settings import Settings


def count(settings: Settings) -> int:
    """Return how many workers the settings ask for."""
    return host.allowed_cores() if settings.workers == "auto" else int(settings.workers)
