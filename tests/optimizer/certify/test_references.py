"""The bounds beside a second writing of each, and beside what can be counted or solved by hand."""

from __future__ import annotations

from itertools import product
from math import ceil, e, exp, floor, log, sqrt

import numpy as np
import pytest

from optimizer.certify import bounds
from optimizer.certify.bounds import betting_floor, hoeffding_bentkus_floor, ratio_floor

DELTA, MOST = 0.1, 16
CLOSE = 1e-9  # of a floor, which is found to 40 bits
Values = tuple[np.ndarray, np.ndarray, float]  # hits and counts of contexts, the most questions


def reference_capital(
    values: Values, m: float, delta: float = DELTA, *, peeks: bool = False
) -> float:
    """Return what the gamblers own, by the paper's formulas, value by value: slow and plain.

    With r values left and a factor g missing to 1.5/delta, each bets sqrt(2 log(g) / (r variance before)), at
    most 0.99 of what cannot lose all, as if m were the next multiple of 1/200. Their capital is the mean over
    32 orders. `peeks`: bet on a value after seeing it. Source: Voracek & Orabona 2025, algorithm 1.
    """
    hits, counts, most = values
    n, rng = len(hits), np.random.default_rng(0)
    top = (floor(m * 200) + 1) / 200
    capitals = []
    for order in [rng.permutation(n) for _ in range(32)]:
        capital = aimed = 1.0
        hit, count, squares = 0.5, 1.0, 0.25
        for i, (h, c) in enumerate(zip(hits[order], counts[order], strict=True)):
            variance = squares / (i + 1)
            missing = max(0.0, log(1.5 / delta / aimed))
            bet = min(sqrt(2 * missing / ((n - i) * variance)), 0.99 / (top * most))
            aimed *= 1 + bet * (h - top * c)
            won = h - m * c
            capital *= 1 if peeks and won < 0 else 1 + bet * won
            hit, count = hit + h, count + c
            squares += (h - hit / count * c) ** 2
        capitals.append(capital)
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


WORLDS = [kind(n) for kind in (coins, rates, contexts) for n in (5, 17, 40, 200)]


@pytest.mark.parametrize("values", WORLDS)
@pytest.mark.parametrize("delta", [0.1, 0.01])
def test_the_betting_bound_is_the_papers(values: Values, delta: float) -> None:
    """Just below the floor a second writing of the gamblers owns 1/delta, just above it less."""
    found = ratio_floor(*values, delta)
    assert 0 < found < values[0].sum() / values[1].sum()
    assert reference_capital(values, found - CLOSE, delta) >= (1 - 1e-6) / delta
    assert reference_capital(values, found + CLOSE, delta) < (1 + 1e-6) / delta
    assert reference_capital(values, found + 0.02, delta) < 0.9 / delta


@pytest.mark.parametrize("values", [coins(200), rates(200), contexts(200)])
def test_a_gambler_who_peeks_would_certify_more(values: Values) -> None:
    """The difference would be seen: the floor that ought to be is far below."""
    found = ratio_floor(*values, DELTA)
    assert reference_capital(values, found + 0.02, peeks=True) > 1 / DELTA


def test_the_mean_is_the_rate_of_contexts_of_one_question() -> None:
    """One bound, two names."""
    hits, counts, most = rates(40)
    assert betting_floor(hits, DELTA) == ratio_floor(hits, counts, most, DELTA)


def test_one_value_can_be_solved_by_hand() -> None:
    """To double on a single 1 with 0.99/m, m is at most 0.99/1.99: the last cell below ends at 0.495."""
    assert betting_floor(np.array([1.0]), 0.5) == pytest.approx(0.495, abs=CLOSE)
    assert betting_floor(np.array([0.0]), 0.5) == 0


def test_equal_values_come_near_the_limit_of_all_bounds() -> None:
    """Were the mean below v delta^(1/n), values of v and 0 would look so with a chance above delta."""
    for n in (10, 17, 40):
        limit = 0.7 * 0.004 ** (1 / n)
        assert 0.985 * limit < betting_floor(np.full(n, 0.7), 0.004) <= limit


def test_many_equal_values_certify_nearly_their_mean() -> None:
    """Floors are looked for up to the mean: of a thousand values of 0.7 all of it but 0.002, and below a cell's end."""
    limit = 0.7 * DELTA ** (1 / 1000)
    assert limit - 0.001 < betting_floor(np.full(1000, 0.7), DELTA) <= limit


def capital(hits: np.ndarray, counts: np.ndarray, most: float, m: float) -> float:
    """Return what the bound's own gamblers own at the end."""
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(len(hits)) for _ in range(bounds.ORDERS)])
    last = bounds._capitals(hits[orders], counts[orders], np.array([m]), most, 0.05)
    return float(np.exp(last).mean())


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


@pytest.mark.parametrize(("low", "share"), [(0.0, 0.6), (0.9, 0.02), (0.0, 0.02), (0.4, 0.97)])
def test_floors_from_few_values_hold_where_they_hardly_vary(low: float, share: float) -> None:
    """By simulation at the true mean: values are 1 (the share) or `low`, and most samples show one of them only."""
    rng, n = np.random.default_rng(8), 20
    draws = np.where(rng.random((1500, n)) < share, 1.0, low)
    mean = np.array([low + share * (1 - low)])
    orders = np.stack([rng.permutation(n) for _ in range(bounds.ORDERS)])
    failed = 0
    for values in draws:
        ones = np.ones((bounds.ORDERS, n))
        last = bounds._capitals(values[orders], ones, mean, 1.0, DELTA)
        failed += bool(bounds._enough(last, DELTA)[0])
    assert failed / len(draws) <= DELTA


def reference_p_value(risk: float, a: float, n: int, factor: float = e) -> float:
    """Return the Hoeffding-Bentkus p-value as MAPIE and the LTT paper write it."""
    from scipy.stats import binom  # takes a second to import

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


def test_a_risk_of_one_is_excluded_by_a_single_right_value() -> None:
    """The p-value's limit: relative to a coin that is always wrong the entropy is infinite."""
    assert bounds._p_value(10, 0.9, 1.0) == 0.0
    assert 0 < bounds._p_value(10, 0.9, 0.99) < bounds._p_value(10, 0.9, 0.95)
