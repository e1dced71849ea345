"""Quantiles of seen / expected, learned online."""

from __future__ import annotations

import random
from math import exp

import pytest

from gateway.latency.correction import Cell, LatencyCorrection, Observed, Window

P95, P99 = 1, 2


def cell() -> Cell:
    return Cell([0.0, 0.3, 0.6])


def feed(correction: LatencyCorrection, of: Cell, ratios: list[float], at_ms: float = 0.0) -> float:
    """Learn these ratios, one each 10 ms; return the share that was within the predicted P95."""
    within = 0
    for i, ratio in enumerate(ratios):
        p95, p99 = (correction.factor(of, 0, level) for level in (P95, P99))
        observed = Observed(correction.n, (ratio > p95, ratio > p99))
        correction.add(at_ms + 10.0 * i, of, 0, ratio, observed)
        within += ratio <= p95
    return within / len(ratios)


def lognormal(n: int, sigma: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [exp(rng.gauss(0.0, sigma)) for _ in range(n)]


def test_unknown_is_the_profile_widened() -> None:
    """What a cell was given, and nothing else."""
    assert LatencyCorrection(1).factor(cell(), 0, P95) == pytest.approx(exp(0.3))


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_quantiles_hold_whatever_the_scatter(sigma: float) -> None:
    """No distribution is assumed."""
    assert 0.93 <= feed(LatencyCorrection(1), cell(), lognormal(3000, sigma)) <= 0.99


def test_two_cells_that_differ_are_told_apart() -> None:
    """A profile that is off for one length must not widen all."""
    correction, fast, slow = LatencyCorrection(1), cell(), cell()
    for _ in range(400):
        feed(correction, fast, [0.7])
        feed(correction, slow, [1.4])
    assert correction.factor(slow, 0, P95) / correction.factor(fast, 0, P95) > 1.6


def test_a_window_forgets_by_age_but_never_all() -> None:
    """An hour without traffic leaves something to go by."""
    window = Window()
    for i in range(200):
        window.add(float(i), 5.0)
    window.add(1e7, 0.0)
    assert 1 < len(window) < 200
    assert sorted(window._sorted) == window._sorted


def test_what_is_censored_stands_for_the_median_of_what_is_longer() -> None:
    """At least so long: no shorter, and no longer than was ever seen unless it is."""
    window = Window()
    for i in range(1, 101):
        window.add(0.0, float(i))
    assert window.beyond(0.0) == 51.0
    assert window.beyond(90.5) == 96.0
    assert window.beyond(500.0) == 500.0


def moved_by_a_miss(delay: int) -> float:
    """Return by how much P95 rises when one miss is heard of so many scores later."""
    correction, of = LatencyCorrection(1), cell()
    feed(correction, of, lognormal(500, 0.1))
    before = correction.factor(of, 0, P95)
    correction.add(5000.0, of, 0, 1.0, Observed(correction.n - delay, (True, True)))
    return correction.factor(of, 0, P95) / before


def test_late_news_correct_less() -> None:
    """Misses that were decided long ago came from one mistake, not from many."""
    assert 1.0 < moved_by_a_miss(delay=400) < moved_by_a_miss(delay=0)
