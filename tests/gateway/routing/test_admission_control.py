"""Who waits, who is let in and who is refused, by a real service before a model server that can be held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import httpx2
import pytest

from gateway.clock import now_ms
from gateway.domain import Question, Size, Slo, SloPolicy, SloRequest
from gateway.errors import Overloaded
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.routing.admission_control import (
    HELD,
    LAG_EVERY_MS,
    REFUSAL_GAP_MS,
    AdmissionControl,
)
from gateway.routing.admission_queue import ROOM_MS
from gateway.settings import Settings
from tests import live, virtual_time
from tests.fakes import CONTEXT, QUESTION, FakeBackend, serving_set, small_and_large

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)
PATIENT = SloRequest(latency_ms=60_000.0)
STANDARD = Slo(250.0, 0.5, SloPolicy.PREFER_LATENCY, 1_000.0, "standard")
STRICT = SloRequest(latency_ms=60.0, policy=SloPolicy.STRICT, min_f1=0.4)


def service_before(backend: FakeBackend, **settings: Any) -> AnswerService:
    service = AnswerService(backend, Settings(**settings), Metrics())
    service.serving = serving_set(small_and_large())
    return service


def fill(service: AnswerService, n: int) -> list[Any]:
    """Have `n` requests of 5 and `n` of 20 ms in flight, on two cores, begun later: else they would soon seem to hang."""
    assert service.serving is not None
    latency, began_ms = service.serving.latency, now_ms() + 60_000.0
    return [latency.begin(v, Size(64, 1), began_ms) for v in ("small", "large") * n]


async def waiting(service: AnswerService, n: int) -> None:
    """Return when so many wait unread."""
    async with asyncio.timeout(10):
        while service.admission.n_waiting != n:  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0)


async def test_an_idle_gateway_lets_everybody_in_at_once() -> None:
    """Admission costs next to nothing then."""
    service = service_before(FakeBackend())
    for _ in range(20):
        await service.answer(EXAMPLE_QUESTION, PATIENT, now_ms())
    assert service.admission.n_waiting == 0


async def test_the_lag_of_the_event_loop_is_measured_while_a_request_is_in_flight() -> None:
    """It concerns requests alone; a gateway that measures without any never sleeps."""
    clock, backend = [0.0], FakeBackend(gate=asyncio.Event())
    service = AnswerService(backend, Settings(), Metrics(), clock=lambda: clock[0])
    service.serving = serving_set(small_and_large())
    lag = service.admission.lag
    measuring = asyncio.create_task(lag.run())
    await asyncio.sleep(0)
    clock[0] = 500.0
    assert lag.late_ms == 0.0
    asked = asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, clock[0]))
    await backend.until_asked()
    clock[0] += LAG_EVERY_MS + 300.0  # the loop is late: its timer has not run by now
    assert lag.late_ms == pytest.approx(300.0)
    assert backend.gate is not None
    backend.gate.set()
    await asked
    async with asyncio.timeout(10):
        while lag.late_ms:  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0)
    clock[0] += 10_000.0
    assert lag.late_ms == 0.0
    measuring.cancel()


async def test_requests_in_flight_are_counted_until_their_refusal_is_sent() -> None:
    """The gauge shows who has no answer yet: those who are admitted, and those who are held back."""
    backend = FakeBackend(gate=asyncio.Event())
    service = service_before(backend, max_in_flight=1)

    def shown() -> float | None:
        return service.metrics.registry.get_sample_value("bertier_requests_in_flight")

    first = asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms()))
    await backend.until_asked()
    refused = asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms()))
    async with asyncio.timeout(10):
        while shown() != 2.0:  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0)
    assert backend.gate is not None
    backend.gate.set()
    await first
    with pytest.raises(Overloaded):
        await refused
    assert shown() == 0.0


async def test_a_request_waits_until_there_is_room_and_is_answered() -> None:
    """Nobody is refused for the length of a queue."""
    service = service_before(FakeBackend())
    works = fill(service, 200)
    asked = [
        asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms())) for _ in range(5)
    ]
    await waiting(service, 5)
    assert service.serving is not None
    for work in works:
        service.serving.latency.leave(work, now_ms())
    answers = await asyncio.gather(*asked)
    assert len(answers) == 5
    assert service.admission.in_flight == 0


async def test_a_short_target_is_answered_while_longer_ones_use_all_cores() -> None:
    """It begins beside them, before the requests with longer targets that wait."""
    gate = asyncio.Event()
    service = service_before(backend := FakeBackend(gate))
    ask = partial(service.answer, EXAMPLE_QUESTION)
    admitted = [asyncio.create_task(ask(PATIENT, now_ms())) for _ in range(2)]
    while len(backend.asked) < 2:  # noqa: ASYNC110 (there is no event for it)
        await asyncio.sleep(0)
    works = fill(service, 200)
    behind = [asyncio.create_task(ask(PATIENT, now_ms())) for _ in range(3)]
    await waiting(service, 3)
    service.admission._gap_ms = 10.0
    service.admission.lag._last_ms = 500.0  # nor for an event loop that is late
    short_slo = replace(PATIENT, latency_ms=30_000.0)
    patient = replace(STANDARD, latency_ms=60_000.0, timeout_ms=240_000.0)
    shown_ms = [
        service.admission.expected_wait_ms(slo, 2, now_ms())
        for slo in (replace(patient, latency_ms=30_000.0), patient)
    ]
    assert shown_ms[0] == 0.0 < shown_ms[1]
    short = asyncio.create_task(ask(short_slo, now_ms()))
    async with asyncio.timeout(10):
        while len(backend.asked) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert service.admission.n_waiting == 3
    service.admission.lag._last_ms = 0.0
    gate.set()
    await short
    for work in works:
        assert service.serving is not None
        service.serving.latency.leave(work, now_ms())
    await asyncio.gather(*admitted, *behind)


async def test_who_leaves_in_the_moment_of_its_admission_leaves_nothing_behind() -> None:
    service = service_before(FakeBackend())
    works = fill(service, 200)
    task = asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms()))
    await waiting(service, 1)
    assert service.serving is not None
    for work in works:
        service.serving.latency.leave(work, now_ms())
    service.admission._pump()
    task.cancel()  # admitted, and not running yet
    with pytest.raises(asyncio.CancelledError):
        await task
    queue = service.admission._queue
    assert (len(queue), service.admission.in_flight, len(queue._admitted)) == (0, 0, 0)
    assert not queue._inside


async def test_a_strict_request_is_refused_at_once_or_let_in_past_those_who_wait() -> None:
    """It is never held: its caller has better things to do."""
    service = service_before(FakeBackend())
    fill(service, 200)
    patient = [
        asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms())) for _ in range(3)
    ]
    await waiting(service, 3)
    with pytest.raises(Overloaded, match=r"cannot be met now: .* fastest plan takes"):
        await service.answer(EXAMPLE_QUESTION, STRICT, now_ms())
    easy = SloRequest(latency_ms=60_000.0, policy=SloPolicy.STRICT, min_f1=0.4)
    await service.answer(EXAMPLE_QUESTION, easy, now_ms())
    assert service.admission.n_waiting < 3  # who passes others lets one of them in, too
    for task in patient:
        task.cancel()
    await asyncio.gather(*patient, return_exceptions=True)
    assert (service.admission.n_waiting, service.admission.in_flight) == (0, 0)


async def test_who_waits_in_vain_learns_the_rule_and_the_numbers() -> None:
    """As soon as no plan is predicted to answer by the deadline."""
    service = service_before(FakeBackend())
    fill(service, 500)
    with pytest.raises(Overloaded, match=r"deadline of 40 ms: \d+ ms .* queue, .* takes \d+ ms"):
        await service.answer(EXAMPLE_QUESTION, SloRequest(latency_ms=10.0), now_ms())


async def test_more_than_may_be_in_flight_are_refused_whatever_they_ask() -> None:
    """Memory is bounded; the refusal of a patient caller is held back, that of a strict one is not."""
    gate = asyncio.Event()
    service = service_before(FakeBackend(gate), max_in_flight=1)
    first = asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms()))
    assert isinstance(service.backend, FakeBackend)
    await service.backend.until_asked()
    held = asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms()))
    with pytest.raises(Overloaded, match="max_in_flight is 1"):
        await service.answer(EXAMPLE_QUESTION, STRICT, now_ms())
    assert not held.done()
    with pytest.raises(Overloaded, match="max_in_flight is 1"):
        await held
    gate.set()
    await first


def test_refusals_leave_one_after_the_other() -> None:
    """Callers who come back at once would take the CPU that answers need; strict ones are never held."""

    async def refuse(clock: Callable[[], float]) -> tuple[list[float], list[float]]:
        control = AdmissionControl(8, lambda: None, clock)

        async def one(slo: Slo) -> float:
            began_ms = clock()
            await control.hold_back(slo, 0.0, Overloaded("busy", 1.0))
            return clock() - began_ms

        alone = [await one(STANDARD)]
        await asyncio.sleep(1)
        strict = replace(STANDARD, policy=SloPolicy.STRICT)
        crowd = await asyncio.gather(one(strict), *(one(STANDARD) for _ in range(60)))
        return alone, crowd

    alone, (strict_ms, *held_ms) = virtual_time.run(refuse)
    assert alone == [1.0]
    assert strict_ms == 0.0
    latest_ms = HELD * STANDARD.timeout_ms
    assert held_ms == pytest.approx(
        [max(1.0, min(n * REFUSAL_GAP_MS, latest_ms)) for n in range(60)]
    )


async def test_a_caller_who_leaves_while_it_waits_leaves_nothing_behind() -> None:
    """Neither a place in the queue nor one in flight."""
    service = service_before(FakeBackend())
    fill(service, 200)
    asked = asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms()))
    await waiting(service, 1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert (service.admission.n_waiting, service.admission.in_flight) == (0, 0)


async def test_the_plan_that_is_shown_counts_who_waits() -> None:
    """`/v1/plan` and admission agree: it adds the wait, and a cheaper plan for those behind."""
    service = service_before(FakeBackend())
    asked = SloRequest(latency_ms=60_000.0, min_f1=0.6)
    works = fill(service, 200)
    assert service.serving is not None
    alone = (await service.plan(asked)).decision.option
    tasks = [
        asyncio.create_task(service.answer(EXAMPLE_QUESTION, PATIENT, now_ms())) for _ in range(8)
    ]
    await waiting(service, 8)
    crowded = (await service.plan(asked)).decision.option
    assert alone is not None
    assert crowded is not None
    assert crowded.behind_ms > alone.behind_ms == 0.0
    for work in works:
        service.serving.latency.leave(work, now_ms())
    await asyncio.gather(*tasks)


async def test_a_request_over_http_waits_unread_and_is_refused_unread() -> None:
    """429 without its body: a gateway that is asked for more than it can answer reads no more."""
    async with live.gateway(classes={}) as running:
        fill(running.service, 1_000)
        host, port = running.http_url.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /v1/answer HTTP/1.1\r\nHost: x\r\nSLO-Class: interactive\r\nContent-Length: 99\r\n\r\n"
        writer.write(head.encode())  # and no body at all
        async with asyncio.timeout(20):
            assert b" 429 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        async with httpx2.AsyncClient(base_url=f"http://{running.http_url}") as client:
            refused = await client.post(
                "/v1/answer",
                json={"question": QUESTION, "context": CONTEXT},
                headers={"SLO-Class": "interactive"},
            )
        assert refused.json()["type"] == "urn:bertier:problem:overloaded"
        assert int(refused.headers["Retry-After"]) * 1e3 >= refused.json()["retry_after_ms"]
        sheds = running.service.metrics.registry.get_sample_value(
            "bertier_sheds_total", {"frontend": "http", "reason": "unreachable"}
        )
        assert sheds == 2
        assert not running.backend.asked


def test_room_is_less_than_the_tightest_class_may_wait() -> None:
    """The queue inside is first come, first served: who is let in must not block who is urgent."""
    assert Settings().classes["interactive"].latency_ms / 2 > ROOM_MS
