"""Decides how many instances of each model a Triton of our own gets: as many as its memory allows.

Each instance is a process with a copy of its model. Where the control group has less memory than all instances
of the catalog need, the largest models lose theirs first; every model keeps one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gateway.catalog.memory import instance_bytes
from gateway.catalog.schema import Variant
from gateway.catalog.store import Catalog

log = logging.getLogger(__name__)

OTHERS_BYTES = 250 << 20  # gateway and tritonserver
USED = 0.9  # of the limit: what the page cache and long texts need is left


@dataclass(frozen=True, slots=True)
class Fitting:
    """The limit of memory, and what of a catalog fits in it."""

    limit_bytes: int | None  # None: there is none

    def fits(self, catalog: Catalog) -> bool:
        """Say whether every model can have the instances that it is published with."""
        counts = {v.name: v.instances for v in catalog.variants}
        return self.limit_bytes is None or needed_bytes(catalog.variants, counts) <= self._room

    def fit(self, catalog: Catalog) -> Catalog:
        """Return the catalog with as many instances as fit; the log says what is less."""
        if self.limit_bytes is None or self.fits(catalog):
            return catalog
        counts = instances_within(catalog.variants, self._room)
        self._tell(catalog, counts)
        fewer = tuple(replace(v, instances=counts[v.name]) for v in catalog.variants)
        return replace(catalog, variants=fewer)

    @property
    def _room(self) -> float:
        return USED * (self.limit_bytes or 0)

    def _tell(self, catalog: Catalog, counts: Mapping[str, int]) -> None:
        limit_mib, needed_mib = (self.limit_bytes or 0) >> 20, self._needed_mib(catalog, counts)
        fewer = [
            f"{v.name} {counts[v.name]} of {v.instances}"
            for v in catalog.variants
            if counts[v.name] < v.instances
        ]
        log.warning(
            "memory is limited to %d MiB: instances of %s; together some %d MiB",
            limit_mib,
            ", ".join(fewer) or "no model can be fewer",
            needed_mib,
        )
        if needed_mib << 20 > self._room:
            log.error(
                "one instance of each model needs some %d MiB, the limit is %d: processes may be killed; raise the"
                " limit, publish fewer models, or serve with --backend embedded",
                needed_mib,
                limit_mib,
            )

    def _needed_mib(self, catalog: Catalog, counts: Mapping[str, int]) -> int:
        return round(needed_bytes(catalog.variants, counts)) >> 20


def instances_within(variants: Sequence[Variant], room_bytes: float) -> dict[str, int]:
    """Return the instances of each model; at least one, even where that is too much."""
    counts = {v.name: v.instances for v in variants}
    by_size = sorted(variants, key=lambda v: v.size_bytes, reverse=True)
    while needed_bytes(variants, counts) > room_bytes:
        largest = next((v.name for v in by_size if counts[v.name] > 1), None)
        if largest is None:
            break
        counts[largest] -= 1
    return counts


def needed_bytes(variants: Sequence[Variant], counts: Mapping[str, int]) -> float:
    """Return the memory of gateway, Triton and so many instances."""
    each = {v.name: instance_bytes(v) for v in variants}
    return OTHERS_BYTES + sum(n * each[name] for name, n in counts.items())
