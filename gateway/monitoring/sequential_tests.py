"""Sequential tests of certificates: do plans still answer as they did when they were certified? Pure.

Two anytime-valid tests, evaluated after every answer: of a plan's agreement with the largest variant, and of
the distribution of a variant's confidence. The null hypothesis of each is that rates are at least their floors.
The chance of a false alarm, at any time, is at most the configured one.

Every text counts once, however many questions are asked on it.

Legend: F floors, Q sizes of a shortfall, S independent streams.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from math import log1p, log10
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.catalog.schema import Agreement, Certificate, Confidence, Plan, Spread, Variant

Array = npt.NDArray[np.float64]

SHORTFALLS = (0.04, 0.08, 0.16, 0.32, 0.64)  # shares of a floor by which a rate may have fallen
SPENT_EARLY = 100.0  # observations in which the larger part of the reserve's first half is staked
HIGHEST_FLOOR = 0.999  # a rate that is said to be 1 would be refuted by a single miss
BETS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # of what is staked, on a difference
RESERVED = 0.5  # of the capital betted on differences, for later
MOST = 1e280
CONFIDENCE_TOLERANCE = 0.05  # a shift of fewer answers than this past an edge is no news
BLOCK = 50  # texts that the check of confidence takes at once
OPEN_FOR = 16  # comparisons of a plan, or answers of a variant, that a text is gathered over
MOST_TEXTS = 100_000  # that are remembered as counted, for each plan and variant


class BettingTest:
    """A test that rates are at least their floors, by betting against it.

    A gambler owns 1 in all, an equal part for each floor. While a rate p >= p0, its floor, a bet on a
    shortfall s multiplies what is staked by 1 - s at a hit and by 1 + s p0 / (1 - p0) at a miss: on average
    by at most 1. So the capital is a supermartingale, and the chance that it ever reaches 1/delta is at most
    delta. It grows fastest where the rate has become (1 - s) p0; no s is known, so all Q are betted on.
    Nor is it known when a rate falls: only R(n - 1) - R(n) of the reserve R(n) = 1 / (1 + log(1 + n/100)) is
    staked at the n-th observation, or long agreement would eat up what a late shift is to be found with.

    Sources: Ville 1939 (the bound); Waudby-Smith & Ramdas 2024, "Estimating means of bounded random
    variables by betting" (the bets); Robbins 1970 (mixtures); Shin, Ramdas & Rinaldo 2024, "E-detectors"
    (a bet that begins at every moment; the weights here sum to 1, for a bound that holds for ever).
    """

    def __init__(self, floors: npt.ArrayLike, streams: tuple[int, ...] = ()) -> None:
        """`streams`: of how many streams at once; none: of one, `capital` is a single number.

        floors: (F,), or (S, F) where each stream has its own.
        """
        at = np.clip(np.asarray(floors, dtype=float), 0.0, HIGHEST_FLOOR)[..., None]  # (..., F, 1)
        short = np.array(SHORTFALLS)
        self._hit = np.log1p(-short)  # (Q,)
        self._miss = np.log1p(short * at / (1 - at))  # (..., F, Q)
        self._n = np.zeros((*streams, *at.shape[:-1]))
        self._staked = np.zeros((*self._n.shape, len(short)))

    def add(self, hits: npt.ArrayLike, misses: npt.ArrayLike) -> None:
        """Take some observations at once; both (..., F), numbers of them."""
        hits, misses = np.asarray(hits, dtype=float), np.asarray(misses, dtype=float)
        reserve = _reserve(self._n)
        self._n = self._n + hits + misses
        stake = (reserve - _reserve(self._n)) / len(SHORTFALLS)
        won = np.exp(hits[..., None] * self._hit + misses[..., None] * self._miss)
        self._staked = np.minimum((self._staked + stake[..., None]) * won, MOST)

    @property
    def capital(self) -> Array:  # (...)
        """The capital of the gambler: the e-value, 1 at first."""
        owned: Array = self._staked.sum(axis=-1) + _reserve(self._n)
        return np.asarray(owned.mean(axis=-1))


class DifferenceTest:
    """A test that numbers in [-1, 1] are at most 0 on average, by betting against it.

    A bet of a share b of what is staked multiplies it by 1 + b x: on average by at most 1. No best b is known, so
    all are betted on; nor when the mean rises, so half is staked at once, and the rest bit by bit from the same
    reserve. Sources: as of BettingTest.
    """

    def __init__(self) -> None:
        self._n = 0
        self._staked = [(1 - RESERVED) / len(BETS)] * len(BETS)
        self._reserve = RESERVED

    def add(self, x: float) -> None:
        """Take the next number. In plain floats: it runs between requests, and six of them are no array."""
        before, self._n = self._reserve, self._n + 1
        self._reserve = RESERVED / (1.0 + log1p(self._n / SPENT_EARLY))
        stake = (before - self._reserve) / len(BETS)
        bets = zip(self._staked, BETS, strict=True)
        self._staked = [min((staked + stake) * (1.0 + bet * x), MOST) for staked, bet in bets]

    @property
    def capital(self) -> float:
        """The capital of the gambler: the e-value, 1 at first."""
        return sum(self._staked) + self._reserve


def _reserve(n: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.log1p(n / SPENT_EARLY)))


class Comparison(StrEnum):
    """How a plan's answer compares with the largest variant's."""

    SAME = "same"
    DIFFERENT = "different"
    ONE_SILENT = "one_silent"
    BOTH_SILENT = "both_silent"  # says nothing: two silences agree


def compare(ours: str, theirs: str) -> Comparison:
    """Compare the texts of two answers; empty: no answer."""
    if not ours and not theirs:
        return Comparison.BOTH_SILENT
    if not ours or not theirs:
        return Comparison.ONE_SILENT
    return Comparison.SAME if ours == theirs else Comparison.DIFFERENT


# Hits and misses of both rates (both answer; of those, the same text) in one comparison.
COUNTS: dict[Comparison, tuple[tuple[int, int], tuple[int, int]]] = {
    Comparison.SAME: ((1, 1), (0, 0)),
    Comparison.DIFFERENT: ((1, 0), (0, 1)),
    Comparison.ONE_SILENT: ((0, 0), (1, 0)),
    Comparison.BOTH_SILENT: ((0, 0), (0, 0)),
}


def agreement_floors(expected: Agreement, tolerance: float) -> list[float]:
    """Return the floors of both rates under the null hypothesis."""
    return [expected.both_answer_floor - tolerance, expected.same_answer_floor - tolerance]


def confidence_floors(expected: Confidence) -> list[list[float]]:
    """Return for each length the floors of the shares up to each edge, then of those above each."""
    return [share_floors(part) for part in expected.by_length or (expected,)]


def share_floors(part: Confidence | Spread) -> list[float]:
    """Return floors of the shares up to each edge, then of the shares above each."""
    low = [share - CONFIDENCE_TOLERANCE for share in part.low]
    return low + [1 - share - CONFIDENCE_TOLERANCE for share in part.high]


class Texts:
    """What was seen of each text, gathered until it counts: every text once, as one factor.

    Questions on one text are answered alike: as observations of their own, many on a text that happens to be
    hard would raise an alarm. So of a text the shares of hits and misses count (hits/n and misses/n), as one
    observation of the rate over texts. A text is gathered over the next OPEN_FOR observations of any text,
    which does not depend on what they show, and what comes of it later says nothing new. A geometric mean of
    factors is at most their mean, so the capital stays a supermartingale.
    """

    def __init__(self, most: int = MOST_TEXTS) -> None:
        """`most`: texts that are remembered as counted; the oldest is forgotten first."""
        self._most = most
        self._open: dict[bytes, tuple[int, Array]] = {}  # when it closes; hits and misses
        self._counted: dict[bytes, None] = {}  # in the order in which they were counted
        self._n = 0

    def add(
        self, text: bytes, hits: npt.ArrayLike, misses: npt.ArrayLike
    ) -> list[tuple[Array, Array]]:
        """Take an observation of a text; return the shares of hits and misses of each that now counts."""
        self._n += 1
        if text not in self._counted:
            closes, seen = self._open.get(text, (self._n + OPEN_FOR - 1, np.zeros(1)))
            self._open[text] = (closes, seen + np.array([hits, misses], dtype=float))
        due = [key for key, (closes, _) in self._open.items() if closes <= self._n]
        return [self._close(key) for key in due]

    def _close(self, text: bytes) -> tuple[Array, Array]:
        hits, misses = self._open.pop(text)[1]
        self._counted[text] = None
        if len(self._counted) > self._most:
            del self._counted[next(iter(self._counted))]
        n = np.maximum(1.0, hits + misses)
        return hits / n, misses / n


class Evidence(NamedTuple):
    """What is known of a plan's agreement."""

    broken: bool
    seen: Counter[Comparison]
    betting: BettingTest


