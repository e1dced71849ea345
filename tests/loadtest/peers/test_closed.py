"""Callers in a closed loop: what they send, what they wait for, and what is made of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from gateway.domain import Slo, SloPolicy
from loadtest.cli import _parser
from loadtest.drive.closed_loop import Found, Loop, play
from loadtest.drive.open_loop import Client, Run
from loadtest.drive.outcomes import Outcome, Reply, Result
from loadtest.drive.schedule import Request
from loadtest.peers.closed_command import CHARS, NothingToAsk, lengthened, medians, of_beside
from loadtest.sample import questions

SLO = Slo(250.0, 0.5, SloPolicy.PREFER_LATENCY, 1_000.0, "standard")
PATIENT = Slo(60_000.0, 0.5, SloPolicy.PREFER_LATENCY, 60_000.0, "standard")


class Counting:
    """A server that answers when the loop turns, and knows how many ask at once; some are refused."""

    where = "here"

    def __init__(self, refuse_every: int = 0, retry_after_s: float = 0.0) -> None:
        self.asked = self.at_once = self.most_at_once = 0
        self._refuse_every = refuse_every
        self._retry_after_s = retry_after_s

    async def ask(self, request: Request) -> Reply:
        self.asked += 1
        refused = self._refuse_every and self.asked % self._refuse_every == 0
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if refused:
            return Reply(Outcome.SHED, "429: busy", retry_after_s=self._retry_after_s)
        return Reply(Outcome.ANSWERED, answer=request.example.answers[0], met="true")

    async def probe(self) -> None:
        return

    async def ready(self) -> None:
        return

    async def close(self) -> None:
        return


def requests() -> Iterator[Request]:
    example = next(e for e in questions(None, 50) if e.answers)
    return (Request(i, 0.0, PATIENT, example) for i in itertools.count())


async def test_as_many_ask_at_once_as_there_are_callers() -> None:
    """Each sends its next request when it has what became of the last."""
    load_client = Counting()
    found = await play(load_client, requests(), Loop(5, 0.05))
    assert load_client.most_at_once == 5
    assert found.sent == load_client.asked
    assert (found.answered, found.in_time, found.f1, found.met) == (1.0, 1.0, 1.0, 1.0)


async def test_who_is_refused_comes_back_at_once_unless_it_honours_retry_after() -> None:
    """Both kinds of clients are out there."""
    hasty, polite = Counting(refuse_every=2, retry_after_s=60.0), Counting(1, retry_after_s=0.2)
    found = await play(hasty, requests(), Loop(1, 0.05))
    assert found.answered == pytest.approx(0.5, abs=0.01)
    await play(polite, requests(), Loop(1, 0.1, honour=True))
    assert polite.asked == 1


async def test_nobody_asks_where_there_are_no_callers() -> None:
    """What requests beside the loop get without it is the number to compare with."""
    load_client = Counting()
    found = await play(load_client, requests(), Loop(0, 60.0))
    assert (found.sent, load_client.asked, found.answered) == (0, 0, 0.0)


def test_long_contexts_hold_the_same_answers() -> None:
    """Offsets and answers of a question stay where they were."""
    examples = questions(None, 20)
    for short, long in zip(examples, lengthened(examples, CHARS["long"]), strict=True):
        assert long.context.startswith(short.context)
        assert len(long.context) >= CHARS["long"]


def test_short_contexts_stay_as_they_are() -> None:
    """What is measured is the sample, not a variant of it."""
    examples = questions(None, 5)
    assert lengthened(examples, CHARS["short"]) == examples


def test_medians_are_taken_over_the_repeats() -> None:
    """One stalled run must not decide."""
    run = Found(100, 1.0, 50.0, 1.0, 0.6, 1.0, 100.0).as_json()
    runs = [run, run | {"answered_per_s": 1.0, "answered": 0.1}, run]
    assert medians(runs)["answered_per_s"] == 50.0


def test_requests_beside_the_loop_count_as_late_when_refused() -> None:
    """A caller who got no answer got none in time."""
    example = questions(None, 1)[0]

    def result(i: int, ended_ms: float, outcome: Outcome) -> Result:
        return Result(Request(i, 0.0, SLO, example), 0.0, ended_ms, Reply(outcome))

    results = [result(i, 100.0, Outcome.ANSWERED) for i in range(3)]
    results += [result(3, 300.0, Outcome.ANSWERED), result(4, 1.0, Outcome.SHED)]
    found = of_beside(Run("here", tuple(results), Client(0.0, 0.0, 0.0, 0.0)))
    assert found["beside_in_time"] == pytest.approx(0.6)
    assert found["beside_p95_ms"] == 300.0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peers", "none-such"], "--peers: none-such is none; there are FastAPI"),
        (["--peer-variant", "none-such"], "--peer-variant: none-such is none; there are"),
        (["--callers", "0"], "give at least one question, caller"),
        (["--beside", "-1"], "--beside: -1 is not a rate"),
        (["--beside", "nan"], "--beside: nan is not a rate"),
    ],
)
def test_flags_that_make_no_run_are_refused(flags: list[str], words: str) -> None:
    """Before anything is started."""
    args = _parser().parse_args(["closed", "--questions", "1", *flags])
    with pytest.raises(NothingToAsk, match=words):
        args.run(args)


def test_an_unknown_variant_error_lists_the_known_ones() -> None:
    """Before anything is started."""
    args = _parser().parse_args(["closed", "--variants", "none-such", "--questions", "1"])
    with pytest.raises(NothingToAsk, match="--variants: none-such is none; there are"):
        args.run(args)
