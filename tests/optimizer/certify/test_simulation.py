"""Floors fail no more often than delta, and the tests of the bounds detect broken ones."""

from __future__ import annotations

from math import ceil, e, exp, log

import numpy as np
import pytest
from scipy.stats import binom

from optimizer.certify import simulation
from optimizer.certify.bounds import betting_floor, hoeffding_bentkus_floor

DELTA, RUNS = 0.1, 150


def test_floors_by_article_fail_no_more_often_than_delta() -> None:
    """With the measured correlation, floors by article hold; taken for independent, contexts' do not."""
    rows = {(r.world, r.unit, r.delta): r.failed for r in simulation.failures(RUNS)}
    for delta in simulation.DELTAS:
        assert rows["articles", "article", delta] <= delta
        assert rows["independent contexts", "context", delta] <= delta + 0.03
        assert rows["articles", "context", delta] > delta


def test_the_simulated_correlation_is_the_measured_one() -> None:
    """By analysis of variance, of many articles of equal length."""
    rng = np.random.default_rng(1)
    found = np.stack([a[:5] for a in simulation.articles(rng, 20_000, simulation.ICC)])
    between, within = found.mean(1).var(ddof=1), found.var(axis=1, ddof=1).mean()
    of_articles = between - within / 5
    assert of_articles / (of_articles + within) == pytest.approx(simulation.ICC, abs=0.02)
    assert found.mean() == pytest.approx(simulation.MEAN_F1, abs=0.01)


def test_a_text_asked_often_raises_no_false_alarm_in_simulation() -> None:
    """One question a text is as promised either way; twenty are not, counted one by one."""
    single, by_text = simulation.false_alarms(20, 60)
    assert single > 0.1
    assert by_text <= 0.05


def reference_betting_floor(
    values: np.ndarray, delta: float, *, peeks: bool = False, spend: float = 1.0
) -> float:
    """Return the floor by the paper's own formulas, value by value, on a grid of means: slow and plain.

    `peeks`: bet on a value after seeing it. `spend`: a factor of 1/delta. Source: Waudby-Smith & Ramdas 2024,
    section 4.2: sqrt(2 log(1/delta) / (n variance before)), capped at 3/4 of 1/m; the capital is the mean over
    the same 16 orders.
    """
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(values)) for _ in range(16)]
    low = 0.0
    for m in np.arange(0.002, 1, 0.002):
        capitals = []
        for order in orders:
            capital, total, squares = 0.0, 0.5, 0.25
            for i, x in enumerate(values[order]):
                variance = squares / (i + 1)
                bet = min((2 * log(1 / delta) / (len(values) * variance)) ** 0.5, 0.75 / m)
                if peeks and x < m:
                    bet = 0.0
                capital += np.log1p(bet * (x - m))
                total += x
                squares += (x - total / (i + 2)) ** 2
            capitals.append(capital)
        if np.logaddexp.reduce(capitals) - log(16) < log(spend / delta):
            break
        low = float(m)
    return low


@pytest.mark.parametrize("kind", ["coins", "contexts"])
def test_the_betting_bound_is_the_papers(kind: str) -> None:
    """A second writing of it agrees; one that peeks, or spends too little of delta, lies elsewhere."""
    rng = np.random.default_rng(3)
    draws = rng.binomial(1, 0.6, 200) if kind == "coins" else rng.binomial(5, 0.6, 200) / 5
    values = draws.astype(float)
    ours = betting_floor(values, DELTA)
    assert ours == pytest.approx(reference_betting_floor(values, DELTA), abs=0.003)
    assert reference_betting_floor(values, DELTA, peeks=True) > ours + 0.02
    assert reference_betting_floor(values, DELTA, spend=0.7) > ours + 0.0005


def reference_p_value(risk: float, a: float, n: int, factor: float = e) -> float:
    """Return the Hoeffding-Bentkus p-value as MAPIE and the LTT paper write it."""
    h1 = risk * log(risk / a) + (1 - risk) * log((1 - risk) / (1 - a)) if 0 < risk < a else 0.0
    wrong = ceil(round(n * risk, 6))
    return min(exp(-n * h1), factor * float(binom.cdf(wrong, n, a)))


@pytest.mark.parametrize("n", [30, 300])
@pytest.mark.parametrize("mean", [0.5, 0.8, 0.95])
def test_hoeffding_bentkus_is_the_papers(mean: float, n: int) -> None:
    """At the floor the p-value is delta; without the factor e of Bentkus's bound the floor would be higher."""
    values = np.full(n, mean)
    floor, risk = hoeffding_bentkus_floor(values, DELTA), 1 - float(np.mean(values))
    assert reference_p_value(risk, 1 - floor, n) == pytest.approx(DELTA, rel=0.02)
    without = [
        m for m in np.arange(0.001, mean, 0.001) if reference_p_value(risk, 1 - m, n, 1) <= DELTA
    ]
    assert max(without) > floor + 0.002


def test_the_capital_at_the_true_mean_is_one_on_average() -> None:
    """Whatever the bets: one that peeks owns more, and is no bound. Every sequence of ten coins is counted.

    For fewer than a hundred values constant bets are staked, too.
    """
    floors = []
    for bits in range(2**10):
        coins = np.array([(bits >> i) & 1 for i in range(10)], dtype=float)
        floors.append(betting_floor(coins, DELTA) > 0.5)
    assert np.mean(floors) <= DELTA


def test_the_picture_shows_every_size() -> None:
    """Floors rise with articles, below the mean."""
    points = simulation.floors_by_size((10, 40), 3)
    assert points[0][1] < points[1][1] < simulation.MEAN_F1
    svg = simulation.picture(points)
    assert svg.count("<circle") == 2
    assert "true mean F1 0.65" in svg
