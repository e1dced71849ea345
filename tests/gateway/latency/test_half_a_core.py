"""Predictions on half a core: the kernel's quota (CFS: 50 of every 100 ms) on a virtual clock."""

from __future__ import annotations

import random

import pytest

from gateway.catalog.schema import Cell, Profile
from gateway.domain import Size
from gateway.latency.model import LatencyModel, Work
from gateway.latency.profile import RUNS, sustained_ms
from tests.fakes import HOST

PERIOD_MS, QUOTA_MS, CORES = 100.0, 50.0, 0.5
ONE_WINDOW = Size(128, 1)


class HalfACore:
    """Runs work one after the other, until the quota of a period is used up."""

    def __init__(self) -> None:
        self.now_ms, self._left_ms, self._ends_ms = 0.0, QUOTA_MS, PERIOD_MS

    def run(self, work_ms: float, from_ms: float = 0.0) -> float:
        """Return when the work is done that may begin at `from_ms`."""
        self._wait(from_ms)
        while work_ms > 1e-9:
            step = min(work_ms, self._left_ms, self._ends_ms - self.now_ms)
            self._left_ms -= step
            work_ms -= step
            self._wait(self.now_ms + step)
            if self._left_ms <= 1e-9:
                self._wait(self._ends_ms)
        return self.now_ms

    def _wait(self, until_ms: float) -> None:
        self.now_ms = max(self.now_ms, until_ms)
        while self._ends_ms <= self.now_ms:
            self._left_ms, self._ends_ms = QUOTA_MS, self._ends_ms + PERIOD_MS


def measured(core: HalfACore, work_ms: float) -> LatencyModel:
    """Return the model of a gateway that has profiled itself there."""
    times = []
    for _ in range(RUNS):
        began_ms = core.now_ms
        times.append(core.run(work_ms) - began_ms)
    p50 = sustained_ms(times, CORES)
    cells = tuple(Cell(bucket, 1, p50, 1.3 * p50, 1.6 * p50) for bucket in (64, 128, 256, 384))
    return LatencyModel({"v": Profile(HOST, 1, cells)}, CORES, {"v": 2})


@pytest.mark.parametrize("work_ms", [20.0, 90.0])
def test_predictions_hold_on_half_a_core(work_ms: float) -> None:
    """With short work that fits into a quota, and with long work that never does; and they are no guesses."""
    core, rng = HalfACore(), random.Random(1)
    model = measured(core, work_ms)
    in_flight: list[tuple[float, Work]] = []
    held: list[bool] = []
    ratios: list[float] = []
    now_ms = core.now_ms
    for _ in range(1_000):
        now_ms += rng.expovariate(0.3 * CORES / work_ms)
        while in_flight and in_flight[0][0] <= now_ms:
            end_ms, work = in_flight.pop(0)
            seen = model.finish(work, end_ms)
            held.append(seen.in_p95)
            ratios.append(seen.ratio)
        work = model.begin("v", ONE_WINDOW, now_ms)
        in_flight.append((core.run(work_ms * rng.uniform(0.9, 1.1), now_ms), work))
    late = held[200:]
    assert sum(late) / len(late) >= 0.92  # of 800, P95 less what chance takes
    assert sorted(ratios[200:])[len(late) // 2] > 0.5  # the median takes more than half of the P95
