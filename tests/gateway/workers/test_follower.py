"""How a worker with models of its own follows its parent: real models in this process."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gateway.app import Models
from gateway.backends.embedded import EmbeddedBackend
from gateway.catalog import store
from gateway.domain import Trust
from gateway.monitoring.sequential_tests import Found
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.shared_memory import SharedMemory, Workers
from gateway.workers.channel import Channel
from gateway.workers.follower import Follower
from gateway.workers.messages import Published
from tests import tiny
from tests.fakes import TOKENIZER, make_catalog, make_variant
from tests.local_triton import wait_until


class House:
    """A worker, and the repository that its parent serves."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        shutil.copy(TOKENIZER, repository / store.TOKENIZER)
        self.backend = EmbeddedBackend(repository)
        settings = Settings(
            model_repository=repository, backend="embedded", workers=2, catalog_poll_ms=20
        )
        self.service = AnswerService(self.backend, settings, Metrics())
        workers = Workers(SharedMemory(2), 0)
        self.follower = Follower(self.service, Models(self.backend), Channel({}), workers)
        self.n_published = 0

    async def switch(self, names: Sequence[str]) -> None:
        """Have the worker follow a catalog of these models."""
        published = self.published(names)
        assert await self.follower.handlers()["prepare"](published)
        await self.follower.handlers()["switch"](published.number)

    def published(self, names: Sequence[str]) -> Published:
        self.n_published += 1
        variants = [make_variant(name, 5, sha256=self._model(name)) for name in names]
        return Published(
            number=self.n_published,
            catalog=make_catalog(variants, [0.5] * len(variants)),
            trust=dict.fromkeys(names, Trust.CERTIFIED),
            profiles={v.name: v.profile for v in variants},
            problems={},
            under_load=frozenset(),
            cores=1.0,
            instances=dict.fromkeys(names, 1),
            checked=True,
            tests=Found({}, frozenset()),
            admissions={},
        )

    def _model(self, name: str) -> str:
        path = self.repository / name / "1" / "model.onnx"
        return store.sha256_of(path) if path.exists() else tiny.write_model(self.repository, name)

    async def loaded(self) -> set[str]:
        return {key.partition("/")[0] for key in await self.backend.hashes()}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    running = asyncio.create_task(house.follower.run())
    yield house
    running.cancel()
    await asyncio.wait([running])
    await house.backend.close()


async def test_a_model_of_an_old_catalog_is_unloaded(house: House) -> None:
    """Otherwise each switch would add to the memory of each worker."""
    for nth in range(4):
        await house.switch(["stays", f"model-{nth}"])
    await wait_until(lambda: len(house.backend._sessions) == 2)
    assert await house.loaded() == {"stays", "model-3"}


async def test_a_model_that_a_request_in_flight_may_ask_stays(house: House) -> None:
    """It began with the old catalog, and may escalate to any model of it."""
    await house.switch(["old"])
    held = house.service.serving
    await house.switch(["new"])
    await asyncio.sleep(0.7)  # several looks
    assert await house.loaded() == {"old", "new"}
    del held
    await wait_until(lambda: len(house.backend._sessions) == 1)
    assert await house.loaded() == {"new"}


async def test_a_model_that_comes_back_is_not_unloaded_before_the_switch(house: House) -> None:
    """The set is prepared here, and the other workers are not yet."""
    await house.switch(["old"])
    held = house.service.serving
    await house.switch(["new"])
    published = house.published(["old"])
    assert await house.follower.handlers()["prepare"](published)
    del held
    await asyncio.sleep(0.7)
    assert await house.loaded() == {"old", "new"}
    await house.follower.handlers()["switch"](published.number)
    await wait_until(lambda: len(house.backend._sessions) == 1)
    assert await house.loaded() == {"old"}
