"""Sequential tests of a candidate set beside the current one: is it worse, or shown to be no worse? Pure.

Three rates of requests are compared: of those that broke their SLO, of those that failed, and of answers that differ
from the largest current variant's. Which set answers a request is drawn by a hash, so the rates differ only where
the sets do. Both tests of a rate are anytime-valid: they may be looked at after every request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import log10

from gateway.monitoring.sequential_tests import DifferenceTest

ERRORS_SHARE = 0.2  # failures may be more by this share of the margin only


class Rate(StrEnum):
    """What is compared; the lower the better."""

    SLO = "slo"  # requests that broke their SLO
    ERRORS = "errors"  # requests that failed
    DISAGREEMENT = "disagreement"  # answers unlike the largest current variant's


class Verdict(StrEnum):
    """What the tests have shown; once shown it stays."""

    OPEN = "open"
    WORSE = "worse"
    NO_WORSE = "no_worse"


@dataclass(frozen=True, slots=True)
class Chances:
    """What the tests are held to."""

    delta: float = (
        0.05  # of ever calling a candidate worse that is not; and of calling one no worse that is
    )
    margin: float = 0.05  # by which a rate may be higher and still be "no worse"
    tolerance: float = 0.02  # by which disagreement may be higher before it counts against it
    promote_after: int | None = None  # requests of the candidate; None: nothing is ever shown


@dataclass(slots=True)
class Seen:
    """Outcomes of one set."""

    n: int = 0
    bad: int = 0

    @property
    def rate(self) -> float | None:
        return self.bad / self.n if self.n else None


class RateTest:
    """One rate of both sets, compared in pairs of adjacent outcomes.

    A pair is made when both sets have an outcome since the last one: the difference of their means, candidate less
    current. What is special about a time, load or a hard text, then meets both sides of a pair.
    """

    def __init__(self, tolerance: float, margin: float) -> None:
        self.current, self.candidate = Seen(), Seen()
        self._tolerance, self._margin = tolerance, margin
        self._open = (Seen(), Seen())
        self._worse, self._no_worse = DifferenceTest(), DifferenceTest()

    def add(self, *, candidate: bool, bad: int, n: int = 1) -> bool:
        """Take n outcomes, so many of them bad; return whether they made a pair."""
        for seen in (self.candidate if candidate else self.current, self._open[candidate]):
            seen.n += n
            seen.bad += bad
        current, new = (seen.rate for seen in self._open)
        if current is None or new is None:
            return False
        self._open = (Seen(), Seen())
        self._worse.add((new - current - self._tolerance) / (1 + self._tolerance))  # at least -1
        self._no_worse.add(self._margin - (new - current))
        return True

    @property
    def worse(self) -> float:
        """The e-value that the candidate's rate is higher."""
        return self._worse.capital

    @property
    def no_worse(self) -> float:
        """The e-value that it is not higher by the margin."""
        return self._no_worse.capital


@dataclass(slots=True)
class RolloutTests:
    """All rates of a candidate, and what they show."""

    chances: Chances
    compares: bool = True  # are answers compared? Else promotion does not wait for that
    verdict: Verdict = Verdict.OPEN
    reason: str = ""
    rates: dict[Rate, RateTest] = field(init=False)

    def __post_init__(self) -> None:
        margin, tolerance = self.chances.margin, self.chances.tolerance
        self.rates = {
            Rate.SLO: RateTest(0.0, margin),
            Rate.ERRORS: RateTest(0.0, margin * ERRORS_SHARE),
            Rate.DISAGREEMENT: RateTest(tolerance, margin),
        }

    def show(self, verdict: Verdict) -> None:
        """Show what another process found, which tests for this one."""
        self.verdict = verdict

    @property
    def alarm(self) -> float:
        """The e-value at which one rate shows the candidate to be worse: delta is shared by all."""
        return len(self.rates) / self.chances.delta

    @property
    def shown(self) -> float:
        """The e-value at which a rate is shown to be no worse: all must be, so each may spend delta."""
        return 1 / self.chances.delta

    def add(self, rate: Rate, *, candidate: bool, bad: int, n: int = 1) -> bool:
        """Take n outcomes, so many of them bad; return whether the verdict falls with them."""
        paired = self.rates[rate].add(candidate=candidate, bad=bad, n=n)
        if not paired or self.verdict is not Verdict.OPEN:
            return False
        if self.rates[rate].worse >= self.alarm:
            self.verdict, self.reason = Verdict.WORSE, self._counts(rate)
        elif self._all_shown():
            counts = ", ".join(self._counts(each) for each in self._needed())
            self.verdict, self.reason = Verdict.NO_WORSE, counts
        return self.verdict is not Verdict.OPEN

    def evidence_of(self, rate: Rate) -> tuple[float, float]:
        """Return log10 of both e-values of a rate: worse, no worse."""
        return log10(self.rates[rate].worse), log10(self.rates[rate].no_worse)

    def _all_shown(self) -> bool:
        least = self.chances.promote_after
        if least is None or self.rates[Rate.SLO].candidate.n < least:
            return False
        return all(self.rates[each].no_worse >= self.shown for each in self._needed())

    def _needed(self) -> list[Rate]:
        return [each for each in Rate if self.compares or each is not Rate.DISAGREEMENT]

    def _counts(self, rate: Rate) -> str:
        new, old = self.rates[rate].candidate, self.rates[rate].current
        return f"{rate.value} {new.bad} of {new.n}, current {old.bad} of {old.n}"
