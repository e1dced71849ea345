"""When is a candidate catalog withdrawn or promoted? Simulated requests through the gateway's own tests. Pure.

Each request falls to the candidate with a fixed chance, and ends badly by the rates of the set that answers it. Where
load comes in waves, both sets meet the same waves; where callers with a key differ, each stays with one set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gateway.monitoring.rollout_tests import Chances, Rate, Verdict
from loadtest.quality.rollout_streams import Array, verdicts

Rates = Mapping[Rate, tuple[float, float]]  # of bad outcomes: current, candidate
BASE: Rates = {Rate.SLO: (0.05, 0.05), Rate.ERRORS: (0.002, 0.002), Rate.DISAGREEMENT: (0.25, 0.25)}
WAVE = 500  # requests of a wave of load, and as many without
CALLERS = 20
TOGETHER = 200  # streams at once: they take some 50 MB


@dataclass(frozen=True, slots=True)
class Scenario:
    """What the two sets are like."""

    name: str
    rates: Rates
    waves: float = 0.0  # more broken SLOs of both, every other `WAVE` requests
    by_caller: float = 0.0  # how much callers differ in broken SLOs, each staying with one set

    @property
    def counts_false_alarms(self) -> bool:
        """Whether the sets are equal and drawn as the tests assume."""
        return self.rates is BASE and not self.by_caller


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
    scenario: Scenario,
    share: float,
    most: int,
    chances: Chances,
    seeds: Sequence[int],
    compared: float = 0.5,
) -> list[Ended]:
    """Return how the stream of each seed ends, at the latest after `most` requests of the candidate."""
    found = []
    for first in range(0, len(seeds), TOGETHER):
        some = seeds[first : first + TOGETHER]
        streams = [outcomes(scenario, share, most, seed, compared) for seed in some]
        found += [Ended(*each) for each in verdicts(np.stack(streams), chances)]
    return found


def outcomes(scenario: Scenario, share: float, most: int, seed: int, compared: float) -> Array:
    """Return for each request of the candidate, with the current set's since the last, its outcomes by rate.

    (R, M, 4): how many and how many bad of the current set, then of the candidate.
    """
    rng = np.random.default_rng(seed)
    between = rng.geometric(share, most) - 1  # (M,) requests of the current set
    fair = min(1.0, share / (1 - share)) if share < 1 else 1.0  # as many comparisons of both
    in_wave = np.cumsum(between + 1) // WAVE % 2 * scenario.waves
    more = _more_of_callers(scenario, share, rng)
    rates = []
    for rate in Rate:
        extra = in_wave if rate is Rate.SLO else np.zeros(most)
        more_here = more if rate is Rate.SLO else (0.0, 0.0)
        p = [scenario.rates[rate][of] + extra + more_here[of] for of in (0, 1)]
        chance = (compared * fair, compared) if rate is Rate.DISAGREEMENT else (1.0, 1.0)
        n = [rng.binomial(between, chance[0]), rng.binomial(1, chance[1], most)]
        bad = [rng.binomial(n[of], np.clip(p[of], 0, 1)) for of in (0, 1)]
        rates.append(np.stack([n[0], bad[0], n[1], bad[1]], axis=1))
    return np.stack(rates).astype(np.int32)


def _more_of_callers(
    scenario: Scenario, share: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Return how much likelier the callers of each set break an SLO: who is the candidate's is drawn once."""
    extra = scenario.by_caller * rng.random(CALLERS)
    n_new = max(1, round(share * CALLERS))
    return float(extra[n_new:].mean()), float(extra[:n_new].mean())
