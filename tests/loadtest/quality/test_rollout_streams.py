"""Many simulated streams at once end as the gateway's own tests end each of them."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.monitoring.rollout_tests import Chances, Rate, RolloutTests, Verdict
from loadtest.quality import rollout
from loadtest.quality.rollout import SCENARIOS, Ended, Scenario

CHANCES = Chances(promote_after=300, margin=0.1)
MOST = 600
SEEDS = range(6)


def ended_by_the_gateway(scenario: Scenario, seed: int) -> Ended:
    """Return how one stream ends: one outcome after the other through the gateway's class."""
    tests = RolloutTests(CHANCES)
    rates = rollout.outcomes(scenario, 0.2, MOST, seed, 0.5)
    for i in range(MOST):
        for rate, (n_current, bad_current, n_new, bad_new) in zip(
            Rate, rates[:, i].tolist(), strict=True
        ):
            for candidate, n, bad in ((False, n_current, bad_current), (True, n_new, bad_new)):
                if n and tests.add(rate, candidate=candidate, bad=bad, n=n):
                    return Ended(tests.verdict, i + 1)
    return Ended(Verdict.OPEN, MOST)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_they_end_alike(scenario: Scenario) -> None:
    """What the documentation says of false alarms is said of the gateway's tests."""
    together = rollout.ended(scenario, 0.2, MOST, CHANCES, SEEDS)
    assert together == [ended_by_the_gateway(scenario, seed) for seed in SEEDS]


def test_every_verdict_is_among_them() -> None:
    """Else the comparison above would hold for little."""
    found = {
        each.verdict for s in SCENARIOS for each in rollout.ended(s, 0.2, MOST, CHANCES, SEEDS)
    }
    assert found == set(Verdict)


def test_a_stream_does_not_depend_on_the_others() -> None:
    """Those that have ended are dropped in between."""
    alone = [rollout.ended(SCENARIOS[0], 0.2, MOST, CHANCES, [seed])[0] for seed in SEEDS]
    assert rollout.ended(SCENARIOS[0], 0.2, MOST, CHANCES, SEEDS) == alone
    assert np.unique([each.n_candidate for each in alone]).size > 1
