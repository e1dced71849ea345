"""The bounds beside a second writing of each, and beside what can be counted or solved by hand."""

from __future__ import annotations

from itertools import product
from math import ceil, e, exp, log, sqrt

import numpy as np
import pytest
from scipy.stats import binom

from optimizer.certify import bounds
from optimizer.certify.bounds import betting_floor, hoeffding_bentkus_floor, ratio_floor

DELTA, MOST = 0.1, 16
CLOSE = 1e-9  # of a floor, which is found to 40 bits
Values = tuple[np.ndarray, np.ndarray, float]  # hits and counts of contexts, the most questions


def reference_capital(
    values: Values, m: float, delta: float = DELTA, *, peeks: bool = False
) -> float:
    """Return what the gamblers own, by the paper's formulas, value by value: slow and plain.

    Each bets sqrt(2 log(1/delta) / (n variance before)), at most 3/4 of what cannot lose all. Their capital is
    the mean over 16 orders; below a hundred contexts also over 16 gamblers with bets of a constant share.
    `peeks`: bet on a value after seeing it. Source: Waudby-Smith & Ramdas 2024, section 4.2.
    """
    hits, counts, most = values
    n, rng = len(hits), np.random.default_rng(0)
    capitals = []
    for order in [rng.permutation(n) for _ in range(16)]:
        capital, hit, count, squares = 1.0, 0.5, 1.0, 0.25
        for i, (h, c) in enumerate(zip(hits[order], counts[order], strict=True)):
            variance = squares / (i + 1)
            bet = min(sqrt(2 * log(1 / delta) / (n * variance)), 0.75 / (m * most))
            won = h - m * c
            capital *= 1 if peeks and won < 0 else 1 + bet * won
            hit, count = hit + h, count + c
            squares += (h - hit / count * c) ** 2
        capitals.append(capital)
    if n < 100:
        for share in (0.25, 0.5, 0.75, 0.95):
            capitals += [float(np.prod(1 + share / (m * most) * (hits - m * counts)))] * 4
    return float(np.mean(capitals))


def coins(n: int) -> Values:
    return np.random.default_rng(3).binomial(1, 0.6, n).astype(float), np.ones(n), 1.0


def rates(n: int) -> Values:
    return np.random.default_rng(3).binomial(5, 0.6, n) / 5, np.ones(n), 1.0


def contexts(n: int) -> Values:
    """Return up to 16 questions a context, among them contexts without any."""
    rng = np.random.default_rng(3)
    counts = rng.integers(0, MOST + 1, n)
    return rng.binomial(counts, rng.beta(4, 2, n)), counts, float(MOST)


WORLDS = [kind(n) for kind in (coins, rates, contexts) for n in (2, 40, 99, 100, 200)]


@pytest.mark.parametrize("values", WORLDS)
@pytest.mark.parametrize("delta", [0.1, 0.01])
def test_the_betting_bound_is_the_papers(values: Values, delta: float) -> None:
    """At the floor a second writing of the gamblers owns 1/delta, not 0.7/delta; above it less."""
    floor = ratio_floor(*values, delta)
    assert 0 < floor < values[0].sum() / values[1].sum()
    assert reference_capital(values, floor, delta) == pytest.approx(1 / delta, rel=1e-6)
    assert reference_capital(values, floor + 0.01, delta) < 1 / delta


@pytest.mark.parametrize("values", [coins(200), rates(200), contexts(200)])
def test_a_gambler_who_peeks_would_certify_more(values: Values) -> None:
    """The difference would be seen: the floor that ought to be is far below."""
    floor = ratio_floor(*values, DELTA)
    assert reference_capital(values, floor + 0.02, peeks=True) > 1 / DELTA


def test_the_mean_is_the_rate_of_contexts_of_one_question() -> None:
    """One bound, two names."""
    hits, counts, most = rates(40)
    assert betting_floor(hits, DELTA) == ratio_floor(hits, counts, most, DELTA)


def test_one_value_can_be_solved_by_hand() -> None:
    """A gambler bets sqrt(8 log 10), or constants of 0.6125/m on average, that a single 1 lies above m."""
    m = betting_floor(np.array([1.0]), DELTA)
    bets = (sqrt(8 * log(10)) + 0.6125 / m) / 2
    assert 1 + bets * (1 - m) == pytest.approx(10)
    assert betting_floor(np.array([0.0]), DELTA) == 0


