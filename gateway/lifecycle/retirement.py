"""Tracks loaded variants that no request can use any more, after a switch of the catalog.

The watcher unloads them; this module calls no model server.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable

from gateway.catalog.schema import Variant
from gateway.serving_set import ServingSet

Key = tuple[str, int]


class Retirement:
    """Remembers what was loaded, and the sets that requests in flight may still hold.

    A request uses the ServingSet that it began with until it ends, at the latest at its deadline.
    """

    def __init__(self, longest_ms: float, clock: Callable[[], float]) -> None:
        """`longest_ms`: the longest deadline a request can have."""
        self._longest_ms = longest_ms
        self._clock = clock
        self._loaded: dict[Key, Variant] = {}
        self._past: list[tuple[weakref.ref[ServingSet], float]] = []  # and when it was replaced

    def load(self, variants: Iterable[Variant]) -> None:
        """Remember a variant that the model server was asked to load."""
        self._loaded |= {_key(variant): variant for variant in variants}

    def replace(self, serving: ServingSet) -> None:
        """Remember a set that no new request gets."""
        now = self._clock()
        # A request holds only the part of its task, so each part is watched, too.
        self._past += [(weakref.ref(each), now) for each in (serving, *serving.parts.values())]

    def unused(self, routed: Collection[Variant]) -> list[Variant]:
        """Return what was loaded, is not `routed` to, and is in no set of a request in flight."""
        kept = {_key(variant) for variant in (*routed, *self.in_flight())}
        return [variant for key, variant in self._loaded.items() if key not in kept]

    def forget(self, variant: Variant) -> None:
        """Drop what was unloaded, or cannot be."""
        self._loaded.pop(_key(variant), None)

    def in_flight(self) -> list[Variant]:
        """Return the variants that requests in flight may still ask."""
        oldest = self._clock() - self._longest_ms
        self._past = [(ref, since) for ref, since in self._past if ref() and since > oldest]
        sets = [found for ref, _ in self._past if (found := ref()) is not None]
        return [variant for serving in sets for variant in serving.catalog.variants]


def _key(variant: Variant) -> Key:
    return variant.name, variant.version