class AgreementTest:
    """The test of one plan: both rates of its agreement are at least the certified ones, less a tolerance."""

    def __init__(self, expected: Agreement, delta: float, tolerance: float) -> None:
        self.expected = expected
        self.broken = False
        self.seen: Counter[Comparison] = Counter()
        self._betting = BettingTest(agreement_floors(expected, tolerance))
        self._texts = Texts()
        self._alarm = 1 / delta

    def add(self, text: bytes, found: Comparison) -> bool:
        """Take one comparison on a text; return whether the alarm rises with it. Once risen it stays."""
        self.seen[found] += 1
        if found is Comparison.BOTH_SILENT:
            return False
        for hits, misses in self._texts.add(text, *COUNTS[found]):
            self._betting.add(hits, misses)
        if self.broken or self._betting.capital < self._alarm:
            return False
        self.broken = True
        return True

    @property
    def evidence(self) -> Evidence:
        """What is known so far; texts are left out."""
        return Evidence(self.broken, Counter(self.seen), self._betting)

    def show(self, evidence: Evidence) -> None:
        """Show what another process found; nothing is to be added here."""
        self.broken, self.seen, self._betting = evidence

    @property
    def log10_e_value(self) -> float:
        """The e-value against the certificate, log10: 0 at first, the alarm rises at log10(1/delta)."""
        return log10(self._betting.capital)

    @property
    def log10_alarm(self) -> float:
        """Where the alarm rises."""
        return log10(self._alarm)


