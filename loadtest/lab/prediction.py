"""All that the lab asks of the gateway's predictor: the only module here that knows how it is called."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.catalog.store import Catalog
from gateway.domain import Option, Size, Trust
from gateway.latency.model import LatencyModel, Work
from gateway.routing.admission_queue import SMALLEST

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

    def options(
        self, size: Size, quantile: float, now_ms: float, n_behind: int = 0
    ) -> list[Option]:
        """Return every plan with this quantile of its latency for a request that is routed now.

        `n_behind`: requests that wait unread.
        """
        found = self._latency.predict(self._plans, size, quantile, now_ms)
        return [
            Option(
                plan,
                Trust.CERTIFIED,
                size_bytes,
                p.cost_ms,
                p.idle_ms,
                p.predicted_ms,
                self._latency.behind_ms(n_behind, p.cost_ms),
            )
            for plan, size_bytes, p in zip(self._plans, self._size_bytes, found, strict=True)
        ]

    def wait_ms(self, now_ms: float) -> float:
        """Return how long the smallest request would wait for the models, as expected."""
        return self._latency.wait_ms(self._plans, SMALLEST, now_ms)

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
