"""How many files this process may open, and how many connections that leaves room for."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

OWN_FILES = 128  # models, logs, model servers, the ops server
PROTOCOLS = 2  # HTTP and gRPC may each have as many connections


def connections_for(wanted: int, probes: int) -> int:
    """Return how many connections each protocol may have, at most `wanted`; raise the limit where we may."""
    needed = OWN_FILES + probes + PROTOCOLS * wanted
    allowed, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    found = fitting(wanted, probes, allowed if allowed != resource.RLIM_INFINITY else needed)
    if found < wanted:
        log.warning(
            "max_connections: %d in place of %d, as this process may open %d files; raise `ulimit -n` to %d",
            *(found, wanted, allowed, needed),
        )
    return found


def fitting(wanted: int, probes: int, files: int) -> int:
    """Return how many connections of each protocol fit into so many files; at least one."""
    return max(1, min(wanted, (files - OWN_FILES - probes) // PROTOCOLS))
