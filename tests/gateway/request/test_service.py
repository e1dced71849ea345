"""The one request path, without any protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from gateway.backends import breaker
from gateway.clock import now_ms
from gateway.domain import (
    Decision,
    Option,
    Question,
    Reason,
    Size,
    Slo,
    SloPolicy,
    SloRequest,
    SloViolation,
    Trust,
)
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    DeadlineExceeded,
    Infeasible,
    ModelCrashed,
    Overloaded,
    TextTooLong,
    UnknownVariant,
)
from gateway.observability.metrics import Metrics
from gateway.qa import codec
from gateway.request.service import AnswerService
from gateway.routing import policy as routing_policy
from gateway.settings import Settings
from tests.asgi import client
from tests.fakes import CONTEXT, QUESTION, FakeBackend, serving_set, small_and_large

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)
STRICT = SloPolicy.STRICT


def make_service(backend: FakeBackend | None = None, **more: Any) -> AnswerService:
    service = AnswerService(backend or FakeBackend(), Settings(), Metrics(), **more)
    service.serving = serving_set(small_and_large())
    return service


@pytest.mark.parametrize(
    ("request_", "variant", "reason"),
    [
        (SloRequest(min_f1=0.4), "small", Reason.MEETS_SLO),
        (SloRequest(min_f1=0.6), "large", Reason.MEETS_SLO),
        (SloRequest(latency_ms=15), "small", Reason.MOST_ACCURATE_IN_TIME),
        (
            SloRequest(latency_ms=15, policy=SloPolicy.PREFER_ACCURACY),
            "large",
            Reason.LEAST_LATE,
        ),
        (SloRequest(variant="small"), "small", Reason.PINNED),
    ],
)
async def test_the_slo_chooses_the_variant(
    request_: SloRequest, variant: str, reason: Reason
) -> None:
    """The smallest model that meets the SLO."""
    backend = FakeBackend()
    answered = await make_service(backend, clock=lambda: 0.0).answer(
        EXAMPLE_QUESTION, request_, 0.0
    )
    assert (answered.variant, answered.decision.reason) == (variant, reason)
    assert backend.asked == [variant]


async def test_work_in_flight_moves_a_request_to_a_smaller_model() -> None:
    """Queueing counts against the target."""
    backend = FakeBackend(asyncio.Event())
    service = make_service(backend, clock=lambda: 0.0)  # a stall of the host moves nothing on
    slow = SloRequest(latency_ms=9_000, min_f1=0.6)
    first = [asyncio.create_task(service.answer(EXAMPLE_QUESTION, slow, 0.0)) for _ in range(2)]
    await backend.until_asked(2)
    report = await service.plan(SloRequest(latency_ms=40, min_f1=0.6))
    assert report.decision.option is not None
    assert report.decision.option.plan.name == "small"
    assert backend.gate is not None
    backend.gate.set()
    await asyncio.gather(*first)
    again = await service.plan(SloRequest(latency_ms=40, min_f1=0.6))
    assert again.decision.reason is Reason.MEETS_SLO


async def test_strict_is_refused_for_ever_or_for_now() -> None:
    """The caller must know whether to try again."""
    service = make_service(clock=lambda: 0.0)
    with pytest.raises(Infeasible) as refused:
        await service.answer(
            EXAMPLE_QUESTION, SloRequest(latency_ms=20, min_f1=0.6, policy=STRICT), 0.0
        )
    assert [p["plan"] for p in refused.value.nearest] == ["small", "large"]
    assert service.serving is not None
    for _ in range(4):
        service.serving.latency.begin("large", Size(64, 1), 0.0)
    with pytest.raises(Overloaded) as busy:
        await service.answer(
            EXAMPLE_QUESTION, SloRequest(latency_ms=50, min_f1=0.6, policy=STRICT), 0.0
        )
    drained_ms = 4 * 20 / 2  # on average; strict asks for the 99th percentile
    assert drained_ms * 0.9 < busy.value.retry_after_ms < drained_ms * 3


async def test_strict_is_refused_where_one_answer_in_fifty_would_be_late() -> None:
    """`small` takes 7 ms with the gateway, its P95 is 10.5 and its P99 14: strict counts on the P99."""
    service = make_service(clock=lambda: 0.0)
    with pytest.raises(Infeasible):
        await service.answer(
            EXAMPLE_QUESTION, SloRequest(latency_ms=12, min_f1=0.4, policy=STRICT), 0.0
        )
    with pytest.raises(Overloaded):  # once it was seen to hold here
        await service.answer(
            EXAMPLE_QUESTION, SloRequest(latency_ms=15, min_f1=0.4, policy=STRICT), 0.0
        )
    in_time = SloRequest(
        latency_ms=13, min_f1=0.4
    )  # of 12.8: not yet seen here, so 1.2 times as wide
    answered = await service.answer(EXAMPLE_QUESTION, in_time, 0.0)
    assert answered.decision.reason is Reason.MEETS_SLO


@pytest.mark.parametrize(("spent_ms", "error"), [(20.0, Overloaded), (60.0, DeadlineExceeded)])
async def test_a_strict_request_is_late_only_when_its_time_has_passed(
    spent_ms: float, error: type[Exception]
) -> None:
    """As long as there is time left, it is shed because it will not suffice: 429, not 504."""
    backend = FakeBackend()
    service = make_service(backend, clock=lambda: spent_ms)
    strict = SloRequest(latency_ms=50, min_f1=0.6, policy=STRICT)
    with pytest.raises(error):
        await service.answer(EXAMPLE_QUESTION, strict, 0.0)
    assert backend.asked == []


async def test_a_deadline_in_the_past_is_refused_at_once() -> None:
    """No model is asked for an answer that nobody can use."""
    backend = FakeBackend()
    with pytest.raises(DeadlineExceeded):
        await make_service(backend).answer(EXAMPLE_QUESTION, SloRequest(), now_ms() - 10_000)
    assert backend.asked == []


async def test_the_deadline_ends_the_work() -> None:
    """It runs through everything, the model server included."""
    backend = FakeBackend(asyncio.Event())
    with pytest.raises(DeadlineExceeded):
        await make_service(backend).answer(EXAMPLE_QUESTION, SloRequest(timeout_ms=1_000), now_ms())
    assert backend.cancelled == 1


async def test_an_abandoned_request_cancels_the_backend() -> None:
    """And no longer counts as work in flight."""
    backend = FakeBackend(asyncio.Event())
    service = make_service(backend)
    task = asyncio.create_task(service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms()))
    await backend.until_asked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.cancelled == 1
    assert service.metrics.registry.get_sample_value("bertier_requests_in_flight") == 0
    assert service.serving is not None
    assert not service.serving.latency.busy


async def test_an_answer_after_the_target_is_an_answer_that_says_so() -> None:
    """Only the deadline takes an answer away."""
    times = iter([0.0, *[100.0] * 20])
    answered = await make_service(clock=lambda: next(times)).answer(
        EXAMPLE_QUESTION, SloRequest(latency_ms=50), 0.0
    )
    assert SloViolation.LATE in answered.violations


async def test_an_uncertified_variant_answers_and_says_so() -> None:
    """Strict refuses it, the others use it."""
    service = make_service()
    service.serving = serving_set(small_and_large(), Trust.UNCERTIFIED)
    answered = await service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms())
    assert SloViolation.UNCERTIFIED in answered.violations
    with pytest.raises(Infeasible):
        await service.answer(EXAMPLE_QUESTION, SloRequest(policy=STRICT, min_f1=0.1), now_ms())


async def test_an_unknown_variant_is_refused_with_the_known() -> None:
    """A typing error in an evaluation must not be routed."""
    with pytest.raises(UnknownVariant, match="small, large"):
        await make_service().answer(EXAMPLE_QUESTION, SloRequest(variant="huge"), now_ms())


async def test_a_variant_that_is_not_served_is_unavailable() -> None:
    """It may come back."""
    service = make_service()
    assert service.serving is not None
    service.serving = service.serving.without({"large": "another file"})
    with pytest.raises(BackendUnavailable):
        await service.answer(EXAMPLE_QUESTION, SloRequest(variant="large"), now_ms())


async def test_without_a_catalog_nothing_is_answered() -> None:
    """The frontends are up before the models are."""
    service = make_service()
    service.serving = None
    with pytest.raises(BackendUnavailable):
        await service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms())


@pytest.mark.parametrize(
    "question", [Question("x", "y" * 100_001), Question("x" * 2001, "y"), Question("x " * 200, "y")]
)
async def test_a_text_over_its_limit_is_refused(question: Question) -> None:
    """Characters for both, tokens for the question."""
    with pytest.raises(TextTooLong):
        await make_service().answer(question, SloRequest(), now_ms())


class Watched:
    """The policy, which remembers the threads that it was asked in."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def quantile_for(self, policy: SloPolicy, /) -> float:
        self.threads.add(threading.get_ident())
        return routing_policy.quantile_for(policy)

    def choose_early(self, *_: object) -> None:
        """Every plan is looked at."""

    def choose(
        self, slo: Slo, options: Sequence[Option], spent_ms: float, failing: Collection[str], /
    ) -> Decision:
        return routing_policy.choose(slo, options, spent_ms, failing)


