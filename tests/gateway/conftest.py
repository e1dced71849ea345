"""One real Triton for all tests of a session that only ask it questions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gateway.triton_server.process import TritonOptions
from gateway.triton_server.supervisor import Supervisor
from tests import local_triton


@dataclass(frozen=True, slots=True)
class RunningTriton:
    options: TritonOptions
    hashes: dict[str, str]  # of the models that can be served
    pid: int


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """Start it in a loop of its own, which outlives the loops of the single tests."""
    repository = tmp_path_factory.mktemp("repository")
    hashes = local_triton.write_repository(repository)
    options = local_triton.options(repository)
    supervisor = Supervisor(local_triton.installation(), options)
    with asyncio.Runner() as runner:
        runner.run(supervisor.start(local_triton.START_TIMEOUT_MS))
        assert supervisor.pid
        yield RunningTriton(options, hashes, supervisor.pid)
        runner.run(supervisor.stop())
