"""A candidate that is no worse is hardly ever called worse, and one that is worse soon is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from gateway.monitoring.rollout_tests import Chances, Rate, RateTest, RolloutTests, Verdict
from gateway.monitoring.sequential_tests import DifferenceTest

CHANCES = Chances()
EQUAL = {Rate.SLO: (0.1, 0.1), Rate.ERRORS: (0.01, 0.01), Rate.DISAGREEMENT: (0.25, 0.25)}


def tried(
    rates: Mapping[Rate, tuple[float, float]], seed: int, n: int, chances: Chances = CHANCES
) -> tuple[Verdict, int]:
    """Return the verdict on a stream of n requests, a fifth the candidate's, and after how many of its requests.

    `rates`: of bad outcomes, current and candidate.
    """
    rng = np.random.default_rng(seed)
    tests, n_candidate = RolloutTests(chances), 0
    drawn = rng.random((n, len(Rate)))
    for candidate, row in zip((rng.random(n) < 0.2).tolist(), drawn.tolist(), strict=True):
        n_candidate += candidate
        for rate, at in zip(Rate, row, strict=True):
            if tests.add(rate, candidate=candidate, bad=at < rates[rate][candidate]):
                return tests.verdict, n_candidate
    return tests.verdict, n_candidate


def test_an_equal_mean_hardly_ever_reaches_the_alarm() -> None:
    """Looked at after every one of 300 numbers, in 400 streams: at most the stated 5 %, and noise."""
    rng, n_alarms = np.random.default_rng(1), 0
    for _ in range(400):
        test, candidate = DifferenceTest(), rng.random((2, 300)) < 0.2
        for x in (candidate[0].astype(float) - candidate[1]).tolist():
            test.add(x)
            if test.capital >= 20:
                n_alarms += 1
                break
    assert n_alarms / 400 <= 0.05 + 0.033  # 3 standard deviations of 400 draws


def test_a_mean_above_zero_is_found() -> None:
    """A test that never rises would pass the one above."""
    rng = np.random.default_rng(2)
    test = DifferenceTest()
    for _ in range(400):
        test.add(float(rng.random() < 0.4) - float(rng.random() < 0.2))
    assert test.capital >= 20


def test_a_pair_is_made_of_what_came_since_the_last() -> None:
    """Outcomes at different times are not compared: load and questions change."""
    test = RateTest(0.0, 0.05)
    assert not test.add(candidate=False, bad=True)
    assert not test.add(candidate=False, bad=False)
    assert test.add(candidate=True, bad=True)
    assert not test.add(candidate=True, bad=True)
    assert (test.current.n, test.candidate.n) == (2, 2)


@pytest.mark.parametrize(
    ("worse", "within"),
    [
        ({Rate.ERRORS: (0.01, 1.0)}, 20),
        ({Rate.SLO: (0.1, 0.5)}, 80),
        ({Rate.DISAGREEMENT: (0.25, 0.6)}, 100),
    ],
)
def test_a_worse_candidate_is_found_soon(
    worse: dict[Rate, tuple[float, float]], within: int
) -> None:
    """By each of the three rates; `within`: requests of the candidate, in the slowest of 20 streams."""
    found = [tried(EQUAL | worse, seed, 2_000) for seed in range(20)]
    assert {verdict for verdict, _ in found} == {Verdict.WORSE}
    assert max(n for _, n in found) <= within


def test_an_equal_candidate_is_shown_to_be_no_worse() -> None:
    """Promotion by rule needs no one to look; before the asked number of requests nothing is shown."""
    chances = replace(CHANCES, margin=0.2, promote_after=150)
    verdicts = [tried(EQUAL, seed, 6_000, chances) for seed in range(8)]
    assert [v for v, _ in verdicts].count(Verdict.NO_WORSE) >= 7
    assert min(n for v, n in verdicts if v is Verdict.NO_WORSE) >= 150


def test_without_a_number_nothing_is_promoted() -> None:
    """Then it is a person who decides."""
    verdict, _ = tried(EQUAL, 3, 4_000, replace(CHANCES, margin=0.5))
    assert verdict is Verdict.OPEN


def test_one_worse_by_the_margin_is_not_shown_to_be_no_worse() -> None:
    """The null hypothesis of promotion, where an error would put a worse catalog in charge."""
    at_margin = EQUAL | {Rate.SLO: (0.1, 0.15)}
    chances = replace(
        CHANCES, delta=0.01, promote_after=1
    )  # withdrawal is slower: promotion could win
    found = [tried(at_margin, seed, 1_500, chances)[0] for seed in range(8)]
    assert Verdict.NO_WORSE not in found


def test_the_reason_tells_the_numbers() -> None:
    """Somebody has to explain it the next morning."""
    tests = RolloutTests(CHANCES)
    while tests.verdict is Verdict.OPEN:
        tests.add(Rate.ERRORS, candidate=False, bad=False)
        tests.add(Rate.ERRORS, candidate=True, bad=True)
    n = tests.rates[Rate.ERRORS].candidate.n
    assert tests.reason == f"errors {n} of {n}, current 0 of {n}"
    assert not tests.add(Rate.ERRORS, candidate=False, bad=True)  # it stays
