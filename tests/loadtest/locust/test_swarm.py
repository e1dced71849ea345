"""Shapes, weights and the verdict of a Locust run."""

from __future__ import annotations

import random
from math import isnan

import pytest

from loadtest.locust import swarm
from loadtest.locust.swarm import BadWeights, Counted

GOOD = Counted(100, 5, f1=0.6, floor=0.54)
INACCURATE = Counted(100, 0, f1=0.5, floor=0.54)
SILENT = Counted(100, 100)


@pytest.mark.parametrize(
    ("shape", "users"),
    [
        ("steady", [100, 100, 100, 100]),
        ("ramp", [10, 55, 73, 100]),
        ("spike", [25, 100, 25, 25]),
        ("soak", [10, 100, 100, 100]),
    ],
)
def test_shapes(shape: str, users: list[int]) -> None:
    """At the beginning, in the middle, after it and at the end."""
    assert [swarm.users_at(shape, at, 100) for at in (0.0, 0.5, 0.7, 1.0)] == users
    assert swarm.users_at(shape, 0.0, 1) == 1


def test_gaps_have_the_rate_that_was_asked_for() -> None:
    """Open arrivals vary, constant ones don't; both have the same mean."""
    rng = random.Random(1)
    drawn = [swarm.gap_s("open", 4.0, rng) for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.25, rel=0.1)
    assert swarm.gap_s("constant", 4.0, rng) == 0.25


def test_weights_name_classes() -> None:
    """A class of the gateway's own settings may be among them."""
    assert swarm.weights("interactive=2, mine=0.5") == {"interactive": 2.0, "mine": 0.5}


@pytest.mark.parametrize("text", ["", "interactive", "a=-1", "a=nan", "a=inf", "=2", "a=0"])
def test_weights_that_cannot_be_are_refused(text: str) -> None:
    """With the form that would do."""
    with pytest.raises(BadWeights):
        swarm.weights(text)


def test_a_class_below_its_floor_attains_nothing() -> None:
    """Its answers were in time and wrong."""
    verdict = swarm.judge({"good": GOOD, "bad": INACCURATE}, 0.9, "", busy=False)
    assert verdict.attained == pytest.approx(0.475)
    assert (verdict.exit_code, verdict.reason) == (1, "attainment 0.4750 is below 0.9")


def test_a_good_run_is_good() -> None:
    """Late answers are counted against it, within what was asked."""
    assert swarm.judge({"good": GOOD}, 0.95, "", busy=False).exit_code == 0


@pytest.mark.parametrize(
    ("classes", "broken", "busy", "reason"),
    [
        ({"good": GOOD}, "refused", False, "the run broke and has no figures: refused"),
        ({}, "", False, "no request was sent"),
        ({"good": GOOD}, "", True, "not valid: Locust's own CPU was full"),
        ({"silent": SILENT}, "", False, "attainment 0.0000 is below 0.1"),
    ],
)
def test_a_run_that_says_nothing_fails(
    classes: dict[str, Counted], broken: str, busy: bool, reason: str
) -> None:
    """A figure of it would be a lie."""
    verdict = swarm.judge(classes, 0.1, broken, busy=busy)
    assert reason in verdict.reason
    assert verdict.exit_code == 1
    assert isnan(verdict.attained) == bool(broken or not classes)


def test_the_last_line_is_json_without_nan() -> None:
    """A class that got no answer has no F1."""
    summary = swarm.as_json({"silent": SILENT}, swarm.judge({"silent": SILENT}, 0, "", busy=False))
    assert summary["classes"]["silent"]["f1"] is None
    assert summary["attained"] == 0.0
