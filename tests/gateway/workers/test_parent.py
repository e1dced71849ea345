"""How the parent publishes a serving set to workers of which one cannot build it: over real channels."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Models
from gateway.domain import SetName
from gateway.monitoring.rollout_tests import Chances, Rate, RolloutTests, Verdict
from gateway.observability.metrics import Metrics
from gateway.request.rollout import Running, Seen
from gateway.settings import Settings
from gateway.workers import child
from gateway.workers.channel import Channel
from gateway.workers.messages import Published
from gateway.workers.parent import Listening, Parent
from tests.fakes import FakeBackend, serving_set, small_and_large
from tests.local_triton import wait_until


class Worker:
    """The worker's end of a channel."""

    def __init__(self) -> None:
        self.able = True
        self.go_on = asyncio.Event()  # it prepares until then
        self.go_on.set()
        self.prepared: list[int] = []
        self.prepared_s: list[float] = []  # when
        self.switched: list[int] = []
        self.verdicts: list[tuple[int, Verdict]] = []
        self.channel = Channel(
            {"prepare": self._prepare, "switch": self._switch, "verdict": self._verdict}
        )

    async def _prepare(self, published: Published) -> bool:
        self.prepared.append(published.number)
        self.prepared_s.append(time.monotonic())
        await self.go_on.wait()
        return self.able

    async def _switch(self, number: int) -> None:
        self.switched.append(number)

    async def _verdict(self, shown: tuple[int, Verdict]) -> None:
        self.verdicts.append(shown)

    def sees(self, number: int, *, candidate_fails: int) -> None:
        """Send so many failures of a candidate, and as many answers of the current catalog."""
        pair = [
            Seen(Rate.ERRORS, SetName.CURRENT, bad=False),
            Seen(Rate.ERRORS, SetName.CANDIDATE, bad=True),
        ]
        self.channel.send("outcomes", [(number, seen) for seen in pair * candidate_fails])


class House:
    """A parent, and the ends of its two workers."""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.workers = [Worker(), Worker()]
        self.tasks: list[asyncio.Task[Any]] = []

    async def connect(self) -> None:
        for nth, worker in enumerate(self.workers):
            await self.link(nth, worker, begun=True)
        self.tasks.append(asyncio.create_task(self.parent._publish()))

    async def link(self, nth: int, worker: Worker, *, begun: bool) -> None:
        """Let this worker be the parent's nth."""
        each = self.parent._children[nth]
        ours, theirs = socket.socketpair()
        each.channel, each.begun = Channel(each._handlers), begun
        for channel, end in ((each.channel, ours), (worker.channel, theirs)):
            await channel.open(end)
            self.tasks.append(asyncio.create_task(channel.run()))


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """Return one whose first backoff is 50 ms, doubling."""
    monkeypatch.setattr(child, "FIRST_BACKOFF_MS", 50.0)
    settings = Settings(model_repository=tmp_path, http_port=0, grpc_port=0, workers=2)
    with Listening(settings) as listening:
        house = House(Parent(settings, Models(FakeBackend()), Metrics(), listening))
        await house.connect()
        yield house
        for task in house.tasks:
            task.cancel()
        await asyncio.wait(house.tasks)


async def test_only_the_worker_that_could_not_build_the_set_tries_again(house: House) -> None:
    """The others serve it already: to prepare and switch again each time would cost their callers."""
    good, bad = house.workers
    bad.able = False
    house.parent.serve(serving_set(small_and_large()))
    await wait_until(lambda: len(bad.prepared) == 3)
    assert (good.prepared, good.switched) == ([1], [1])
    bad.able = True
    await wait_until(lambda: len(bad.prepared) == 4)
    await asyncio.sleep(1.0)
    assert (bad.prepared, good.prepared) == ([1] * 4, [1])


async def test_it_tries_less_and_less_often(house: House) -> None:
    """A model file that is gone does not come back within a second."""
    bad = house.workers[1]
    bad.able = False
    house.parent.serve(serving_set(small_and_large()))
    await wait_until(lambda: len(bad.prepared) >= 4)
    waits_s = [after - before for before, after in pairwise(bad.prepared_s[:4])]
    assert all(w > 0.95 * least for w, least in zip(waits_s, (0.05, 0.1, 0.2), strict=True))


async def test_a_new_catalog_ends_the_attempts_at_the_old_one(house: House) -> None:
    """It is published to all at once; then nothing is left to try."""
    good, bad = house.workers
    bad.able = False
    house.parent.serve(serving_set(small_and_large()))
    await wait_until(lambda: len(bad.prepared) >= 2)
    bad.able = True
    house.parent.serve(serving_set(small_and_large()))
    await wait_until(lambda: bad.switched[-1:] == [2])
    tried = len(bad.prepared)
    await asyncio.sleep(0.8)
    assert (len(bad.prepared), good.prepared) == (tried, [1, 2])


async def test_one_test_counts_what_all_workers_see_and_its_verdict_holds_for_all(
    house: House,
) -> None:
    """Neither has seen enough for itself. Outcomes of an earlier test do not count."""
    house.parent.serve(serving_set(small_and_large()))
    tests, sums = RolloutTests(Chances()), dict.fromkeys(SetName, 0.0)
    running = Running(
        "ab" * 32, serving_set(small_and_large()), 0.5, shadow=False, tests=tests, sums_ms=sums
    )
    house.parent.tried(running)
    assert house.parent._tried is not None
    number = house.parent._tried.number
    one, other = house.workers
    one.sees(number - 1, candidate_fails=100)
    one.sees(number, candidate_fails=8)
    await wait_until(lambda: tests.rates[Rate.ERRORS].candidate.n == 8)
    assert tests.verdict is Verdict.OPEN
    other.sees(number, candidate_fails=8)
    await wait_until(lambda: one.verdicts and other.verdicts)
    assert one.verdicts == other.verdicts == [(number, Verdict.WORSE)]
    assert tests.rates[Rate.ERRORS].candidate.n <= 16


async def test_a_worker_that_replaces_one_meanwhile_is_not_told_to_switch(house: House) -> None:
    """It has prepared nothing, and does not know the message before it has begun."""
    slow, ended, fresh = *house.workers, Worker()
    slow.go_on.clear()
    house.parent.serve(serving_set(small_and_large()))
    await wait_until(lambda: slow.prepared and ended.prepared)
    await house.link(1, fresh, begun=False)
    slow.go_on.set()
    await wait_until(lambda: slow.switched)
    house.parent._children[1].channel.send("verdict", (1, Verdict.OPEN))
    await wait_until(lambda: fresh.verdicts)  # all that was sent before has come
    assert fresh.switched == []
