"""Bodies as they come in, and callers who leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from gateway.request.service import AnswerService
from tests.asgi import QUESTION_BODY, Caller, make_app, make_service, outcome, post
from tests.fakes import FakeBackend


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/answers", "/v1/plan", "/v2/models/qa/infer"])
async def test_a_body_that_never_ends_is_given_up(path: str) -> None:
    """Connections that trickle must not pile up."""

    async def trickle() -> AsyncIterator[bytes]:
        yield b'{"question": '
        await asyncio.Event().wait()

    service = make_service(body_timeout_ms=20)
    response = await post(service, path, content=trickle())
    assert response.status_code == 408
    assert response.json()["type"] == "urn:bertier:problem:body-too-slow"
    assert response.headers["connection"] == "close"


@pytest.fixture
def held() -> tuple[FakeBackend, AnswerService]:
    """A service whose inferences do not end."""
    backend = FakeBackend(asyncio.Event())
    return backend, make_service(backend)


async def test_who_leaves_cancels_the_work(held: tuple[FakeBackend, AnswerService]) -> None:
    """Nobody waits for it any more."""
    backend, service = held
    caller = Caller("/v1/answer")
    caller.send(json.dumps(QUESTION_BODY).encode())
    task = caller.start(make_app(service))
    await backend.until_asked()
    caller.leave()
    await task
    assert backend.cancelled == 1
    assert outcome(service, "standard", "gone") == 1


async def test_who_leaves_while_sending_is_counted_as_gone() -> None:
    """It is no failure of ours."""
    service = make_service()
    caller = Caller("/v1/answer")
    caller.send(b'{"quest', more=True)
    caller.leave()
    await caller.start(make_app(service))
    assert outcome(service, "standard", "gone") == 1


async def test_a_long_body_is_refused_before_it_is_read() -> None:
    """Its announced length is enough."""
    caller = Caller("/v1/answer", {"content-length": str(10 << 20)})
    await caller.start(make_app(make_service()))
    assert caller.sent.get_nowait()["status"] == 413
    assert caller.inbox.empty()


async def test_a_body_without_length_is_refused_at_the_limit() -> None:
    """What follows is never held."""
    caller = Caller("/v1/answer")
    for _ in range(10):
        caller.send(b" " * 400, more=True)
    await caller.start(make_app(make_service(max_body_bytes=1000)))
    assert caller.sent.get_nowait()["status"] == 413
    assert caller.inbox.qsize() == 7


async def test_the_upload_of_a_body_is_no_part_of_a_request_s_duration() -> None:
    """A caller's slow line must not look like a slow gateway."""
    service = make_service()
    caller = Caller("/v1/answer")
    body = json.dumps(QUESTION_BODY).encode()
    caller.send(body[:9], more=True)
    task = caller.start(make_app(service))
    await asyncio.sleep(0.05)  # the caller's slow line
    sent = time.perf_counter()
    caller.send(body[9:])
    await task
    measured = service.metrics.registry.get_sample_value(
        "bertier_request_duration_seconds_sum", {"frontend": "http", "slo_class": "standard"}
    )
    assert measured is not None
    assert 0 < measured <= time.perf_counter() - sent


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/answers"])
async def test_a_body_that_never_came_took_no_time_here(path: str) -> None:
    """The time that it was waited for is its caller's."""

    async def trickle() -> AsyncIterator[bytes]:
        yield b"["
        await asyncio.Event().wait()

    service = make_service(body_timeout_ms=50)
    await post(service, path, content=trickle())
    labels = {"frontend": "http", "slo_class": "standard"}
    sample = service.metrics.registry.get_sample_value
    assert sample("bertier_request_duration_seconds_count", labels) == 1
    assert sample("bertier_request_duration_seconds_sum", labels) == 0
