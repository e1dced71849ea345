"""How long a plan will take for a request: its profile plus the wait that work in flight implies.

All times in ms. Knows the work in flight only from `in_flight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from gateway.domain import Size
from gateway.published import Cell, Plan, Profile

GATEWAY_MS = 2.0  # tokenize, route, decode and the way to the model server, of one window
WINDOW_MS = 0.5  # the same of each further window


@dataclass(slots=True)
class _Load:
    """Work in flight."""

    windows: int = 0
    work_ms: float = 0.0

    def add(self, windows: int, work_ms: float) -> None:
        self.windows += windows
        self.work_ms += work_ms


class LatencyModel:
    """Predicts quantiles from profiles.

    A variant answers as many windows at once as it has instances; all variants share the cores.
    """

    def __init__(
        self, profiles: Mapping[str, Profile], cores: int, instances: Mapping[str, int]
    ) -> None:
        self._profiles = profiles
        self._cores = max(1, cores)
        self._slots = {name: max(1, min(self._cores, instances[name])) for name in profiles}
        self._all = _Load()
        self._of = {name: _Load() for name in profiles}

    @property
    def busy(self) -> bool:
        """Is any work in flight?"""
        return self._all.windows > 0

    def cost_ms(self, plan: Plan, size: Size) -> float:
        """Return the expected compute of a plan for this size, ms of one core."""
        return self._cell(plan.variants[0], size).p50_ms * size.n_windows

    def idle_ms(self, plan: Plan, size: Size, quantile: float) -> float:
        """Return the end-to-end latency quantile on an idle system."""
        stages = sum(
            _at(self._cell(v, size), quantile) * ceil(size.n_windows / self._slots[v])
            for v in plan.variants
        )
        return GATEWAY_MS + WINDOW_MS * (size.n_windows - 1) + stages

    def wait_ms(self, plan: Plan) -> float:
        """Return how long a new request waits for a core and for an instance of its variant."""
        own, slots = self._of[plan.variants[0]], self._slots[plan.variants[0]]
        for_core = self._all.work_ms / self._cores if self._all.windows >= self._cores else 0.0
        for_instance = own.work_ms / slots if own.windows >= slots else 0.0
        return max(for_core, for_instance)

    @contextmanager
    def in_flight(self, variant: str, size: Size) -> Iterator[None]:
        """Count this work as in flight while it runs."""
        work_ms = self._cell(variant, size).p50_ms * size.n_windows
        loads = (self._all, self._of[variant])
        for load in loads:
            load.add(size.n_windows, work_ms)
        try:
            yield
        finally:
            for load in loads:
                load.add(-size.n_windows, -work_ms)

    def _cell(self, variant: str, size: Size) -> Cell:
        return self._profiles[variant].cell(size.bucket)


def _at(cell: Cell, quantile: float) -> float:
    if quantile >= 0.99:
        return cell.p99_ms
    return cell.p95_ms if quantile >= 0.95 else cell.p50_ms
