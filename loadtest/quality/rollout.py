"""When is a candidate catalog withdrawn or promoted? Simulated requests through the gateway's own tests.

Each request falls to the candidate with a fixed chance, and ends badly by the rates of the set that answers it. Where
load comes in waves, both sets meet the same waves; where callers with a key differ, each stays with one set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gateway.monitoring.rollout_tests import Chances, Rate, RolloutTests, Verdict

Rates = Mapping[Rate, tuple[float, float]]  # of bad outcomes: current, candidate
BASE: Rates = {Rate.SLO: (0.05, 0.05), Rate.ERRORS: (0.002, 0.002), Rate.DISAGREEMENT: (0.25, 0.25)}
BLOCK = 1_000  # requests drawn at a time
WAVE = 500  # requests of a wave of load, and as many without
CALLERS = 20


@dataclass(frozen=True, slots=True)
class Scenario:
    """What the two sets are like."""

    name: str
    rates: Rates
    waves: float = 0.0  # more broken SLOs of both, every other `WAVE` requests
    by_caller: float = 0.0  # how much callers differ in broken SLOs, each staying with one set


@dataclass(frozen=True, slots=True)
class Ended:
    """How one stream ended, and after how many requests of the candidate."""

    verdict: Verdict
    n_candidate: int


def _with(**changed: float) -> Rates:
    return {rate: (current, changed.get(rate.value, new)) for rate, (current, new) in BASE.items()}


SCENARIOS = (
    Scenario("equal", BASE),
    Scenario("equal, load in waves", BASE, waves=0.4),
    Scenario("better: half as many broken SLOs", _with(slo=0.025)),
    Scenario("every request fails", _with(errors=1.0, slo=1.0)),
    Scenario("3 % of the requests fail", _with(errors=0.03, slo=0.08)),
    Scenario("broken SLOs 25 % in place of 5 %", _with(slo=0.25)),
    Scenario("broken SLOs 10 % in place of 5 %", _with(slo=0.10)),
    Scenario("answers differ in 40 % in place of 25 %", _with(disagreement=0.40)),
    Scenario("answers differ in 30 % in place of 25 %", _with(disagreement=0.30)),
    Scenario(f"equal, {CALLERS} callers that differ, each with one set", BASE, by_caller=0.3),
)


def ended(
    scenario: Scenario, share: float, most: int, chances: Chances, seed: int, compared: float = 0.5
) -> Ended:
    """Return how one stream ends, at the latest after `most` requests of the candidate."""
    tests, n_candidate = RolloutTests(chances), 0
    for candidate, bad, is_compared in _requests(scenario, share, seed, compared):
        n_candidate += candidate
        for rate, each in zip(Rate, bad, strict=True):
            if rate is Rate.DISAGREEMENT and not is_compared:
                continue
            if tests.add(rate, candidate=candidate, bad=each):
                return Ended(tests.verdict, n_candidate)
        if n_candidate >= most:
            break
    return Ended(Verdict.OPEN, n_candidate)


def _requests(
    scenario: Scenario, share: float, seed: int, compared: float
) -> Iterator[tuple[bool, list[bool], bool]]:
    """Yield for ever: is it the candidate's, what is bad of it, is its answer compared."""
    rng = np.random.default_rng(seed)
    rates = np.array([scenario.rates[rate] for rate in Rate])  # (rates, sets)
    chosen = _choice(scenario, share, rng)
    fair = min(1.0, share / (1 - share)) if share < 1 else 1.0  # as many comparisons of both
    first = 0
    while True:
        candidate, extra = chosen(BLOCK)
        at = rates[:, candidate.astype(int)].T  # (BLOCK, rates)
        at[:, 0] += extra + scenario.waves * ((first + np.arange(BLOCK)) // WAVE % 2)
        bad = rng.random(at.shape) < at
        draws = rng.random(BLOCK) < compared * np.where(candidate, 1.0, fair)
        yield from zip(candidate.tolist(), bad.tolist(), draws.tolist(), strict=True)
        first += BLOCK


def _choice(
    scenario: Scenario, share: float, rng: np.random.Generator
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Return what draws the candidate's requests, and how much likelier their callers break an SLO."""
    if not scenario.by_caller:
        return lambda n: (rng.random(n) < share, np.zeros(n))
    mine = np.arange(CALLERS) < max(1, round(share * CALLERS))
    extra = scenario.by_caller * rng.random(CALLERS)

    def by_caller(n: int) -> tuple[np.ndarray, np.ndarray]:
        caller = rng.integers(0, CALLERS, n)
        return mine[caller], extra[caller]

    return by_caller
