"""Two real Tritons behind one backend; one of them is killed while it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from gateway.backends.pool import Replicas
from gateway.backends.protocol import Backend
from gateway.backends.triton import TritonBackend
from gateway.domain import Trust
from gateway.errors import BackendError, BertierError
from gateway.lifecycle.preparation import hash_problem
from gateway.observability.metrics import Metrics
from gateway.triton_server.supervisor import Supervisor
from tests import local_triton, tiny
from tests.fakes import make_variant
from tests.gateway.backends.test_triton import AMPLE_MS, assert_right, make_windows
from tests.gateway.conftest import RunningTriton
from tests.local_triton import FAST

ASKERS = 4
PATIENCE_S = 60
PAUSE_S = 0.02  # of each asker while a server is away: it starts again on the same cores


@dataclass
class Pair:
    """The session's Triton, and one of our own that may be killed."""

    replicas: Replicas
    own: Supervisor


@pytest.fixture
async def pair(triton: RunningTriton, tmp_path: Path) -> AsyncIterator[Pair]:
    assert tiny.write_model(tmp_path, FAST) == triton.hashes[FAST]
    own = Supervisor(local_triton.installation(), local_triton.options(tmp_path))
    await own.start(local_triton.START_TIMEOUT_MS)
    servers = {"kept": triton.options.grpc_url, "killed": own.grpc_url}
    replicas = Replicas(
        {name: TritonBackend(url) for name, url in servers.items()}, Metrics(), retry_share=1.0
    )
    yield Pair(replicas, own)
    await replicas.close()
    await own.stop()


async def test_a_killed_server_is_routed_around_and_comes_back_by_itself(
    pair: Pair, triton: RunningTriton
) -> None:
    """Every request of the time ends in the right answer; the server is checked before it is asked again."""
    replicas, variant = (
        pair.replicas,
        replace(make_variant(FAST, 1.0, batch_invariant=True), sha256=triton.hashes[FAST]),
    )
    windows, stop, failed = make_windows(1), asyncio.Event(), []

    async def check(server: Backend) -> Trust:
        await server.load(variant)
        if problem := hash_problem(variant, await server.hashes()):
            raise BackendError(problem)
        assert_right(windows, await server.infer(variant, windows, AMPLE_MS))
        return Trust.CERTIFIED

    async def keep_asking() -> None:
        while not stop.is_set():
            try:
                assert_right(windows, await replicas.infer(variant, windows, AMPLE_MS))
            except BertierError as exc:
                failed.append(exc)
            if replicas.capacity(variant) < 2:
                await asyncio.sleep(PAUSE_S)

    await replicas.checked(variant, check)
    assert replicas.capacity(variant) == 2
    askers = [asyncio.create_task(keep_asking()) for _ in range(ASKERS)]
    assert pair.own.pid is not None
    psutil.Process(pair.own.pid).kill()
    await local_triton.wait_until(lambda: replicas.capacity(variant) == 1)
    await local_triton.wait_until(lambda: pair.own.restarts == 1, 280.0)
    async with asyncio.timeout(PATIENCE_S):  # gRPC connects again within a second
        while replicas.capacity(variant) < 2:
            assert await replicas.is_ready()
            await replicas.readmit(variant, check, Trust.CERTIFIED)
    (killed,) = (r for r in replicas.members if r.name == "killed")
    await local_triton.wait_until(lambda: killed.in_flight > 0)
    stop.set()
    await asyncio.gather(*askers)
    assert failed == []
