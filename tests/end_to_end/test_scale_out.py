"""Two of each behind a balancer: one dies and comes back, models change, gateways restart, and callers hardly notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from loadtest.faults import phases
from loadtest.faults.command import joint_slo
from loadtest.faults.phases import RECOVERY_S, Episode
from loadtest.faults.play import Play, playing
from loadtest.sample import questions
from tests.end_to_end.conftest import REPOSITORY

pytestmark = pytest.mark.end_to_end

RATE = 12.0  # requests/s: what two busy cores can answer while models are loaded beside
CALM_S = 1.0
# Shared cores stall for seconds now and then; then the same is tried once more before it counts.
TRIES = 3


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """A fleet under load, whose SLO a busy machine can meet: what violates it is what the test does."""
    slo = joint_slo(latency_ms=2_500.0, min_f1=0.3)
    examples = questions(None, 40)
    with playing(
        tmp_path_factory.mktemp("fleet"), REPOSITORY, examples, slo, RATE, CALM_S
    ) as running:
        yield running


def tried(*events: Callable[[], Episode]) -> list[Episode]:
    """Let it happen until all recovered in time, at most TRIES times; show and return the last.

    What was lost or refused counts in every try.
    """
    found: list[Episode] = []
    for _ in range(TRIES):
        found = [event() for event in events]
        print(phases.markdown(found))
        if all(episode.recovered_s <= RECOVERY_S for episode in found):
            break
        assert complaints([replace(e, recovered_s=0.0) for e in found]) == []
    return found


def complaints(episodes: list[Episode]) -> list[str]:
    return [f"{e.complaint()}: {e.failures}" for e in episodes if e.complaint()]


def test_a_killed_gateway_loses_only_what_it_had_in_flight(play: Play) -> None:
    """The balancer takes the other, over HTTP and gRPC; the one that comes back is taken again."""
    killed, back = tried(lambda: play.kill_gateway(0), lambda: play.bring_gateway_back(0))
    assert complaints([killed, back]) == []
    assert killed.in_flight is not None
    assert killed.lost <= killed.in_flight.anywhere


def test_a_killed_triton_loses_nothing(play: Play) -> None:
    """What it had is asked of the other, and it is used again when it is back."""
    assert complaints(tried(lambda: play.kill_triton(0), lambda: play.bring_triton_back(0))) == []


def test_a_new_catalog_is_taken_over_without_a_failed_request(play: Play) -> None:
    """Both gateways switch to it, while they answer; one that is refused has failed."""
    assert complaints(tried(lambda: play.publish(3))) == []


def test_gateways_restart_one_after_the_other_without_a_failed_request(play: Play) -> None:
    """Each says that it stops, and answers until nobody asks it any more."""
    assert complaints(tried(play.restart_gateways)) == []
