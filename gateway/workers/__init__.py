"""Several gateway processes behind the same ports, with one parent that has the models and the catalog."""

from __future__ import annotations

from gateway.catalog import host
from gateway.settings import Settings


def count(settings: Settings) -> int:
    """Return how many workers the settings ask for."""
    return whole(host.usable_cpu()) if settings.workers == "auto" else int(settings.workers)


def whole(cpu: float) -> int:
    """Return the whole ones of some cores, at least one: a part of a core is worth no worker of its own."""
    return max(1, int(cpu))