@pytest.mark.parametrize("context", [CONTEXT, CONTEXT * 200])
async def test_a_plan_is_made_in_the_thread_of_all_decisions(context: str) -> None:
    """The latency model belongs to one thread: another one would see it half changed."""
    chooser = Watched()
    service = make_service(chooser=chooser)
    body = {"question": QUESTION, "context": context}
    async with client(service) as http:
        assert (await http.post("/v1/plan", json=body)).status_code == 200
    assert chooser.threads == {threading.get_ident()}


async def test_a_plan_of_a_context_that_is_too_long_is_a_plan_of_a_part() -> None:
    """A request that would get a partial answer is not reported as refused."""
    report = await make_service(clock=lambda: 0.0).plan(SloRequest(latency_ms=30), n_tokens=40_000)
    assert report.decision.option is not None
    assert SloViolation.PARTIAL in report.decision.violations
    assert report.size.n_windows < 40_000 / codec.MAX_TOKENS
    strict = SloRequest(latency_ms=30, policy=STRICT)
    refused = await make_service(clock=lambda: 0.0).plan(strict, n_tokens=40_000)
    assert refused.decision.option is None


async def test_a_long_context_is_answered_from_windows() -> None:
    """Any length up to the limit, with offsets into the whole."""
    context = "Nothing is said here. " * 1000 + CONTEXT
    answered = await make_service().answer(
        Question(QUESTION, context), SloRequest(latency_ms=60_000), now_ms()
    )
    assert answered.answer.text == context[answered.answer.start : answered.answer.end]


