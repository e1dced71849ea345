"""How a worker with models of its own follows its parent: real models in this process."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.app import Models
from gateway.backends.embedded import EmbeddedBackend
from gateway.catalog import store
from gateway.catalog.schema import Variant
from gateway.clock import now_ms
from gateway.domain import Question, SetName, SloRequest, Trust
from gateway.monitoring.rollout_tests import Verdict
from gateway.monitoring.sequential_tests import Found
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.shared_memory import SharedMemory, Workers
from gateway.slo import STANDARD_CLASSES
from gateway.workers.channel import Channel
from gateway.workers.follower import Follower
from gateway.workers.messages import CheckedSet, Published, Tried
from tests import tiny
from tests.fakes import CONTEXT, QUESTION, TOKENIZER, make_catalog, make_variant, patient
from tests.local_triton import wait_until


class House:
    """A worker, and the repository that its parent serves."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        shutil.copy(TOKENIZER, repository / store.TOKENIZER)
        self.backend = EmbeddedBackend(repository)
        settings = patient(
            model_repository=repository, backend="embedded", workers=2, catalog_poll_ms=20
        )
        self.service = AnswerService(self.backend, settings, Metrics())
        workers = Workers(SharedMemory(2), 0)
        self.follower = Follower(self.service, Models(self.backend), Channel({}), workers)
        self.n_published = self.n_sets = 0

    async def switch(self, names: Sequence[str]) -> None:
        """Have the worker follow a catalog of these models."""
        published = self.published(names)
        assert await self.follower.handlers()["prepare"](published)
        await self.follower.handlers()["switch"](published.number)

    def published(self, names: Sequence[str]) -> Published:
        self.n_published += 1
        return Published(
            self.n_published,
            self._set(names),
            None,
            STANDARD_CLASSES,
            Found({}, frozenset()),
            {},
        )

    async def try_beside(self, published: Published, candidate: Tried | None) -> None:
        """Have the worker try a candidate beside what it serves."""
        self.n_published += 1
        published = replace(published, number=self.n_published, candidate=candidate)
        assert await self.follower.handlers()["prepare"](published)
        await self.follower.handlers()["switch"](published.number)

    def candidate(self, names: Sequence[str], number: int = 100) -> Tried:
        return Tried(
            number=number,
            sha256="ab" * 32,
            share=1.0,
            shadow=False,
            verdict=Verdict.OPEN,
            serving=self._set(names),
            classes={},
        )

    def _set(self, names: Sequence[str]) -> CheckedSet:
        self.n_sets += 1
        variants = [make_variant(name, 5, sha256=self._model(name)) for name in names]
        return CheckedSet(
            number=self.n_sets,
            catalog=make_catalog(variants, [0.5] * len(variants)),
            trust=dict.fromkeys(names, Trust.CERTIFIED),
            profiles={v.name: v.profile for v in variants},
            problems={},
            under_load=frozenset(),
            cores=1.0,
            instances=dict.fromkeys(names, 1),
            checked=True,
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


async def answered_by(house: House) -> SetName | None:
    answered = await house.service.answer(Question(QUESTION, CONTEXT), SloRequest(), now_ms())
    return answered.served_by


async def test_a_candidate_is_tried_beside_what_is_served_until_it_ends(house: House) -> None:
    """The current set is not built anew for it, and its models do not stay."""
    published = house.published(["current"])
    await house.try_beside(published, None)
    served = house.service.serving
    await house.try_beside(published, house.candidate(["new"]))
    assert house.service.serving is served
    assert await answered_by(house) is SetName.CANDIDATE
    await house.follower.handlers()["verdict"]((99, Verdict.WORSE))  # of one before it
    assert await answered_by(house) is SetName.CANDIDATE
    await house.follower.handlers()["verdict"]((100, Verdict.WORSE))
    assert await answered_by(house) is SetName.CURRENT
    assert await house.loaded() == {"current", "new"}
    await house.try_beside(published, None)
    assert await answered_by(house) is None
    await wait_until(lambda: len(house.backend._sessions) == 1)
    assert await house.loaded() == {"current"}


async def test_a_candidate_that_cannot_be_built_does_not_keep_a_new_catalog_back(
    house: House,
) -> None:
    """It is tried again; the answers of this worker come from the current catalog until then."""
    tried = house.candidate(["new"])
    shutil.rmtree(house.repository / "new")
    published = replace(house.published(["current"]), candidate=tried)
    assert not await house.follower.handlers()["prepare"](published)
    await house.follower.handlers()["switch"](published.number)
    assert await answered_by(house) is None
    house._model("new")
    await house.try_beside(published, tried)
    assert await answered_by(house) is SetName.CANDIDATE


@pytest.mark.parametrize("known", [True, False])
async def test_a_verdict_that_falls_while_a_publication_is_prepared_holds(
    house: House, known: bool
) -> None:
    """The publication carries an older one, and the parent tells a verdict once; `known`: tried here already."""
    base, tried = house.published(["current"]), house.candidate(["new"])
    await house.try_beside(base, tried if known else None)
    published = replace(base, number=house.n_published + 1, candidate=tried)
    handlers = house.follower.handlers()
    assert await handlers["prepare"](published)
    await handlers["verdict"]((tried.number, Verdict.WORSE))
    await handlers["switch"](published.number)
    assert await answered_by(house) is SetName.CURRENT


async def test_a_candidate_that_is_tried_after_a_worse_one_begins_open(house: House) -> None:
    """A verdict is on one test."""
    base = house.published(["current"])
    await house.try_beside(base, house.candidate(["new"], number=7))
    await house.follower.handlers()["verdict"]((7, Verdict.WORSE))
    await house.try_beside(base, house.candidate(["new"], number=8))
    assert await answered_by(house) is SetName.CANDIDATE


async def test_the_newest_publication_is_served_even_if_an_older_one_is_prepared_last(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent does not wait for a slow one, and publishes the next."""
    await house.switch(["first"])
    loading, go_on, load = asyncio.Event(), asyncio.Event(), house.backend.load

    async def load_slowly(variant: Variant) -> None:
        if variant.name == "slow":
            loading.set()
            await go_on.wait()
        await load(variant)

    monkeypatch.setattr(house.backend, "load", load_slowly)
    handlers = house.follower.handlers()
    older = asyncio.ensure_future(handlers["prepare"](house.published(["slow"])))
    await loading.wait()
    newest = house.published(["newest"])
    assert await handlers["prepare"](newest)
    go_on.set()
    assert not await older
    await handlers["switch"](newest.number)
    assert house.service.serving is not None
    assert set(house.service.serving.trust) == {"newest"}
