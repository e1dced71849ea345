"""Who is refused unread: as tables of waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.congestion import TURN_MS, Congestion, queue_ms, thrift
from gateway.domain import Option, Slo, SloPolicy, Trust
from tests.fakes import make_plan, make_variant

CHEAP, DEAR = 0.4, 0.7  # floors


def option(name: str, floor: float, ms: float) -> Option:
    return Option(make_plan(make_variant(name, ms), floor), Trust.CERTIFIED, 1, ms, ms, ms)


TYPICAL = [option("small", 0.5, 5.0), option("large", 0.7, 20.0)]


def slo(min_f1: float = CHEAP, policy: SloPolicy = SloPolicy.PREFER_LATENCY) -> Slo:
    return Slo(100.0, min_f1, policy, 400.0, "test", priority=0)


def crowded() -> Congestion:
    found = Congestion()
    for _ in range(100):
        found.note(TURN_MS)
    return found


@pytest.mark.parametrize(
    ("asked", "waited_ms", "refused"),
    [
        (slo(), TURN_MS, False),
        (slo(), TURN_MS + 1, True),
        (replace(slo(), priority=3), 0.8 * TURN_MS + 1, True),
        (replace(slo(), priority=7), 0.1 * TURN_MS + 1, True),
        (slo(DEAR), TURN_MS / 4, False),
        (slo(DEAR), TURN_MS / 4 + 1, True),
        (slo(0.99, SloPolicy.STRICT), 1.0, True),
        (slo(0.99), TURN_MS / 4, False),
    ],
)
def test_who_waits_too_long_in_a_crowd_is_refused(
    asked: Slo, waited_ms: float, refused: bool
) -> None:
    """Up to its urgency's wait, less where the plan it needs is dear; whatever its deadline."""
    assert crowded().refuses(asked, waited_ms, TYPICAL) is refused


def test_a_single_stall_refuses_nobody() -> None:
    """A pause of the process is no crowd: those who waited for it are answered."""
    congestion = Congestion()
    for _ in range(50):
        congestion.note(0.1)
    for _ in range(3):
        congestion.note(40.0)
        assert not congestion.refuses(slo(), 40.0, TYPICAL)


def test_a_crowd_is_forgotten_once_it_is_gone() -> None:
    """Short waits bring the usual one down."""
    congestion = crowded()
    for _ in range(100):
        congestion.note(0.1)
    assert not congestion.refuses(slo(), TURN_MS + 1, TYPICAL)
    assert crowded().lasts
    assert not congestion.lasts


def test_thrift_is_the_share_of_a_dear_answer_that_a_cheap_one_costs() -> None:
    """Four cheap answers in the place of one."""
    assert thrift(slo(CHEAP), TYPICAL) == 1.0
    assert thrift(slo(DEAR), TYPICAL) == 0.25
    assert thrift(slo(0.99), TYPICAL) == 0.25
    assert thrift(slo(0.99, SloPolicy.STRICT), TYPICAL) == 0.0


def test_a_queue_for_the_models_is_short_in_their_own_measure() -> None:
    """Half of the dearest answer: a host half as fast lets requests wait twice as long."""
    assert queue_ms(TYPICAL) == 10.0
    slower = [option("small", 0.5, 10.0), option("large", 0.7, 40.0)]
    assert queue_ms(slower) == 20.0
