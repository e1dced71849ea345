"""The gateway's tests of a candidate on many streams at once: the same verdicts, some twenty times as fast. Pure.

Legend: S streams, M requests of the candidate, R rates, B bets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.monitoring.rollout_tests import ERRORS_SHARE, Chances, Rate, RolloutTests, Verdict
from gateway.monitoring.sequential_tests import BETS, MOST, RESERVED, SPENT_EARLY

Array = npt.NDArray[Any]
CURRENT, CANDIDATE = 0, 1
WORSE, NO_WORSE = 0, 1  # the two tests of a rate
COMPACT = 100  # requests, after which streams that have ended are dropped


def verdicts(
    outcomes: Array,  # (S, R, M, 4): n and bad of the current set, then of the candidate
    chances: Chances,
) -> list[tuple[Verdict, int]]:
    """Return how each stream ends, and after how many requests of the candidate."""
    n_streams, _, most, _ = outcomes.shape
    found = [(Verdict.OPEN, most)] * n_streams
    open_streams, tests = np.arange(n_streams), _Tests(n_streams, chances)
    for i in range(most):
        worse, no_worse = tests.add(outcomes[open_streams, :, i], n_candidate=i)
        for verdict, fell in ((Verdict.WORSE, worse), (Verdict.NO_WORSE, no_worse)):
            for stream in open_streams[fell & ~tests.ended]:
                found[stream] = (verdict, i + 1)
        tests.ended |= worse | no_worse
        if tests.ended.all():
            break
        if i % COMPACT == COMPACT - 1:
            kept = ~tests.ended
            open_streams = open_streams[kept]
            tests.keep(kept)
    return found


class _Tests:
    """All rates of all streams: RolloutTests, RateTest and DifferenceTest as arrays."""

    def __init__(self, n_streams: int, chances: Chances) -> None:
        one = RolloutTests(chances)
        self._alarm, self._shown = one.alarm, one.shown
        self._after = chances.promote_after
        self._tolerances = [chances.tolerance if r is Rate.DISAGREEMENT else 0.0 for r in Rate]
        self._margins = [chances.margin * (ERRORS_SHARE if r is Rate.ERRORS else 1.0) for r in Rate]
        n_rates = len(Rate)
        self.ended = np.zeros(n_streams, dtype=bool)  # (S,)
        self._open = np.zeros((n_streams, n_rates, 2, 2))  # of the set: n, bad
        self._pairs = np.zeros((n_streams, n_rates))
        self._reserve = np.full((n_streams, n_rates), RESERVED)
        self._staked = np.full((n_streams, n_rates, 2, len(BETS)), (1 - RESERVED) / len(BETS))
        self._capital = np.ones((n_streams, n_rates, 2))
        self._bets = np.array(BETS)

    def keep(self, kept: Array) -> None:
        """Drop the other streams."""
        for name in ("ended", "_open", "_pairs", "_reserve", "_staked", "_capital"):
            setattr(self, name, getattr(self, name)[kept])

    def add(self, row: Array, n_candidate: int) -> tuple[Array, Array]:
        """Take the next outcomes (S, R, 4); return which streams show worse, and which no worse.

        `n_candidate`: requests of the candidate before. In the order in which a gateway takes them.
        """
        fell = np.zeros((2, len(self.ended)), dtype=bool)
        for rate in range(len(Rate)):
            for of in (CURRENT, CANDIDATE):
                self._open[:, rate, of] += row[:, rate, 2 * of : 2 * of + 2]
                paired = self._pair(rate, row[:, rate, 2 * of] > 0)
                if not paired.size:
                    continue
                n = n_candidate + (rate > 0 or of == CANDIDATE)
                self._judge(rate, paired, n, fell)
        return fell[WORSE], fell[NO_WORSE]

    def _judge(self, rate: int, paired: Array, n_candidate: int, fell: Array) -> None:
        """Note the verdicts that fall with these pairs; the first one of a stream stays."""
        before = fell[WORSE, paired] | fell[NO_WORSE, paired]
        worse = (self._capital[paired, rate, WORSE] >= self._alarm) & ~before
        fell[WORSE, paired] |= worse
        if self._after is not None and n_candidate >= self._after:
            shown = (self._capital[paired, :, NO_WORSE] >= self._shown).all(axis=1)
            fell[NO_WORSE, paired] |= shown & ~worse & ~before

    def _pair(self, rate: int, added: Array) -> Array:
        """Bet on a pair where both sets have an outcome since the last; return these streams."""
        waiting = self._open[:, rate]
        paired = np.flatnonzero(added & (waiting[:, :, 0] > 0).all(axis=1))
        if not paired.size:
            return paired
        current, new = (waiting[paired, of, 1] / waiting[paired, of, 0] for of in (0, 1))
        self._open[paired, rate] = 0.0
        tolerance, margin = self._tolerances[rate], self._margins[rate]
        x = np.stack([(new - current - tolerance) / (1 + tolerance), margin - (new - current)], 1)
        self._bet(rate, paired, x)
        return paired

    def _bet(self, rate: int, at: Array, x: Array) -> None:  # x: (pairs, 2 tests)
        before = self._reserve[at, rate]
        self._pairs[at, rate] += 1
        reserve = RESERVED / (1.0 + np.log1p(self._pairs[at, rate] / SPENT_EARLY))
        stake = ((before - reserve) / len(BETS))[:, None, None]
        won = 1.0 + self._bets * x[:, :, None]
        staked = np.minimum((self._staked[at, rate] + stake) * won, MOST)
        self._staked[at, rate], self._reserve[at, rate] = staked, reserve
        self._capital[at, rate] = staked.sum(axis=2) + reserve[:, None]
