"""Quantiles of seen / expected, learned online."""

from __future__ import annotations

import random
from itertools import product
from math import ceil, exp, log

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


def test_two_cells_that_differ_are_learned_apart() -> None:
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
        window.add(float(i), 1000.0 - i)
    window.add(15_100.0, 0.0)
    assert window._sorted == [0.0, *(1000.0 - i for i in reversed(range(100, 200)))]
    window.add(1e7, 0.5)
    assert window._sorted == [0.0, 0.5, *(1000.0 - i for i in reversed(range(142, 200)))]
    for i in range(400):
        window.add(1e7 + i, 2000.0)
    assert len(window) == 300


def test_what_is_censored_stands_for_the_median_of_what_is_longer() -> None:
    """At least so long: no shorter, and no longer than was ever seen unless it is."""
    window = Window()
    for i in range(1, 101):
        window.add(0.0, float(i))
    assert window.beyond(0.0) == 51.0
    assert window.beyond(90.5) == 96.0
    assert window.beyond(500.0) == 500.0
    assert window.beyond(100.0) == 100.0
    assert (Window().beyond(-1.0), Window().beyond(1.5)) == (0.0, 1.5)


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


class Plain:
    """The same correction, written by its description: sorts anew for every question, keeps all in lists."""

    def __init__(self, spreads: list[float]) -> None:
        self.spreads = spreads
        self.seen: list[tuple[float, int, float]] = []  # time, regime, score
        self.location = self.of_cell = 0.0
        self.reach, self.own_reach = [0.0] * 3, [0.0] * 3

    @property
    def offset(self) -> float:
        n = len(self.seen)
        return self.of_cell * n / (n + 40)

    def scores(self, regime: int | None) -> list[float]:
        kept: list[tuple[float, float]] = []
        for at_ms, of, score in self.seen:
            if regime in (None, of):
                kept.append((at_ms, score))
                while len(kept) > 300 or (len(kept) > 60 and at_ms - kept[0][0] > 15_000):
                    del kept[0]
        return sorted(score for _, score in kept)

    def factor(self, regime: int, level: int) -> float:
        if not self.seen:
            return exp(self.spreads[level])
        return exp(max(self._log(regime, each) for each in {1: (1,), 2: (1, 2)}.get(level, (0,))))

    def _log(self, regime: int, level: int) -> float:
        own, pooled = self.scores(regime), self.scores(None)
        aim, prior = (0.5, 0.96, 0.993)[level], (4, 20, 60)[level]
        of_own = len(own) / (len(own) + prior)
        of_all = (1 - of_own) * len(pooled) / (len(pooled) + prior)
        found = (1 - of_own - of_all) * self.spreads[level]
        for weight, scores in ((of_own, own), (of_all, pooled)):
            if scores:
                found += weight * scores[min(len(scores), ceil(aim * (len(scores) + 1))) - 1]
        return self.location + self.offset + found + self.reach[level] + self.own_reach[level]

    def learn(
        self, at_ms: float, regime: int, ratio: float, observed: Observed, *, censored: bool
    ) -> None:
        score = max(-2.5, min(2.5, log(ratio) - self.location - self.offset))
        if censored:
            longer = [each for each in self.scores(None) if each >= score]
            middle = (len(self.scores(None)) - len(longer) + len(self.scores(None))) // 2
            score = max(score, self.scores(None)[middle]) if longer else score
        self.seen.append((at_ms, regime, score))
        moved = max(1 / 16, 1 / (len(self.scores(None)) + 3)) * score
        self.location += moved
        if len(self.scores(None)) <= 40:
            self.seen = [(at_ms, of, score - moved) for at_ms, of, score in self.seen]
        self.of_cell += max(1 / 60, 1 / (len(self.seen) + 40)) * score
        if len(self.scores(None)) <= 40:
            return
        pace = min(1, 20 / (len(self.seen) - observed.n))
        for level, late in ((1, observed.missed[0]), (2, observed.missed[1])):
            aim = (0.5, 0.96, 0.993)[level]
            push = pace * (aim if late else aim - 1)
            self.reach[level] = max(-0.7, min(0.7, self.reach[level] + 0.04 * push))
            self.own_reach[level] = max(-0.7, min(0.7, self.own_reach[level] + 0.015 * push))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_plain_writing_of_the_correction_agrees(seed: int) -> None:
    """Through 500 answers on a host that turns slow, stalls, and is fast again, in two regimes."""
    rng, plain = random.Random(seed), Plain([0.0, 0.3, 0.6])
    correction, of = LatencyCorrection(2), cell()
    for i in range(500):
        at_ms, regime = 100.0 * i, int(rng.random() < 0.3)
        slow = 20.0 if i == 250 else 0.001 if i == 300 else 3.0 if 150 < i < 300 else 1.0
        ratio = slow * exp(rng.gauss(0.0, 0.3))
        late = tuple(ratio > correction.factor(of, regime, level) for level in (P95, P99))
        known = max(0, correction.n - rng.choice([0, 0, 5, 60]))
        censored = i > 20 and rng.random() < 0.1
        observed = Observed(known, (late[0], late[1]))
        (correction.add_censored if censored else correction.add)(
            at_ms, of, regime, ratio, observed
        )
        plain.learn(at_ms, regime, ratio, observed, censored=censored)
        if i % 20 == 0:
            for r, level in product((0, 1), (0, P95, P99)):
                assert correction.factor(of, r, level) == pytest.approx(plain.factor(r, level))
    assert correction.slowness == pytest.approx(exp(plain.location))
    assert of.factor == pytest.approx(exp(plain.offset))


