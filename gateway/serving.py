"""What is served now: a catalog that was checked against the backend and the host it runs on.

A ServingSet is built whole (preparation.py), then swapped in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway.catalog import Catalog
from gateway.domain import Option, Size, Trust
from gateway.latency import LatencyModel
from gateway.published import Plan, Profile
from gateway.spans import SpanEncoder


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ServingSet:
    """A checked catalog with all that is needed to answer from it."""

    catalog: Catalog
    encoder: SpanEncoder
    trust: Mapping[str, Trust]  # by variant; one that is absent is not served
    profiles: Mapping[str, Profile]
    latency: LatencyModel
    problems: Mapping[str, str] = field(default_factory=dict)  # by variant that is not served: why
    under_load: frozenset[str] = frozenset()  # variants measured beside requests in flight

    def without(self, problems: Mapping[str, str]) -> ServingSet:
        """Return the set that no longer routes to the variants with a problem."""
        trust = {name: trust for name, trust in self.trust.items() if name not in problems}
        return replace(self, trust=trust, problems={**self.problems, **problems})

    def plans(self) -> list[Plan]:
        """Return the plans whose variants are all served."""
        return [p for p in self.catalog.plans if all(v in self.trust for v in p.variants)]

    def trust_of(self, plan: Plan) -> Trust:
        """Return the least trust of the plan's variants."""
        order = (Trust.UNCERTIFIED, Trust.TRANSFERRED, Trust.CERTIFIED)
        return min((self.trust[v] for v in plan.variants), key=order.index)

    def options(self, size: Size, quantile: float) -> list[Option]:
        """Return every plan with its predicted latency for a request of this size."""
        return [self._option(plan, size, quantile) for plan in self.plans()]

    def _option(self, plan: Plan, size: Size, quantile: float) -> Option:
        idle_ms = self.latency.idle_ms(plan, size, quantile)
        return Option(
            plan=plan,
            trust=self.trust_of(plan),
            size_bytes=sum(self.catalog.variant(v).size_bytes for v in plan.variants),
            cost_ms=self.latency.cost_ms(plan, size),
            idle_ms=idle_ms,
            predicted_ms=idle_ms + self.latency.wait_ms(plan),
        )
