"""Do certificates break where they should, and nowhere else? Recorded questions, through the gateway's tests. Pure.

Streams are drawn as a gateway sees requests: each question alike, from contexts that are as many and as large
as recorded. Then a sample says nothing of the next, which the tests assume; where a context is asked for
many times in a row it does, and bursts show what that does to them.

Legend: n questions, T samples of a stream, S streams, F rates that are tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from gateway.catalog.schema import Agreement, Confidence, Plan
from gateway.monitoring.sequential_tests import BLOCK, BettingTest, agreement_floors, share_floors
from loadtest.quality.recording import RELATIONS, SILENT, Relation, Series
from optimizer.certify import expected_agreement

FRESH_SHARE = (
    5  # a trial's stream is one context in so many; of the others its expectations are made
)


@dataclass(frozen=True, slots=True)
class Statistic:
    """What is counted of a comparison."""

    name: str
    hits: np.ndarray  # (relations, F) 0 or 1
    misses: np.ndarray  # (relations, F)

    def rates(self, found: np.ndarray) -> list[float]:
        """Return the rates that are tested, of all questions; found: (n,)."""
        hits, misses = self.hits[found].sum(axis=0), self.misses[found].sum(axis=0)
        return list((hits / np.maximum(1, hits + misses)).tolist())

    def floors(self, contexts: np.ndarray, found: np.ndarray, delta: float) -> list[float]:
        """Return a floor under each rate; contexts, found: (n,). None counted: 0, which nothing breaks."""
        floors = []
        for hits, misses in zip(self.hits[found].T, self.misses[found].T, strict=True):
            among, hit = (hits + misses) > 0, hits > 0
            each = delta / self.hits.shape[1]
            floors.append(
                expected_agreement.rate(contexts, among, hit, each)[1] if among.any() else 0.0
            )
        return floors


def _statistic(name: str, alike: Sequence[Relation], *, two_rates: bool) -> Statistic:
    same = np.array([r in alike for r in RELATIONS], dtype=float)
    one = np.array([r is Relation.ONE_SILENT for r in RELATIONS], dtype=float)
    both = 1 - one - np.array([r is Relation.BOTH_SILENT for r in RELATIONS], dtype=float)
    if two_rates:
        return Statistic(name, np.stack([both, same], 1), np.stack([one, both - same], 1))
    return Statistic(name, same[:, None], (one + both - same)[:, None])


_EQUAL, _OVERLAP = (Relation.SAME,), (Relation.SAME, Relation.OVERLAPPING)
WATCHED = _statistic("equal, two rates", _EQUAL, two_rates=True)  # what gateways watch
STATISTICS = (
    WATCHED,
    _statistic("equal, one rate", _EQUAL, two_rates=False),
    _statistic("overlap, two rates", _OVERLAP, two_rates=True),
    _statistic("overlap, one rate", _OVERLAP, two_rates=False),
)


def draw(series: Series, samples: int, streams: int, seed: int, burst: int = 1) -> np.ndarray:
    """Return which questions are asked, (T, S): each alike; `burst` in a row are of one context."""
    rng = np.random.default_rng(seed)
    order = np.argsort(series.contexts, kind="stable")
    counts = np.bincount(series.contexts)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    chosen = rng.integers(0, len(order), (ceil(samples / burst), streams))
    context = np.repeat(series.contexts[chosen], burst, axis=0)[:samples]
    within = (rng.random(context.shape) * counts[context]).astype(int)
    return np.asarray(order[first[context] + within])


def first_alarms(
    expected: Agreement, compared: np.ndarray, delta: float, tolerance: float
) -> np.ndarray:  # compared: (T, S) -> (S,)
    """Return at which sample of each stream the alarm rises; -1: never."""
    floors = np.array(agreement_floors(expected, tolerance))
    return _alarms(WATCHED, floors, compared, delta)


def first_shifts(expected: Confidence, confidence: np.ndarray, delta: float) -> np.ndarray:
    """Return the same of the check of confidence; confidence: (T, S) -> (S,)."""
    under = confidence[..., None] <= np.array(expected.edges)  # (T, S, K)
    blocks = under[: len(under) // BLOCK * BLOCK].reshape(-1, BLOCK, *under.shape[1:]).sum(axis=1)
    hits = np.concatenate([blocks, BLOCK - blocks], axis=-1)  # (T / BLOCK, S, F)
    bets = BettingTest(share_floors(expected), (confidence.shape[1],))
    found = _rises(bets, hits, BLOCK - hits, delta)
    return np.where(found < 0, -1, (found + 1) * BLOCK - 1)


def _alarms(
    statistic: Statistic, floors: np.ndarray, compared: np.ndarray, delta: float
) -> np.ndarray:  # floors: (F,) or (S, F); compared: (T, S) -> (S,)
    streams = () if floors.ndim > 1 else (compared.shape[1],)
    bets = BettingTest(floors, streams)
    return _rises(bets, statistic.hits[compared], statistic.misses[compared], delta)


def _rises(bets: BettingTest, hits: np.ndarray, misses: np.ndarray, delta: float) -> np.ndarray:
    """Return when 1/delta is reached; hits, misses: (T, S, F) -> (S,)."""
    found = np.full(hits.shape[1], -1)
    for t in range(len(hits)):
        bets.add(hits[t], misses[t])
        found[(found < 0) & (bets.capital >= 1 / delta)] = t
    return found


@dataclass(frozen=True, slots=True)
class Chances:
    """Chances of error for one plan: of what is expected of it, and of an alarm; and what is tolerated."""

    expected: float
    alarm: float
    tolerance: float


def trials(
    own: Series,
    other: Series,
    plans: Sequence[Plan],
    reference: str,
    statistic: Statistic,
    chances: Chances,
    n: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:  # each (plans, n)
    """Return when alarms rise in streams of contexts that expectations are not made of, and of another set.

    Each trial splits the contexts of `own` anew, and asks every question of a stream once, in random order.
    """
    splits = [_split(own.contexts, np.random.default_rng((seed, i))) for i in range(n)]
    streams = _padded([fresh for _, fresh in splits])
    rng = np.random.default_rng(seed)
    others = np.stack([rng.permutation(len(other.contexts)) for _ in range(n)], axis=1)
    own_alarms: list[np.ndarray] = []
    other_alarms: list[np.ndarray] = []
    for plan in plans:
        ours, theirs = (s.of_plan(plan, reference) for s in (own, other))
        floors = np.array(
            [statistic.floors(own.contexts[k], ours[k], chances.expected) for k, _ in splits]
        )
        asked = np.where(streams < 0, SILENT, ours[streams])
        for alarms, stream in ((own_alarms, asked), (other_alarms, theirs[others])):
            below = floors - chances.tolerance
            alarms.append(_alarms(statistic, below, stream, chances.alarm))
    return np.stack(own_alarms), np.stack(other_alarms)


def _split(contexts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the questions of four fifths of the contexts, and those of the fifth in random order."""
    n_contexts = int(contexts.max()) + 1
    fresh = np.isin(contexts, rng.permutation(n_contexts)[: n_contexts // FRESH_SHARE])
    return np.flatnonzero(~fresh), rng.permutation(np.flatnonzero(fresh))


def _padded(streams: Sequence[np.ndarray]) -> np.ndarray:  # -> (T, S), -1 where a stream is over
    found = np.full((max(map(len, streams)), len(streams)), -1)
    for i, stream in enumerate(streams):
        found[: len(stream), i] = stream
    return found
