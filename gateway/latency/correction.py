"""The online correction of predicted latencies: how observed times differ from expected ones.

Old observations expire with new answers and with idle time: while nothing is in flight their weight falls, to 0
after FORGET_MS. Then only answers that had the host to themselves still count, and only where they were faster
than the profile: an idle gateway predicts at most what a fresh one would.

A score is the log of observed / expected. Quantiles are those of the last scores under similar load, shifted by
the offset of the variant's length bucket and by whether the last predictions held. Pure: times are arguments.

Source: split conformal prediction on a sliding window; its level corrected by pinball steps as in
Gibbs & Candes 2021 (adaptive conformal inference) and Angelopoulos, Candes & Tibshirani 2023
(conformal PID control: quantile tracking), here pooled and for each cell.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import ceil, exp, log
from typing import NamedTuple

LEVELS = (0.5, 0.95, 0.99)
_AIMS = (0.5, 0.96, 0.993)  # slightly above the levels: coverage must be at least the level
_PRIOR_N = (4.0, 20.0, 60.0)  # scores that the prior is worth, for each level
_PRIOR_UNLOADED_N = (
    2.0,
    6.0,
    12.0,
)  # the same of a cell's own scores on a host at rest: they scatter less

FORGET_MS = 1_500.0  # with nothing in flight, until what was learned is forgotten
_STALL = 1.0  # a score above this says nothing of a host at rest

_WINDOW = 300  # scores that are remembered
_KEPT = 60  # of them, however old they are
_AGE_MS = 15_000.0
_MOST = 2.5  # a score counts at most this far from the expected: one stall is no trend
_PACE = 1 / 16  # weight of the last score in the pooled location
_EXPECTED_N = 3.0  # scores as expected that it begins with: one cold answer is no slow host
_SETTLES_N = 40  # the first scores tell where the others will be, not how they scatter
_CELL_N = 40.0  # scores of a cell after which its correction is half its own
_CELL_PACE = 1 / 60
_STEP = 0.04  # pinball step, pooled: a miss raises predictions by 4 %
_CELL_STEP = 0.015
_PROMPT = 20  # steps are smaller by as much as more scores came in between: else they would swing
_NOTHING = (0.0,) * len(LEVELS)
_REACH = 0.7  # most that pinball steps add or take


class Window:
    """The last scores, in order of value."""

    def __init__(self) -> None:
        self._by_age: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []
        self.quantiles: Sequence[float] = ()  # (levels,), empty while there is no score

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, at_ms: float, score: float) -> None:
        insort(self._sorted, score)
        self._by_age.append((at_ms, score))
        while len(self._sorted) > _WINDOW or (
            len(self._sorted) > _KEPT and at_ms - self._by_age[0][0] > _AGE_MS
        ):
            oldest = self._by_age.popleft()[1]
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._rank()

    def shift(self, by: float) -> None:
        """Add to every score."""
        if self._sorted:
            self._by_age = deque([(at_ms, score + by) for at_ms, score in self._by_age])
            self._sorted = [score + by for score in self._sorted]
            self._rank()

    def _rank(self) -> None:
        n = len(self._sorted)
        # The smallest score that covers a new one at this level, else the largest.
        self.quantiles = [self._sorted[min(n, ceil(aim * (n + 1))) - 1] for aim in _AIMS]

    def beyond(self, score: float) -> float:
        """Return the median of what exceeds this score, which a censored one may stand for.

        Source: redistribution to the right (Efron 1967), its mass put in one place.
        """
        above = bisect_left(self._sorted, score)
        n = len(self._sorted)
        if not n:
            return max(score, 0.0)  # nothing is known: as expected, unless it took longer already
        return max(score, self._sorted[(above + n) // 2]) if above < n else score


class AtRest:
    """Seen / expected on a host at rest, at one level."""

    __slots__ = ("factor", "idle", "rested")

    def __init__(self, rested: float, idle: float) -> None:
        self.rested = rested  # log
        self.factor = exp(rested)
        self.idle = exp(idle)  # of what an idle system can do: the profile is not widened


@dataclass(slots=True)
class Cell:
    """The correction of one variant at one length."""

    spreads: Sequence[float]  # (levels,) the profile's log quantile / median, widened
    tails: Sequence[float] = _NOTHING  # (levels,) the same, not widened
    n: int = 0
    location: float = 0.0
    offset: float = 0.0  # the location, shrunken
    factor: float = 1.0  # its exponential
    reach: list[float] = field(default_factory=lambda: [0.0] * len(LEVELS))  # (levels,)
    unloaded: Window = field(
        default_factory=Window
    )  # scores of answers that had the host to themselves
    _at_rest: Sequence[AtRest] = ()  # (levels,) empty: work it out

    def add_unloaded(self, at_ms: float, score: float) -> None:
        """Add the score of an answer that had the host to itself."""
        self.unloaded.add(at_ms, score)
        self._at_rest = ()

    def at_rest(self, level: int) -> AtRest:
        """Return how long answers take on a host at rest: the prior's, or less where they were faster."""
        if not self._at_rest:
            self._at_rest = [
                AtRest(self._score(i, spread), self._score(i, tail))
                for i, (spread, tail) in enumerate(zip(self.spreads, self.tails, strict=True))
            ]
        return self._at_rest[level]

    def _score(self, level: int, known: float) -> float:
        n = len(self.unloaded)
        if not n:
            return known
        share = n / (n + _PRIOR_UNLOADED_N[level])
        return min(known, share * self.unloaded.quantiles[level] + (1.0 - share) * known)

    def forget(self) -> None:
        """Forget everything except the answers that had the host to themselves."""
        self.n, self.location, self.offset, self.factor = 0, 0.0, 0.0, 1.0
        self.reach = [0.0] * len(LEVELS)


