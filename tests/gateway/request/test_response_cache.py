"""Answers kept for the same request: what they are keyed by, how long, and what is never kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.api_keys import ApiKey
from gateway.auth import access
from gateway.auth.access import Caller
from gateway.domain import Answered, Question, SloPolicy, SloRequest, SloViolation, Trust
from gateway.errors import BackendError, DeadlineExceeded
from gateway.observability.metrics import Metrics
from gateway.request.response_cache import CONTROL, CacheControl
from gateway.request.service import AnswerService
from tests.fakes import CONTEXT, QUESTION, FakeBackend, patient, serving_set, small_and_large

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT, "a")
SLO = SloRequest(min_f1=0.6)


class World:
    """A gateway that keeps answers, and a clock that a test moves."""

    def __init__(self, **settings: Any) -> None:
        self.now_ms = 1_000.0
        self.backend = FakeBackend()
        self.metrics = Metrics()
        cached = {"cache_bytes": 1 << 20, "cache_ttl_ms": 1_000.0, "shadow_share": 0.0}
        self.service = AnswerService(
            self.backend, patient(**(cached | settings)), self.metrics, lambda: self.now_ms
        )
        self.service.serving = serving_set(small_and_large())

    async def ask(self, question: Question = EXAMPLE_QUESTION, slo: SloRequest = SLO) -> Answered:
        return await self.service.answer(question, slo, self.now_ms)

    def counted(self, outcome: str) -> float | None:
        name = "bertier_cache_requests_total"
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome})


@pytest.fixture(autouse=True)
def _as_found() -> Any:
    """Leave the caller and its header to the next test as they were."""
    caller, control = access.CALLER.set(None), CONTROL.set(CacheControl())
    yield
    access.CALLER.reset(caller)
    CONTROL.reset(control)


async def test_the_same_request_is_answered_without_a_model() -> None:
    """It costs nothing, and says how old it is."""
    world = World()
    first = await world.ask()
    world.now_ms += 400
    again = await world.ask(replace(EXAMPLE_QUESTION, id="b"))
    assert len(world.backend.asked) == 1
    assert again.answer == first.answer
    assert (first.age_ms, again.age_ms) == (None, 400)
    assert (again.cost.compute_ms, again.cost.saved_ms) == (0.0, 20.0)
    assert (again.timings.total, again.met) == (0.0, "true")
    assert (world.counted("miss"), world.counted("hit")) == (1, 1)


@pytest.mark.parametrize(
    ("question", "slo"),
    [
        (replace(EXAMPLE_QUESTION, question="Who?"), SLO),
        (replace(EXAMPLE_QUESTION, context=CONTEXT + "!"), SLO),
        (replace(EXAMPLE_QUESTION, passage_starts=(0, 12)), SLO),
        (replace(EXAMPLE_QUESTION, top_k=2), SLO),
        (replace(EXAMPLE_QUESTION, max_answer_tokens=2), SLO),
        (replace(EXAMPLE_QUESTION, min_score=0.5), SLO),
        (replace(EXAMPLE_QUESTION, max_no_answer_probability=0.5), SLO),
        (EXAMPLE_QUESTION, replace(SLO, latency_ms=5_000)),
        (EXAMPLE_QUESTION, replace(SLO, min_f1=0.4)),
        (EXAMPLE_QUESTION, replace(SLO, policy=SloPolicy.STRICT)),
        (EXAMPLE_QUESTION, replace(SLO, variant="small")),
    ],
)
async def test_another_request_is_answered_anew(question: Question, slo: SloRequest) -> None:
    """The key is everything that the answer depends on."""
    world = World()
    await world.ask()
    assert (await world.ask(question, slo)).age_ms is None


async def test_deadline_and_priority_make_no_other_request() -> None:
    """gRPC counts the deadline down: no two calls have the same."""
    world = World()
    await world.ask()
    again = await world.ask(slo=replace(SLO, timeout_ms=123.0, priority=1))
    assert (again.age_ms, again.slo.timeout_ms) == (0.0, 123.0)


async def test_a_caller_sees_its_own_answers_alone() -> None:
    """How fast an answer comes would tell one caller what another one asks."""
    world = World()
    key = ApiKey(sha256="0" * 64)
    for name, age_ms in (("a", None), ("b", None), ("a", 0.0)):
        access.CALLER.set(Caller(name, key, None, world.metrics))
        assert (await world.ask()).age_ms == age_ms


async def test_a_switched_catalog_answers_anew() -> None:
    """Other models give other answers; the same catalog read again does not."""
    world = World()
    await world.ask()
    world.service.serving = serving_set(small_and_large())
    assert (await world.ask()).age_ms == 0.0
    catalog = small_and_large()
    other = replace(catalog, origin=replace(catalog.origin, commit="1111111"))
    world.service.serving = serving_set(other)
    assert (await world.ask()).age_ms is None


async def test_a_broken_certificate_answers_anew() -> None:
    """An answer of a plan that is trusted no longer would carry a floor that no longer holds."""
    world = World()
    await world.ask()
    world.service.serving = serving_set(small_and_large(), Trust.TRANSFERRED)
    assert (await world.ask()).age_ms is None


async def test_answers_expire() -> None:
    """`cache_ttl_ms` bounds how old an answer may be."""
    world = World()
    await world.ask()
    world.now_ms += 1_001
    assert (await world.ask()).age_ms is None


async def test_what_is_kept_is_bounded() -> None:
    """Old answers make room; an answer larger than all of the memory is not kept."""
    world = World(cache_bytes=8_000)
    for i in range(9):
        await world.ask(replace(EXAMPLE_QUESTION, question=f"Who {i}?"))
    held = world.metrics.registry.get_sample_value("bertier_cache_bytes")
    assert held is not None
    assert 0 < held <= 8_000
    assert (await world.ask(replace(EXAMPLE_QUESTION, question="Who 8?"))).age_ms == 0.0
    assert (await world.ask(replace(EXAMPLE_QUESTION, question="Who 0?"))).age_ms is None
    tiny = World(cache_bytes=1)
    await tiny.ask()
    assert (await tiny.ask()).age_ms is None


@pytest.mark.parametrize(
    ("control", "reads", "leaves"),
    [
        (CacheControl(reads=False, stores=False), False, False),
        (CacheControl(reads=False), False, True),
        (CacheControl(max_age_ms=100), False, True),
        (CacheControl(max_age_ms=300), True, True),
    ],
)
async def test_the_caller_has_a_say(control: CacheControl, reads: bool, leaves: bool) -> None:
    """no-store, no-cache and max-age."""
    world = World()
    await world.ask()
    world.now_ms += 200
    CONTROL.set(control)
    assert ((await world.ask()).age_ms == 200) is reads
    fresh = World()
    await fresh.ask()
    CONTROL.set(CacheControl())
    assert ((await fresh.ask()).age_ms == 0.0) is leaves


async def test_an_answer_that_load_made_worse_is_not_kept() -> None:
    """The next caller may get a better one."""
    world = World()
    worse = await world.ask(slo=SloRequest(latency_ms=15, min_f1=0.6))
    assert SloViolation.BELOW_FLOOR in worse.violations
    again = await world.ask(slo=SloRequest(latency_ms=15, min_f1=0.6))
    assert again.age_ms is None


async def test_failures_and_explanations_are_not_kept() -> None:
    """Neither says what would happen now."""
    world = World()
    world.backend.error = BackendError("no")
    with pytest.raises(BackendError):
        await world.ask()
    world.backend.error = None
    assert (await world.ask()).age_ms is None
    explained = replace(SLO, explain=True)
    assert [(await world.ask(slo=explained)).age_ms for _ in range(2)] == [None, None]
    assert world.counted("bypass") == 2


async def test_a_request_that_is_too_late_is_too_late() -> None:
    """A kept answer does not undo a deadline."""
    world = World()
    slo = SloRequest(min_f1=0.6, timeout_ms=100)
    await world.ask(slo=slo)
    with pytest.raises(DeadlineExceeded):
        await world.service.answer(EXAMPLE_QUESTION, slo, world.now_ms - 101)


async def test_it_is_off_by_default() -> None:
    """Who turns it on says how much memory texts of callers may take."""
    world = World(cache_bytes=patient().cache_bytes)
    assert [(await world.ask()).age_ms for _ in range(2)] == [None, None]
    assert world.counted("miss") == 0
