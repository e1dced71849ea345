"""All that the lab asks of the gateway's predictor: the only module here that knows how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from math import nan

from gateway.catalog.store import Catalog
from gateway.domain import Option, Size, Trust
from gateway.latency.model import LatencyModel, Work

Ticket = Work


class Prediction:
    """The gateway's own latency model over a catalog, fed with virtual times."""

    def __init__(self, catalog: Catalog, cores: int, instances: Mapping[str, int]) -> None:
        self._latency = LatencyModel(
            {v.name: v.profile for v in catalog.variants}, cores, instances
        )
        self._plans = catalog.plans
        size_bytes = {v.name: v.size_bytes for v in catalog.variants}
        self._size_bytes = [sum(size_bytes[v] for v in p.variants) for p in catalog.plans]
        self._unpredicted: dict[Size, tuple[Sequence[Option], Sequence[Option]]] = {}

    @property
    def cores(self) -> int:
        return self._latency.cores

    def plans(self, size: Size) -> Sequence[Option]:
        """Return every plan for a request of this size, its latency not predicted yet."""
        return self._known(size)[0]

    def cheapest_first(self, size: Size) -> Sequence[Option]:
        """Return the same by price."""
        return self._known(size)[1]

    def predictor(
        self, size: Size, quantile: float, now_ms: float, head_starts_ms: Sequence[float] = ()
    ) -> Callable[[Option], Option]:
        """Return what predicts this quantile of one plan's latency for a request that is routed now.

        `head_starts_ms`: by how much later the targets of those are that wait unread.
        """
        predict, latency = self._latency.predictor(size, quantile, now_ms), self._latency

        def predicted(known: Option) -> Option:
            p = predict(known.plan)
            return Option(
                known.plan,
                known.trust,
                known.size_bytes,
                p.cost_ms,
                p.idle_ms,
                p.predicted_ms,
                latency.behind_ms(head_starts_ms, p.cost_ms),
            )

        return predicted

    def options(
        self, size: Size, quantile: float, now_ms: float, head_starts_ms: Sequence[float] = ()
    ) -> list[Option]:
        """Return every plan with this quantile of its latency."""
        predicted = self.predictor(size, quantile, now_ms, head_starts_ms)
        return [predicted(known) for known in self.plans(size)]

    def wait_ms(self, now_ms: float) -> float:
        """Return how long a request would wait for a core, as expected."""
        return self._latency.wait_ms(now_ms)

    def stage_ms(self, variant: str, size: Size, quantile: float, now_ms: float) -> float:
        """Return this quantile of the latency of one variant that would be asked now."""
        return self._latency.predict_stage(variant, size, quantile, now_ms).predicted_ms

    def started(self, variant: str, size: Size, now_ms: float) -> Ticket:
        """Tell of work handed to a variant; the ticket tells of its end."""
        return self._latency.begin(variant, size, now_ms)

    def ended(self, ticket: Ticket, now_ms: float) -> None:
        self._latency.finish(ticket, now_ms)

    def cancelled(self, ticket: Ticket, now_ms: float) -> None:
        """Tell that nobody waits for this work any more; how long it would take stays unknown."""
        self._latency.give_up(ticket, now_ms)

    def resize(self, cores: float, instances: Mapping[str, int]) -> None:
        """Tell how many cores and instances there are now."""
        self._latency.resize(cores, instances)

    def set_external(self, windows: Mapping[str, int], now_ms: float) -> None:
        """Tell how many windows of other gateways each variant has."""
        self._latency.set_external(windows, now_ms)

    def learn_from(self, other: Prediction) -> None:
        """Begin with a copy of what another gateway has learned of hosts like these."""
        self._latency.correction = deepcopy(other._latency.correction)

    def _known(self, size: Size) -> tuple[Sequence[Option], Sequence[Option]]:
        known = self._unpredicted.get(size)
        if known is None:
            plans = [
                Option(
                    plan,
                    Trust.CERTIFIED,
                    size_bytes,
                    self._latency.cost_ms(plan, size),
                    nan,
                    nan,
                )
                for plan, size_bytes in zip(self._plans, self._size_bytes, strict=True)
            ]
            known = self._unpredicted[size] = plans, sorted(plans, key=lambda o: o.price)
        return known