async def test_decisions_are_counted_by_reason() -> None:
    """The dashboard shows why traffic went where it went."""
    service = make_service()
    await service.answer(EXAMPLE_QUESTION, SloRequest(min_f1=0.4), now_ms())
    labels = {"slo_class": "standard", "plan": "small", "reason": "meets_slo"}
    assert service.metrics.registry.get_sample_value("bertier_decisions_total", labels) == 1


async def test_predictions_are_counted_by_whether_they_held() -> None:
    """Coverage is published, not claimed; a request that timed out is no success."""
    backend = FakeBackend()
    service = make_service(backend)

    def count(outcome: str) -> float:
        labels = {"variant": "small", "quantile": "0.95", "outcome": outcome}
        found = service.metrics.registry.get_sample_value(
            "bertier_latency_predictions_total", labels
        )
        return found or 0

    answered = 0
    while not count("within"):  # at once, but on a full host
        await service.answer(EXAMPLE_QUESTION, SloRequest(variant="small"), now_ms())
        answered += 1
        assert answered == count("within") + count("beyond")
    before = count("beyond")
    backend.gate = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await service.answer(
            EXAMPLE_QUESTION, SloRequest(variant="small", timeout_ms=150), now_ms()
        )
    assert (count("within"), count("beyond")) == (1, before + 1)


FAILED = BackendError("small: broken")
SMALL_WOULD_DO = SloRequest(min_f1=0.4)


