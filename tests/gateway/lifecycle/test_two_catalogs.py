"""Two gateways with different catalogs on one real Triton: neither takes from the other what it needs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gateway.backends.triton import TritonBackend
from gateway.catalog import store
from gateway.catalog.schema import Variant
from gateway.clock import now_ms
from gateway.domain import Question, SloPolicy, SloRequest
from gateway.lifecycle.watcher import Watcher
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from tests import tiny
from tests.fakes import CONTEXT, QUESTION, TOKENIZER, make_catalog, make_variant, patient
from tests.gateway.conftest import RunningTriton

UNLOAD_AFTER_MS = 60_000.0


@dataclass
class Gateway:
    """A repository of its own, and what serves it from the shared server."""

    repository: Path
    service: AnswerService
    watcher: Watcher

    def publish(self, variants: Sequence[Variant]) -> None:
        floors = [0.5 + 0.1 * i for i in range(len(variants))]
        store.write(self.repository, make_catalog(variants, floors))

    async def answered_by(self, name: str) -> str:
        request = SloRequest(variant=name, latency_ms=60_000, policy=SloPolicy.PREFER_ACCURACY)
        answered = await self.service.answer(Question(QUESTION, CONTEXT), request, now_ms())
        return answered.variant


class Clock:
    ms = 0.0

    def __call__(self) -> float:
        return self.ms


@dataclass
class Shared:
    """One Triton whose folder holds the models of both gateways."""

    variants: dict[str, Variant]
    url: str
    clock: Clock

    def gateway(self, folder: Path) -> Gateway:
        folder.mkdir()
        shutil.copy(TOKENIZER, folder)
        backend = TritonBackend(self.url, unload_after_ms=UNLOAD_AFTER_MS, clock=self.clock)
        service = AnswerService(backend, patient(model_repository=folder), Metrics())
        return Gateway(folder, service, Watcher(service))


@pytest.fixture(scope="module")
def shared(triton: RunningTriton) -> Iterator[Shared]:
    """Put models of its own into the session's Triton, and take them out again."""
    folder = triton.options.model_repository
    variants = {
        name: make_variant(name, 1.0, sha256=tiny.write_model(folder, name), batch_invariant=True)
        for name in ("first", "common", "second")
    }
    yield Shared(variants, triton.options.grpc_url, Clock())
    asyncio.run(_unload(triton.options.grpc_url, list(variants.values())))


async def _unload(url: str, variants: Sequence[Variant]) -> None:
    backend = TritonBackend(url)
    for variant in variants:
        await backend.unload(variant, [])
    await backend.close()


async def test_a_gateway_unloads_nothing_that_another_one_needs(
    shared: Shared, tmp_path: Path
) -> None:
    """What one catalog drops may be what another one answers with."""
    variants = shared.variants
    one, other = shared.gateway(tmp_path / "one"), shared.gateway(tmp_path / "other")
    one.publish([variants["first"], variants["common"]])
    other.publish([variants["common"], variants["second"]])
    for each in (one, other):
        await each.watcher.check()
        assert await each.answered_by("common") == "common"
    one.publish([variants["first"]])
    for _ in range(3):
        await one.watcher.check()
        assert await other.answered_by("common") == "common"
    await other.watcher.check()
    state = await other.watcher.readiness()
    assert [name for name, v in state.variants.items() if v.served] == ["common", "second"]

    other.publish([variants["second"]])
    await other.watcher.check()
    for _ in range(2):
        shared.clock.ms += UNLOAD_AFTER_MS
        await one.watcher.check()
    assert "common/1" not in await one.service.backend.hashes()
    for each in (one, other):
        await each.service.backend.close()


async def test_catalogs_that_name_different_files_say_which(shared: Shared, tmp_path: Path) -> None:
    """One folder holds one file of a name: a gateway that needs another one reports it, and serves the rest."""
    wanted = replace(shared.variants["common"], sha256="1" * 64)
    strange = make_variant("strange", 1.0, sha256="2" * 64, batch_invariant=True)
    gateway = shared.gateway(tmp_path / "other")
    gateway.publish([wanted, strange, shared.variants["second"]])
    await gateway.watcher.check()
    state = await gateway.watcher.readiness()
    assert state.ready
    found = shared.variants["common"].sha256
    assert f"has sha256 {found[:12]}, the catalog says 1111" in str(
        state.variants["common"].problem
    )
    assert "strange: could not be loaded" in str(state.variants["strange"].problem)
    assert await gateway.answered_by("second") == "second"
    await gateway.service.backend.close()