class Observed(NamedTuple):
    """How a prediction turned out; n: scores that were known when it was made."""

    n: int
    missed: tuple[bool, bool]  # whether it took longer than P95, than P99


class LatencyCorrection:
    """Tracks scores by regime, a level of load from 0 (nothing waits)."""

    def __init__(self, regimes: int) -> None:
        self.n = 0  # scores so far
        self.cells: dict[Hashable, Cell] = {}
        self._regimes = regimes
        self._start()

    def _start(self) -> None:
        self._n_known = 0  # scores that are not forgotten
        self._fresh = 1.0  # share of them that time has left
        self.location = 0.0
        self._all = Window()
        self._windows = [Window() for _ in range(self._regimes)]
        self._reach = [0.0] * len(LEVELS)
        self._refresh()

    def rest(self, idle_ms: float) -> None:
        """Forget, as nothing has been in flight for so long; 0: something is."""
        self._fresh = min(1.0, max(0.0, 1.0 - idle_ms / FORGET_MS))
        if not self._fresh and self._n_known:
            for cell in self.cells.values():
                cell.forget()
            self._start()
            self._fresh = 0.0

    @property
    def slowness(self) -> float:
        """Pooled seen / expected: by how much the host is slower than its profiles."""
        return exp(self.location)

    def factor(self, cell: Cell, regime: int, level: int) -> float:
        """Return seen / expected at a level of `LEVELS`, P99 never less than P95."""
        weight = self._fresh if self._n_known else 0.0
        rest = cell.at_rest(level)
        if not weight:
            return rest.factor
        row = self._base[regime] or self._learned(regime)
        reach, spreads = cell.reach, cell.spreads
        learned, unknown = row[level]
        found = learned + unknown * spreads[level] + reach[level]
        if level > 1:
            learned, unknown = row[1]
            found = max(found, learned + unknown * spreads[1] + reach[1])
        return exp(weight * (found + cell.offset) + (1.0 - weight) * rest.rested)

    def add_unloaded(self, at_ms: float, cell: Cell, ratio: float) -> None:
        """Learn from an answer that had the host to itself, for the next time the host is idle."""
        score = log(max(ratio, 1e-6))
        if score <= _STALL:
            cell.add_unloaded(at_ms, score)

    def add(self, at_ms: float, cell: Cell, regime: int, ratio: float, observed: Observed) -> None:
        """Learn from an answer: seen / expected."""
        self._learn(at_ms, cell, regime, self._score(cell, ratio), observed)

    def add_censored(
        self, at_ms: float, cell: Cell, regime: int, ratio: float, observed: Observed
    ) -> None:
        """Learn from cancelled work: it would have taken at least so long."""
        self._learn(at_ms, cell, regime, self._all.beyond(self._score(cell, ratio)), observed)

    def _score(self, cell: Cell, ratio: float) -> float:
        return max(-_MOST, min(_MOST, log(max(ratio, 1e-6)) - self.location - cell.offset))

    def _learn(
        self, at_ms: float, cell: Cell, regime: int, score: float, observed: Observed
    ) -> None:
        self.n += 1
        self._n_known += 1
        self._all.add(at_ms, score)
        self._windows[regime].add(at_ms, score)
        n = len(self._all)
        moved = max(_PACE, 1.0 / (n + _EXPECTED_N)) * score
        self.location += moved
        cell.n += 1
        cell.location += max(_CELL_PACE, 1.0 / (cell.n + _CELL_N)) * score
        cell.offset = cell.location * cell.n / (cell.n + _CELL_N)
        cell.factor = exp(cell.offset)
        if n <= _SETTLES_N:
            for window in (self._all, *self._windows):
                window.shift(-moved)
        else:
            self._step_quantiles(cell, observed)
        self._refresh()

    def _step_quantiles(self, cell: Cell, observed: Observed) -> None:
        """Raise the quantiles that a prediction missed, and lower those that held, by pinball steps."""
        pace = min(1.0, _PROMPT / (self.n - observed.n))
        for level, late in enumerate(observed.missed, start=1):  # a window's median needs no help
            push = pace * (_AIMS[level] if late else _AIMS[level] - 1.0)
            self._reach[level] = _step(self._reach[level], _STEP * push)
            cell.reach[level] = _step(cell.reach[level], _CELL_STEP * push)

    def _refresh(self) -> None:
        """Have what was learned worked out anew, where it is asked for."""
        self._base: list[Sequence[tuple[float, float]]] = [()] * self._regimes

    def _learned(self, regime: int) -> Sequence[tuple[float, float]]:
        """Return, by level, what was learned under this load and the weight of the prior."""
        n_all, pooled = len(self._all), self._all.quantiles or _NOTHING
        window = self._windows[regime]
        n, own = len(window), window.quantiles or _NOTHING
        row = []
        for level, prior_n in enumerate(_PRIOR_N):
            of_own = n / (n + prior_n)
            of_all = (1.0 - of_own) * n_all / (n_all + prior_n)
            learned = of_own * own[level] + of_all * pooled[level]
            row.append((self.location + learned + self._reach[level], 1.0 - of_own - of_all))
        self._base[regime] = row
        return row


def _step(value: float, by: float) -> float:
    return max(-_REACH, min(_REACH, value + by))