def capital(hits: np.ndarray, counts: np.ndarray, most: float, m: float) -> float:
    """Return what the bound's own gamblers own, found by asking whether it is enough for 1/delta."""
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(len(hits)) for _ in range(bounds.ORDERS)])
    hit, count = hits[orders], counts[orders]
    bets = bounds._bets(hit, count, 0.5)  # low enough not to be capped
    low, high = -7.0, 7.0  # logarithms
    for _ in range(30):
        middle = (low + high) / 2
        if bounds._outbet(hit, count, bets, m, most, exp(-middle)):
            low = middle
        else:
            high = middle
    return exp(low)


FAIR = [
    # equally likely contexts (hits, count), and the true ratio
    (((0, 1), (1, 1)), 6),
    (((0, 1), (0.25, 1), (0.5, 1)), 4),
    (((0, 3), (1, 1)), 6),
    (((2, 2), (0, 1), (1, 3)), 4),
]


@pytest.mark.parametrize(("kinds", "n"), FAIR)
def test_the_capital_at_the_true_mean_is_one_on_average(
    kinds: tuple[tuple[float, int], ...], n: int
) -> None:
    """Over every sequence there is: one that peeks owns more, and 0.7/delta is 1/0.7 in place of 1."""
    m = sum(hit for hit, _ in kinds) / sum(count for _, count in kinds)
    most = float(max(count for _, count in kinds))
    drawn = [np.array(each, dtype=float).T for each in product(kinds, repeat=n)]
    owned = [capital(each[0], each[1], most, m) for each in drawn]
    assert np.mean(owned) == pytest.approx(1, abs=1e-6)


def test_floors_fail_as_often_as_the_theory_says() -> None:
    """By simulation at the true mean, where one look tells whether the floor lies above it.

    For many values the capital reaches 1/delta where a normal variable exceeds sqrt(2 log(1/delta)): in 1.6 %
    of the draws. At 0.7/delta it would be 2.4 %.
    """
    draws = np.random.default_rng(8).binomial(4, 0.6, (4000, 150)) / 4
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(150) for _ in range(bounds.ORDERS)])
    failed = []
    for values in draws:
        hit, count = values[orders], np.ones((bounds.ORDERS, 150))
        failed.append(bounds._outbet(hit, count, bounds._bets(hit, count, DELTA), 0.6, 1.0, DELTA))
    assert 0.012 < np.mean(failed) < 0.020


def reference_p_value(risk: float, a: float, n: int, factor: float = e) -> float:
    """Return the Hoeffding-Bentkus p-value as MAPIE and the LTT paper write it."""
    h1 = risk * log(risk / a) + (1 - risk) * log((1 - risk) / (1 - a)) if 0 < risk < a else 0.0
    wrong = ceil(round(n * risk, 6))
    return min(exp(-n * h1), factor * float(binom.cdf(wrong, n, a)))


@pytest.mark.parametrize("n", [10, 30, 300])
@pytest.mark.parametrize("mean", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("delta", [0.1, 0.001])
def test_hoeffding_bentkus_is_the_papers(mean: float, n: int, delta: float) -> None:
    """At the floor the p-value is delta, just above it more."""
    floor = hoeffding_bentkus_floor(np.full(n, mean), delta)
    assert reference_p_value(1 - mean, 1 - floor, n) == pytest.approx(delta, rel=1e-6)
    assert reference_p_value(1 - mean, 1 - floor - 1e-3, n) > delta


@pytest.mark.parametrize("mean", [0.8, 0.95])
def test_without_bentkus_factor_the_floor_would_be_higher(mean: float) -> None:
    """The factor e is part of the theorem."""
    floor = hoeffding_bentkus_floor(np.full(300, mean), DELTA)
    assert reference_p_value(1 - mean, 1 - floor - 0.002, 300, factor=1) <= DELTA


@pytest.mark.parametrize("n", [1, 5, 40])
@pytest.mark.parametrize("delta", [0.3, 0.01])
def test_without_a_mistake_the_floor_is_the_nth_root_of_delta(n: int, delta: float) -> None:
    """Of n values of 1: were the mean m, all would be 1 with probability m^n at most."""
    assert hoeffding_bentkus_floor(np.ones(n), delta) == pytest.approx(delta ** (1 / n), abs=CLOSE)
    assert hoeffding_bentkus_floor(np.zeros(n), delta) == 0
