"""What a worker sends of what it observes, to a parent that does not read for a while: over a real pair of sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.domain import SetName
from gateway.monitoring.rollout_tests import Chances, Rate, RolloutTests
from gateway.monitoring.sequential_tests import Comparison
from gateway.observability.metrics import Metrics
from gateway.request.rollout import Running, Seen
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.workers.channel import Channel
from gateway.workers.observed import MOST_UNSENT_BYTES, Observed
from tests.fakes import FakeBackend
from tests.local_triton import wait_until

SEEN = Seen(Rate.ERRORS, SetName.CANDIDATE, bad=True)


class House:
    """A worker's observations, and its parent's end of the channel."""

    def __init__(self, repository: Path) -> None:
        settings = Settings(model_repository=repository)
        service = AnswerService(FakeBackend(), settings, Metrics())
        self.worker = Channel({})
        self.observed = Observed(service, self.worker)
        tests, sums = RolloutTests(Chances()), dict.fromkeys(SetName, 0.0)
        self.running = Running("ab" * 32, None, 0.5, shadow=False, tests=tests, sums_ms=sums)
        self.observed.follow(1, self.running)
        self.taken: list[str] = []
        kinds = ("filler", "compared", "answers", "outcomes", "given")
        self.parent = Channel({kind: self._taker(kind) for kind in kinds})

    def _taker(self, kind: str) -> Callable[[Any], Any]:
        async def take(_: Any) -> None:
            self.taken.append(kind)

        return take

    def observe(self, kind: str) -> None:
        """Send one observation of this kind."""
        if kind == "compared":
            self.observed.compared("small", b"text", Comparison.SAME)
        elif kind == "answers":
            self.observed.answered("small", b"text", 0.5, 100)
        elif kind == "outcomes":
            self.observed.tried(self.running, SEEN)
        else:
            self.observed.predicted((None, "id", "words"), Comparison.SAME)
        self.observed.send()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    ours, theirs = socket.socketpair()
    await house.worker.open(ours)
    await house.parent.open(theirs)
    tasks = [asyncio.create_task(house.worker.run())]
    yield house
    tasks.append(asyncio.create_task(house.parent.run()))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("kind", ["compared", "answers", "outcomes", "given"])
async def test_what_is_unsent_stays_within_a_limit_and_is_sent_again_when_the_parent_reads(
    house: House, kind: str
) -> None:
    """A worker must not grow with each request while its parent hangs."""
    house.worker.send("filler", bytes(2 * MOST_UNSENT_BYTES))
    unsent = house.worker.unsent_bytes
    assert unsent > MOST_UNSENT_BYTES
    for _ in range(100):
        house.observe(kind)
    assert house.worker.unsent_bytes == unsent
    reading = asyncio.create_task(house.parent.run())
    await wait_until(lambda: house.taken)
    house.observe(kind)
    await wait_until(lambda: kind in house.taken)
    assert house.taken == ["filler", kind]
    reading.cancel()
    await asyncio.wait([reading])
