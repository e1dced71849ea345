"""Do certificates break where they should, and nowhere else? Recorded questions, through the gateway's tests. Pure.

Streams are drawn as a gateway sees requests: each question alike, from texts that are as large as recorded. Every
answer goes through the gateway's own `AgreementTest` and `ConfidenceTest`.

Legend: n questions, T samples of a stream, S streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from gateway.catalog.schema import Agreement, Host, Plan
from gateway.monitoring.sequential_tests import AgreementTest, Comparison, ConfidenceTest
from loadtest.quality.recording import COMPARED, RELATIONS, Relation, Series
from optimizer.certify import expected_agreement

FRESH_SHARE = (
    5  # a trial's stream is one cluster in so many; of the others its expectations are made
)
NEVER = -1  # in place of the sample at which an alarm rises
NOWHERE = Host("recorded", "", 1, "", "")


@dataclass(frozen=True, slots=True)
class Statistic:
    """What counts as the same answer: a comparison, as the gateway names them, for each relation."""

    name: str
    comparisons: Mapping[Relation, Comparison]

    def of(self, found: np.ndarray) -> list[Comparison]:  # (n,) -> (n,)
        """Return the comparisons of recorded relations."""
        each = [self.comparisons[relation] for relation in RELATIONS]
        return [each[i] for i in found.tolist()]

    def rates(self, found: np.ndarray) -> tuple[float, float]:  # (n,)
        """Return how often both answer, of the questions that either answers, and then alike."""
        some, both, same = self.masks(found)
        return both.sum() / max(1, some.sum()), same.sum() / max(1, both.sum())

    def masks(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # each (n,)
        """Return where either answers, where both do, and where they answer alike."""
        kinds = np.array(self.of(found), dtype=object)
        same = kinds == Comparison.SAME
        both = same | (kinds == Comparison.DIFFERENT)
        return both | (kinds == Comparison.ONE_SILENT), both, same

    def expected(
        self, clusters: np.ndarray, found: np.ndarray, delta: float
    ) -> Agreement | None:  # both (n,)
        """Return the agreement to expect, as certification bounds it; None: too little to watch."""
        some, both, same = self.masks(found)
        rates = expected_agreement.rates(clusters, some, both, same, delta)
        if rates is None:
            return None
        n_clusters = len(np.unique(clusters[some]))
        return Agreement("", n_clusters, int(some.sum()), *rates[0], *rates[1], NOWHERE)


EQUAL = Statistic(  # what gateways watch
    "equal texts",
    {relation: comparison for comparison, relation in COMPARED.items()}
    | {Relation.OVERLAPPING: Comparison.DIFFERENT},
)
OVERLAP = Statistic(
    "overlapping spans", {**EQUAL.comparisons, Relation.OVERLAPPING: Comparison.SAME}
)
STATISTICS = (EQUAL, OVERLAP)


@dataclass(frozen=True, slots=True)
class Stream:
    """Questions in the order in which they are asked."""

    rows: np.ndarray  # (T,) int, of a series
    texts: tuple[bytes, ...]  # (T,) keys


def streams_of(
    series: Series, samples: int, n: int, seed: int, burst: int = 1, *, same_texts: bool = False
) -> list[Stream]:
    """Return `n` streams of `samples` questions, each drawn alike; `burst` in a row are on one text.

    A text that is drawn again is another one like it, as of a service with more texts than were recorded;
    with `same_texts` it is the same, and tells the tests nothing new.
    """
    drawn = draw(series, samples, n, seed, burst)
    visits = np.arange(samples) // burst
    keys = [series.texts[rows] if same_texts else visits for rows in drawn.T]
    return [Stream(rows, _keys(key)) for rows, key in zip(drawn.T, keys, strict=True)]


def _keys(numbers: np.ndarray) -> tuple[bytes, ...]:
    return tuple(number.to_bytes(4) for number in numbers.tolist())


def draw(series: Series, samples: int, streams: int, seed: int, burst: int = 1) -> np.ndarray:
    """Return which questions are asked, (T, S): each alike; `burst` in a row are of one text."""
    rng = np.random.default_rng(seed)
    order = np.argsort(series.texts, kind="stable")
    counts = np.bincount(series.texts)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    chosen = rng.integers(0, len(order), (ceil(samples / burst), streams))
    text = np.repeat(series.texts[chosen], burst, axis=0)[:samples]
    within = (rng.random(text.shape) * counts[text]).astype(int)
    return np.asarray(order[first[text] + within])


def first_alarm(test: AgreementTest, texts: Sequence[bytes], found: Sequence[Comparison]) -> int:
    """Return at which sample of a stream the alarm rises, from 0; or NEVER."""
    pairs = enumerate(zip(texts, found, strict=True))
    return next((t for t, (text, each) in pairs if test.add(text, each)), NEVER)


def first_shift(test: ConfidenceTest, variant: str, series: Series, stream: Stream) -> int:
    """Return the same of the check of a variant's confidence."""
    confidence = series.confidence[variant][stream.rows].tolist()
    tokens = series.tokens[stream.rows].tolist()
    for t, (text, each, n_tokens) in enumerate(zip(stream.texts, confidence, tokens, strict=True)):
        if test.add(text, each, n_tokens) and test.shifted:
            return t
    return NEVER


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
    """Return when alarms rise in streams of clusters that expectations are not made of, and of another set.

    Each trial splits the clusters of `own` anew, and asks every question of a stream once, in random order.
    """
    alarms = np.full((2, len(plans), n), NEVER)
    for trial in range(n):
        rng = np.random.default_rng((seed, trial))
        known, fresh = _split(own.clusters, rng)
        asked = ((own, fresh), (other, rng.permutation(len(other.texts))))
        for i, plan in enumerate(plans):
            ours = own.of_plan(plan, reference)[known]
            expected = statistic.expected(own.clusters[known], ours, chances.expected)
            if expected is None:
                continue
            for found, (series, rows) in zip(alarms, asked, strict=True):
                test = AgreementTest(expected, chances.alarm, chances.tolerance)
                compared = statistic.of(series.of_plan(plan, reference)[rows])
                found[i, trial] = first_alarm(test, _keys(series.texts[rows]), compared)
    return alarms[0], alarms[1]


def _split(clusters: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the questions of four fifths of the clusters, and those of the fifth in random order."""
    n_clusters = int(clusters.max()) + 1
    fresh = np.isin(clusters, rng.permutation(n_clusters)[: n_clusters // FRESH_SHARE])
    return np.flatnonzero(~fresh), rng.permutation(np.flatnonzero(fresh))