def count(service: AnswerService, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_what_fails_is_asked_of_another_variant() -> None:
    """The caller gets an answer that meets the SLO, from the next cheapest plan."""
    backend = FakeBackend()
    backend.errors["small"] = FAILED
    service = make_service(backend)
    answered = await service.answer(EXAMPLE_QUESTION, SMALL_WOULD_DO, now_ms())
    assert (answered.variant, answered.decision.reason) == ("large", Reason.MEETS_SLO)
    assert backend.asked == ["small", "large"]
    assert count(service, "bertier_retries_total", outcome="retried") == 1
    decided = {"slo_class": "standard", "reason": "meets_slo"}
    assert count(service, "bertier_decisions_total", plan="small", **decided) == 1
    assert count(service, "bertier_decisions_total", plan="large", **decided) == 1


async def test_what_ended_a_model_twice_is_asked_of_no_other() -> None:
    """It would end that one, too, for everybody."""
    backend = FakeBackend()
    backend.errors["small"] = ModelCrashed("small: ended")
    service = make_service(backend)
    with pytest.raises(ModelCrashed):
        await service.answer(EXAMPLE_QUESTION, SMALL_WOULD_DO, now_ms())
    assert backend.asked == ["small"]


async def test_a_variant_that_keeps_failing_is_routed_around_and_comes_back() -> None:
    """At once, without a request that fails; and when its time has come, one request tries it."""
    backend = FakeBackend()
    backend.errors["small"] = FAILED
    now = [0.0]
    service = make_service(backend, clock=lambda: now[0])
    for _ in range(breaker.IN_A_ROW):
        await service.answer(EXAMPLE_QUESTION, SMALL_WOULD_DO, now[0])
    assert count(service, "bertier_breaker_open", variant="small") == 1
    backend.asked.clear()
    assert (await service.answer(EXAMPLE_QUESTION, SMALL_WOULD_DO, now[0])).variant == "large"
    assert backend.asked == ["large"]
    backend.errors.clear()
    now[0] += breaker.FIRST_OPEN_MS
    assert (await service.answer(EXAMPLE_QUESTION, SMALL_WOULD_DO, now[0])).variant == "small"
    assert count(service, "bertier_breaker_open", variant="small") == 0
    assert count(service, "bertier_breaker_changes_total", variant="small", state="open") == 1
    assert count(service, "bertier_breaker_changes_total", variant="small", state="closed") == 1


async def test_a_variant_whose_logits_are_not_finite_is_routed_around() -> None:
    """NaN would read as "no answer", and be sure of it: the next plan answers, and the breaker counts."""
    backend = FakeBackend()
    backend.logits["small"] = float("nan")
    service = make_service(backend)
    for _ in range(breaker.IN_A_ROW):
        assert (await service.answer(EXAMPLE_QUESTION, SMALL_WOULD_DO, now_ms())).variant == "large"
    assert count(service, "bertier_breaker_open", variant="small") == 1
    backend.asked.clear()
    assert (await service.answer(EXAMPLE_QUESTION, SMALL_WOULD_DO, now_ms())).variant == "large"
    assert backend.asked == ["large"]


async def test_without_another_plan_the_caller_gets_the_failure() -> None:
    """A pinned variant has none; neither has a strict floor that only one plan keeps."""
    backend = FakeBackend()
    backend.errors = {"small": FAILED, "large": BackendError("large: broken")}
    service = make_service(backend)
    with pytest.raises(BackendError, match="small: broken"):
        await service.answer(EXAMPLE_QUESTION, SloRequest(variant="small"), now_ms())
    only_large = SloRequest(min_f1=0.6, latency_ms=1000, policy=STRICT)
    with pytest.raises(BackendError, match="large: broken"):
        await service.answer(EXAMPLE_QUESTION, only_large, now_ms())
    assert backend.asked == ["small", "large"]
    assert count(service, "bertier_retries_total", outcome="no_plan") == 2


async def test_an_slo_only_a_failing_variant_could_meet_is_unavailable_not_infeasible() -> None:
    """The SLO can be met again later; 422 would make the caller give up."""
    backend = FakeBackend()
    backend.error = BackendError("broken")
    service = make_service(backend)
    only_large = SloRequest(min_f1=0.6, latency_ms=1000, policy=STRICT)
    for _ in range(breaker.IN_A_ROW):
        with pytest.raises(BackendError, match="broken"):
            await service.answer(EXAMPLE_QUESTION, only_large, now_ms())
    backend.asked.clear()
    with pytest.raises(BackendUnavailable, match=r"1000 ms at F1 >= 0\.600"):
        await service.answer(EXAMPLE_QUESTION, only_large, now_ms())
    assert backend.asked == []
    assert count(
        service, "bertier_decisions_total", slo_class="standard", plan="none", reason="unavailable"
    )


async def test_retries_end_with_the_budget() -> None:
    """When all fail, asking everything twice would double the load on what is left."""
    backend = FakeBackend()
    backend.errors["small"] = FAILED
    service = AnswerService(backend, Settings(retry_share=0), Metrics())
    service.serving = serving_set(small_and_large())
    with pytest.raises(BackendError, match="small: broken"):
        await service.answer(EXAMPLE_QUESTION, SMALL_WOULD_DO, now_ms())
    assert backend.asked == ["small"]
    assert count(service, "bertier_retries_total", outcome="no_budget") == 1


async def test_a_second_try_keeps_to_the_first_deadline() -> None:
    """Where no other plan can still end in time, the failure is reported at once."""
    backend = FakeBackend()
    backend.errors["small"] = FAILED
    times = iter([*[0.0] * 8, *[90.0] * 20])
    service = make_service(backend, clock=lambda: next(times))
    with pytest.raises(BackendError, match="small: broken"):
        await service.answer(EXAMPLE_QUESTION, SloRequest(min_f1=0.4, latency_ms=25), 0.0)
    assert backend.asked == ["small"]
    assert count(service, "bertier_retries_total", outcome="no_plan") == 1


async def test_a_variant_that_hangs_opens_its_circuit() -> None:
    """Nobody else gets an answer from it either."""
    backend = FakeBackend(asyncio.Event())
    service = make_service(backend)
    while len(backend.asked) < breaker.IN_A_ROW:  # a stall of the host may end one before it asks
        with pytest.raises(DeadlineExceeded):
            await service.answer(
                EXAMPLE_QUESTION, SloRequest(variant="small", timeout_ms=200), now_ms()
            )
    with pytest.raises(BackendUnavailable):
        await service.answer(
            EXAMPLE_QUESTION, SloRequest(variant="small", timeout_ms=200), now_ms()
        )
