"""A model that loses one of its instances goes on answering, and is whole again soon: with the real Triton."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gateway.backends.triton import TritonBackend
from gateway.clock import now_ms
from gateway.domain import Question, SloRequest
from gateway.errors import BackendError
from gateway.lifecycle.healing import Healing
from gateway.lifecycle.watcher import Watcher
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.triton_server.supervisor import Supervisor
from tests import local_triton, tiny
from tests.fakes import CONTEXT, QUESTION, encoder, make_catalog, make_variant, serving_set
from tests.local_triton import wait_until

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)
POISON = "zebra"
# The deadline is far off: on a busy host, too, who fails has failed for another reason than time.
EITHER_WILL_DO = SloRequest(min_f1=0.4, latency_ms=5_000, timeout_ms=60_000)
PAUSE_S = 0.03
HEALS_S = 120.0  # on a busy host; a few seconds on a quiet one


class Clinic:
    """A gateway without frontends before a Triton of two models with two instances each."""

    def __init__(self, supervisor: Supervisor, sha256s: dict[str, str]) -> None:
        self.supervisor = supervisor
        self.backend = TritonBackend(supervisor.grpc_url)
        self.service = AnswerService(self.backend, Settings(), Metrics())
        variants = [
            make_variant(n, ms, sha256=sha256s[n]) for n, ms in (("small", 5), ("large", 20))
        ]
        self.service.serving = serving_set(make_catalog(variants, [0.5, 0.7]))
        self.healing = Healing(self.service, {"triton": self.backend}, supervisor)
        self.watcher = Watcher(self.service, healing=self.healing.states)
        self.failures: list[BaseException] = []
        self.answered = 0
        self.seen: set[str] = set()  # what was said of `small` meanwhile
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await self.backend.is_ready()
        for _ in range(4):  # each instance is warm
            await self.ask()
        await wait_until(lambda: len(self.supervisor.models.of("small")) == 2)
        self._tasks = [
            asyncio.create_task(self.healing.run()),
            *(asyncio.create_task(self._keep_asking()) for _ in range(2)),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.backend.close()
        await self.supervisor.stop()

    async def ask(self, question: Question = EXAMPLE_QUESTION) -> None:
        await self.service.answer(question, EITHER_WILL_DO, now_ms())

    async def _keep_asking(self) -> None:
        while True:
            try:
                await self.ask()
            except BackendError as exc:
                self.failures.append(exc)
            else:
                self.answered += 1
            self.seen |= set((await self.watcher.readiness()).healing.values())
            await asyncio.sleep(PAUSE_S)

    def reloads(self) -> float:
        labels = {"variant": "small", "result": "loaded"}
        found = self.service.metrics.registry.get_sample_value(
            "bertier_model_reloads_total", labels
        )
        return found or 0.0

    async def until_healed(self, times: int = 1) -> None:
        """Return when `small` was loaded again, both instances are there, and callers got answers since."""
        await wait_until(lambda: self.reloads() >= times, HEALS_S)
        answered = self.answered
        await wait_until(lambda: self.answered > answered + 10, HEALS_S)
        await wait_until(lambda: len(running(self.supervisor.models.of("small"))) >= 2, HEALS_S)
        assert self.healing.states() == {}


def running(pids: set[int]) -> set[int]:
    return {pid for pid in pids if local_triton.is_running(pid)}


async def clinic_of(folder: Path, sha256s: dict[str, str]) -> Clinic:
    supervisor = Supervisor(local_triton.installation(), local_triton.options(folder))
    await supervisor.start(local_triton.START_TIMEOUT_MS)
    clinic = Clinic(supervisor, sha256s)
    await clinic.open()
    return clinic


@pytest.fixture
async def clinic(tmp_path: Path) -> AsyncIterator[Clinic]:
    sha256s = {
        name: tiny.write_model(tmp_path, name, max_batch_size=1, instances=2)
        for name in ("small", "large")
    }
    clinic = await clinic_of(tmp_path, sha256s)
    yield clinic
    await clinic.close()


async def test_a_killed_model_process_is_replaced_and_callers_get_answers(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton never starts it again, and every request that it would get waits in vain."""
    triton = clinic.supervisor.pid
    victim = min(clinic.supervisor.models.of("small"))
    os.kill(victim, signal.SIGKILL)
    await clinic.until_healed()
    assert clinic.failures == []
    assert clinic.seen == {f"its process {victim} has ended"}
    assert f"small: its process {victim} has ended" in caplog.text
    labels = {"variant": "small"}
    lost = clinic.service.metrics.registry.get_sample_value("bertier_instances_lost_total", labels)
    assert lost == 1
    assert clinic.supervisor.pid == triton, "the other model was not touched"


async def test_a_stopped_model_process_is_replaced_before_it_comes_back(clinic: Clinic) -> None:
    """Triton, having given it up, would abort with all models when it goes on."""
    triton = clinic.supervisor.pid
    victim = psutil.Process(min(clinic.supervisor.models.of("small")))
    victim.send_signal(signal.SIGSTOP)
    await clinic.until_healed()
    try:
        victim.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        assert not local_triton.is_running(victim.pid)
    answered = clinic.answered
    await wait_until(lambda: clinic.answered > answered + 10, HEALS_S)
    assert clinic.failures == []
    assert clinic.supervisor.pid == triton
    assert local_triton.is_running(triton or 0)


async def test_a_model_that_ends_at_one_input_goes_on_with_all_others(tmp_path: Path) -> None:
    """Who asks it gets an error, and neither all instances nor all models are ended by it."""
    token = encoder().encode(Question(POISON, CONTEXT)).input_ids[0, 1]
    sha256s = {
        "small": tiny.write_crashing_model(tmp_path, "small", int(token), instances=2),
        "large": tiny.write_model(tmp_path, "large", max_batch_size=1, instances=2),
    }
    clinic = await clinic_of(tmp_path, sha256s)
    try:
        only_small = replace(EITHER_WILL_DO, variant="small")
        with pytest.raises(BackendError):
            await clinic.service.answer(Question(POISON, CONTEXT), only_small, now_ms())
        await clinic.until_healed()
        assert clinic.failures == []
    finally:
        await clinic.close()
