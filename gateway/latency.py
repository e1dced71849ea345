"""How long a plan will take for a request: its profile plus the wait that work in flight implies.

All times in ms. Knows the work in flight only from `begin` and `end`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil

from gateway.domain import Cell, Plan, Profile, Size

GATEWAY_MS = 2.0  # tokenize, route, decode and the way to the model server, of one window
WINDOW_MS = 0.5  # the same of each further window


class LatencyModel:
    """Predicts quantiles from profiles; windows of one request share the host's cores."""

    def __init__(self, profiles: Mapping[str, Profile], cores: int) -> None:
        self._profiles = profiles
        self._cores = max(1, cores)
        self._windows_in_flight = 0
        self._work_in_flight_ms = 0.0

    def cost_ms(self, plan: Plan, size: Size) -> float:
        """Return the expected compute of a plan for this size, ms of one core."""
        return self._cell(plan.variants[0], size).p50_ms * size.n_windows

    def idle_ms(self, plan: Plan, size: Size, quantile: float) -> float:
        """Return the end-to-end latency quantile on an idle system."""
        rounds = ceil(size.n_windows / self._cores)
        stages = sum(_at(self._cell(v, size), quantile) * rounds for v in plan.variants)
        return GATEWAY_MS + WINDOW_MS * (size.n_windows - 1) + stages

    def wait_ms(self) -> float:
        """Return how long a new request waits for a core."""
        if self._windows_in_flight < self._cores:
            return 0.0
        return self._work_in_flight_ms / self._cores

    @contextmanager
    def in_flight(self, variant: str, size: Size) -> Iterator[None]:
        """Count this work as in flight while it runs."""
        work_ms = self._cell(variant, size).p50_ms * size.n_windows
        self._windows_in_flight += size.n_windows
        self._work_in_flight_ms += work_ms
        try:
            yield
        finally:
            self._windows_in_flight -= size.n_windows
            self._work_in_flight_ms -= work_ms

    def _cell(self, variant: str, size: Size) -> Cell:
        return self._profiles[variant].cell(size.bucket)


def _at(cell: Cell, quantile: float) -> float:
    if quantile >= 0.99:
        return cell.p99_ms
    return cell.p95_ms if quantile >= 0.95 else cell.p50_ms
