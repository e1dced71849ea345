"""A late strict request is asked a second time, within a budget, and only once answered."""

from __future__ import annotations

import asyncio

import pytest

from gateway.catalog.schema import Variant
from gateway.clock import now_ms
from gateway.domain import Inference, Question, SloPolicy, SloRequest, Windows
from gateway.errors import BackendError
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from tests.fakes import CONTEXT, QUESTION, FakeBackend, serving_set, small_and_large

ASKED = Question(QUESTION, CONTEXT)
STRICT = SloRequest(min_f1=0.6, latency_ms=20_000, policy=SloPolicy.STRICT)


class Sticking(FakeBackend):
    """Never answers the first question, until it is cancelled."""

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        self.gate = None if self.asked else asyncio.Event()
        return await super().infer(variant, windows, budget_ms)


def make_service(backend: FakeBackend, share: float) -> AnswerService:
    service = AnswerService(backend, Settings(hedge_share=share), Metrics())
    service.serving = serving_set(small_and_large())
    return service


def hedges(service: AnswerService, outcome: str) -> float:
    found = service.metrics.registry.get_sample_value("bertier_hedges_total", {"outcome": outcome})
    return found or 0.0


async def test_a_late_strict_request_is_asked_again_and_the_loser_is_cancelled() -> None:
    """The second answer meets the SLO; the first call is cancelled."""
    backend = Sticking()
    service = make_service(backend, 0.1)
    answered = await service.answer(ASKED, STRICT, now_ms())
    assert answered.variant == "large"
    assert backend.asked == ["large", "large"]
    assert backend.cancelled == 1
    assert hedges(service, "won") == 1


@pytest.mark.parametrize(
    ("share", "request_"),
    [(0.0, STRICT), (0.1, SloRequest(min_f1=0.6, latency_ms=20_000))],
)
async def test_others_are_never_asked_twice(share: float, request_: SloRequest) -> None:
    """It is off unless wanted, and for those only who refuse to be late."""
    backend = Sticking()
    service = make_service(backend, share)
    task = asyncio.create_task(service.answer(ASKED, request_, now_ms()))
    await backend.until_asked()
    await asyncio.wait([task], timeout=0.5)
    assert backend.asked == ["large"]
    task.cancel()
    await asyncio.wait([task])


async def test_second_questions_end_with_the_budget() -> None:
    """Where everything is late, asking everything twice would make it later."""
    backend = FakeBackend(asyncio.Event())
    service = make_service(backend, 0.001)
    tasks = [asyncio.create_task(service.answer(ASKED, STRICT, now_ms())) for _ in range(8)]
    async with asyncio.timeout(20):
        while hedges(service, "no_budget") < 3:
            await asyncio.wait(tasks, timeout=0.01)
    assert len(backend.asked) == 8 + 5
    assert backend.gate is not None
    backend.gate.set()
    await asyncio.gather(*tasks)
    assert hedges(service, "won") + hedges(service, "lost") == 5


async def test_a_failure_is_told_at_once_and_not_hedged() -> None:
    """What fails is the breaker's and the retry's."""
    backend = FakeBackend()
    backend.error = BackendError("broken")
    with pytest.raises(BackendError, match="broken"):
        await make_service(backend, 0.1).answer(ASKED, STRICT, now_ms())
    assert backend.asked == ["large"]