def test_answers_at_rest_lower_what_an_idle_host_is_predicted_to_take() -> None:
    """Never above the profile; two of them weigh as much as what is known for the median, six for the P95."""
    correction, of = LatencyCorrection(1), Cell([0.0, 0.3, 0.6], [0.0, 0.1, 0.2])
    assert [of.at_rest(level).rested for level in range(3)] == [0.0, 0.3, 0.6]
    assert [of.at_rest(level).idle for level in range(3)] == [exp(x) for x in (0.0, 0.1, 0.2)]
    for _ in range(2):
        correction.add_unloaded(0.0, of, exp(-0.4))
    assert of.at_rest(0).rested == pytest.approx(2 / 4 * -0.4)
    assert of.at_rest(P95).rested == pytest.approx(2 / 8 * -0.4 + 6 / 8 * 0.3)
    assert of.at_rest(P99).idle == pytest.approx(exp(2 / 14 * -0.4 + 12 / 14 * 0.2))
    assert correction.factor(of, 0, P95) == pytest.approx(of.at_rest(P95).factor)
    for _ in range(300):
        correction.add_unloaded(0.0, of, exp(0.9))
    assert [of.at_rest(level).rested for level in range(3)] == [0.0, 0.3, 0.6]
    before = len(of.unloaded)
    correction.add_unloaded(0.0, of, exp(1.1))  # a stall
    assert len(of.unloaded) == before


def test_one_cold_answer_is_no_slow_host_and_a_few_are() -> None:
    """The first answer after a rest may have to fetch its memory; what is predicted next must not grow as much."""
    correction, of = LatencyCorrection(1), cell()
    before = correction.factor(of, 0, P95)
    feed(correction, of, [10.0])
    assert 1.0 < correction.factor(of, 0, P95) / before < 2.5
    feed(correction, of, [10.0] * 11)
    assert 6.0 < correction.factor(of, 0, P95) / before < 12.0
    scattered = LatencyCorrection(1)
    of = cell()
    feed(scattered, of, [10.0 * each for each in lognormal(60, 0.3)])
    assert 0.9 < scattered.factor(of, 0, P95) / (10.0 * exp(0.3 * 1.645)) < 1.5


def test_idle_time_takes_the_weight_of_what_was_learned_until_it_is_forgotten() -> None:
    """After 1.5 s an idle gateway predicts what a fresh one would."""
    correction, of = LatencyCorrection(1), cell()
    correction.cells["small"] = of
    feed(correction, of, [3.0] * 50)
    correction.rest(0.0)
    learned = log(correction.factor(of, 0, P95))
    assert learned > 1.0
    for idle_ms, weight in ((-5.0, 1.0), (300.0, 0.8), (750.0, 0.5), (0.0, 1.0)):
        correction.rest(idle_ms)
        expected = weight * learned + (1 - weight) * 0.3
        assert log(correction.factor(of, 0, P95)) == pytest.approx(expected)
    correction.rest(1500.0)
    assert (correction.slowness, of.n, of.offset, of.factor) == (1.0, 0, 0.0, 1.0)
    assert correction.factor(of, 0, P95) == pytest.approx(exp(0.3))
    correction.rest(0.0)
    feed(correction, of, [1.0])
    fresh, other = LatencyCorrection(1), cell()
    feed(fresh, other, [1.0])
    assert correction.factor(of, 0, P95) == pytest.approx(fresh.factor(other, 0, P95))