class ConfidenceTest:
    """The test of one variant: the distribution of its confidence is the certified one, within a tolerance.

    Each length is tested by itself: routing decides which lengths a variant gets, so their mix is no shift.
    """

    def __init__(self, expected: Confidence, delta: float) -> None:
        self.expected = expected
        self.shifted = False
        self._edges = np.array(expected.edges)
        self._longest = [part.max_tokens for part in expected.by_length]
        floors = np.array(confidence_floors(expected))  # (lengths, 2 edges)
        self._shape = floors.shape
        self._betting = BettingTest(floors.ravel())
        self._texts = Texts()
        self._waiting: list[tuple[Array, Array]] = []
        self._alarm = 1 / delta

    def add(self, text: bytes, confidence: float, n_tokens: int) -> bool:
        """Take the confidence of one answer on a text; return whether there is news: a block was judged."""
        under = np.array(confidence <= self._edges, dtype=float)
        hits, misses = np.zeros(self._shape), np.zeros(self._shape)
        row = min(bisect_left(self._longest, n_tokens), len(hits) - 1)
        hits[row], misses[row] = np.append(under, 1 - under), np.append(1 - under, under)
        self._waiting += self._texts.add(text, hits.ravel(), misses.ravel())
        if len(self._waiting) < BLOCK:
            return False
        self._betting.add(*np.sum(self._waiting, axis=0))
        self._waiting = []
        self.shifted = self.shifted or bool(self._betting.capital >= self._alarm)
        return True

    @property
    def log10_e_value(self) -> float:
        """The e-value against the null hypothesis, log10, after the last block."""
        return log10(self._betting.capital)


class Found(NamedTuple):
    """What all tests found so far."""

    agreement: dict[str, Evidence]  # by plan
    shifted: frozenset[str]  # variants


class SequentialTests:
    """The tests of every plan and variant since its certificate was published; they outlive switches.

    `delta` is the chance of any false alarm about a plan of one catalog, and of any about a variant.
    """

    def __init__(self, delta: float = 0.05, tolerance: float = 0.02) -> None:
        self.agreement: dict[
            str, AgreementTest
        ] = {}  # by plan; not of those that say nothing of it
        self.confidence: dict[str, ConfidenceTest] = {}  # by variant, likewise
        self.broken: frozenset[str] = frozenset()  # plans whose alarm has risen
        self._certificates: dict[str, Certificate] = {}
        self._delta = delta
        self._tolerance = tolerance

    def follow(self, plans: Sequence[Plan], variants: Sequence[Variant]) -> None:
        """Follow a new catalog: a plan or variant with a new certificate is tested from the beginning."""
        n_plans = sum(plan.agreement is not None for plan in plans)
        self.agreement = {
            plan.name: self._kept(plan) or self._test(plan.agreement, n_plans)
            for plan in plans
            if plan.agreement is not None
        }
        shapes = {v.name: v.confidence for v in variants if v.confidence is not None}
        self.confidence = {
            name: self._kept_shape(name, shape) or ConfidenceTest(shape, self._delta / len(shapes))
            for name, shape in shapes.items()
        }
        self._certificates = {plan.name: plan.certificate for plan in plans}
        self._note_broken()

    def compared(self, plan: str, text: bytes, found: Comparison) -> bool:
        """Take one comparison with the largest variant; return whether the plan's alarm rises with it."""
        test = self.agreement.get(plan)
        if test is None or not test.add(text, found):
            return False
        self._note_broken()
        return True

    @property
    def found(self) -> Found:
        """What is known of every plan and variant."""
        evidence = {name: test.evidence for name, test in self.agreement.items()}
        return Found(evidence, frozenset(n for n, t in self.confidence.items() if t.shifted))

    def show(self, found: Found) -> None:
        """Show what another process found, of what is tested here."""
        for name, evidence in found.agreement.items():
            if name in self.agreement:
                self.agreement[name].show(evidence)
        for name, test in self.confidence.items():
            test.shifted = name in found.shifted
        self._note_broken()

    def is_shifted(self, variant: str) -> bool:
        """Return whether the variant's confidence is known to be distributed differently."""
        test = self.confidence.get(variant)
        return test is not None and test.shifted

    def _note_broken(self) -> None:
        self.broken = frozenset(name for name, test in self.agreement.items() if test.broken)

    def _kept(self, plan: Plan) -> AgreementTest | None:
        test = self.agreement.get(plan.name)
        same = test is not None and test.expected == plan.agreement
        return test if same and self._certificates[plan.name] == plan.certificate else None

    def _kept_shape(self, variant: str, shape: Confidence) -> ConfidenceTest | None:
        test = self.confidence.get(variant)
        return test if test is not None and test.expected == shape else None

    def _test(self, expected: Agreement, n_plans: int) -> AgreementTest:
        return AgreementTest(expected, self._delta / n_plans, self._tolerance)
