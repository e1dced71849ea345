"""The contest: its search is not misled, it goes on where it was stopped, and a peer answers as we do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.catalog import store
from loadtest.drive.open_loop import Client, Run
from loadtest.drive.outcomes import Outcome
from loadtest.drive.schedule import Request
from loadtest.peers import contest, targets
from loadtest.peers.contest import EQUAL, SEARCH, Block, ContestError, Ledger, Terms
from loadtest.peers.rates import RESOLUTION, RateSearch
from loadtest.peers.targets import PEERS, PeerError, PeerLoadClient
from loadtest.quality import agreement
from loadtest.sample import questions
from tests.loadtest import driving

REPOSITORY = Path(__file__).parents[3] / "model_repository"
TERMS = Terms(100.0, 5.0, (10.0,), 2, ("fast", "slow"))
LIMITS = {"fast": 60.0, "slow": 22.0}


def searched(holds: Callable[[float], bool]) -> tuple[RateSearch, int]:
    search, tries = RateSearch(15.0), 0
    while (rate := search.next_rate()) is not None:
        search.note(rate, held=holds(rate))
        tries += 1
    return search, tries


@pytest.mark.parametrize("limit", [1.2, 14.0, 15.0, 47.3, 900.0])
def test_the_search_ends_just_below_the_limit(limit: float) -> None:
    """Wherever it began, and within few tries."""
    search, tries = searched(lambda rate: rate <= limit)
    assert search.best <= limit <= search.best * (1 + RESOLUTION) * 1.01
    assert tries <= 40


def test_one_bad_block_does_not_decide() -> None:
    """A noisy host violates an SLO now and then; two of a kind are believed."""
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= 47.3 and tried.count(rate) != 1

    search, _ = searched(holds)
    assert search.best == pytest.approx(47.3, rel=RESOLUTION)


def test_what_holds_at_no_rate_has_none() -> None:
    """The search gives up at one request a second."""
    assert searched(lambda _: False)[0].best == 0.0


def block(target: str, phase: str, rate: float, seed: int) -> Block:
    held = rate <= LIMITS[target]
    return Block(target, phase, rate, 50, 20.0 + seed, 80.0 if held else None, 1.0, 0.6, 0.5)


def played(folder: Path, budget: int = 1_000) -> tuple[Ledger, list[tuple[str, str, float]]]:
    """Play on in a folder; after `budget` blocks it is killed."""
    blocks: list[tuple[str, str, float]] = []

    def measure(target: str, phase: str, rate: float, seed: int) -> Block:
        if len(blocks) == budget:
            raise KeyboardInterrupt
        blocks.append((target, phase, rate))
        return block(target, phase, rate, seed)

    ledger = Ledger(folder, TERMS)
    try:
        contest.play(TERMS, ledger, measure, lambda _: None)
    except KeyboardInterrupt:
        assert len(blocks) == budget
    return ledger, blocks


def test_everybody_is_measured_in_turns(tmp_path: Path) -> None:
    """A host that gets slower must not get slower for one of them."""
    ledger, blocks = played(tmp_path)
    both = [target for target, phase, _ in blocks if phase == SEARCH][:8]
    assert both == ["fast", "slow"] * 4
    equal = [(target, rate) for target, phase, rate in blocks if phase == EQUAL]
    assert equal == [("fast", 10.0), ("slow", 10.0)] * 2
    first, second = contest.rows(TERMS, ledger)
    assert (first.target, second.target) == ("fast", "slow")
    assert first.rate == pytest.approx(60.0, rel=RESOLUTION)
    assert first.equal == {"10": [1020.5, 80.0, 0.6]}


def test_a_contest_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Nothing that was measured is measured again, and the end is the same."""
    _, whole = played(tmp_path / "whole")
    _, before = played(tmp_path / "killed", budget=9)
    with (tmp_path / "killed" / contest.BLOCKS).open("a") as file:
        file.write('{"target": "fa')  # killed while it wrote
    ledger, after = played(tmp_path / "killed")
    assert before + after == whole
    assert contest.rows(TERMS, ledger) == contest.rows(TERMS, Ledger(tmp_path / "whole", TERMS))


def test_blocks_on_other_terms_are_not_mixed(tmp_path: Path) -> None:
    """Half a table at 100 ms and half at 50 would be no comparison."""
    played(tmp_path, budget=2)
    other = Terms(50.0, 5.0, (10.0,), 2, ("fast", "slow"))
    with pytest.raises(ContestError, match="other terms; give another --folder"):
        Ledger(tmp_path, other)


async def test_a_request_without_an_answer_is_later_than_any() -> None:
    """A server that drops what it cannot do in time has not kept its p99."""
    requested = driving.slo(100.0)
    results = [driving.result(float(i), 20.0, requested) for i in range(97)]
    results += [driving.result(97.0 + i, 5.0, requested, outcome=Outcome.SHED) for i in range(3)]
    client = Client(0.1, 0.2, 0.3, 0.1)
    run = Run("http://test", tuple(results), client)
    found = contest.block_of("fast", SEARCH, 10.0, run)
    assert (found.p50_ms, found.p99_ms, found.answered) == (20.0, None, 0.97)
    assert not found.held(100.0)


def test_a_peer_answers_as_the_offline_evaluation_does() -> None:
    """Same model, same encoding, same decoding: only the server differs."""
    catalog, examples = store.read(REPOSITORY), questions(None, 8)
    name = min(catalog.variants, key=lambda v: v.size_bytes).name
    wanted = [known.answer for known in agreement.offline(REPOSITORY, catalog, name, examples)]
    (peer,) = (p for p in PEERS if p.name == "FastAPI + ONNX Runtime")
    with targets.running(peer, sys.executable, 1, REPOSITORY, name) as target:
        planned = [
            Request(i, 5.0 * i, driving.slo(), example) for i, example in enumerate(examples)
        ]

        async def ask() -> list[str]:
            async with PeerLoadClient(target.url) as load_client:
                return [r.reply.answer for r in (await contest.ask(load_client, planned)).results]

        assert asyncio.run(ask()) == wanted


def test_a_peer_that_does_not_start_says_why() -> None:
    """Its log is gone with it; the end of it is in the message."""
    (peer,) = (p for p in PEERS if p.name == "FastAPI + ONNX Runtime")
    with (
        pytest.raises(PeerError, match="did not get ready; the end of its log"),
        targets.running(peer, "/bin/false", 1, REPOSITORY, "none"),
    ):
        pytest.fail("/bin/false got ready")
