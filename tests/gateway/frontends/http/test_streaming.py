"""Bodies as they come in, and callers who leave."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI

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
        "bertier_request_duration_seconds_sum",
        {"frontend": "http", "slo_class": "standard", "task": "qa"},
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
    labels = {"frontend": "http", "slo_class": "standard", "task": "qa"}
    sample = service.metrics.registry.get_sample_value
    assert sample("bertier_request_duration_seconds_count", labels) == 1
    assert sample("bertier_request_duration_seconds_sum", labels) == 0


UNADMITTED = ("/v1/answers", "/v2/models/qa/infer", "/v1/plan", "/v1/feedback")
MIB = 1 << 20
PART = b" " * (700 << 10)  # two of them are more than a MiB
GZIP = {"content-encoding": "gzip"}


def nearly_full(**settings: Any) -> tuple[AnswerService, FastAPI]:
    """Return a worker of so many that its part of the budget is the largest body, a MiB."""
    service = make_service(workers=256, max_batch_bytes=MIB, max_body_bytes=MIB, **settings)
    return service, make_app(service)


def sends(path: str, body: bytes = PART, headers: dict[str, str] | None = None) -> Caller:
    """Return a caller who sends this and no end of it."""
    caller = Caller(path, headers)
    caller.send(body, more=True)
    return caller


async def until_held(app: FastAPI, size_bytes: int = len(PART)) -> None:
    for _ in range(1_000):
        if app.state.bodies.held_bytes == size_bytes:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{app.state.bodies.held_bytes} bytes are held, not {size_bytes}")


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("path", UNADMITTED)
async def test_bodies_that_are_read_at_a_time_are_bounded_together(path: str) -> None:
    """They count as no request in flight: connections alone would bound their memory."""
    service, app = nearly_full()
    first = sends(path).start(app)
    await until_held(app)
    second = sends(path)
    await second.start(app)
    head, body = second.sent.get_nowait(), second.sent.get_nowait()
    assert head["status"] == 429
    assert dict(head["headers"])[b"retry-after"] == b"1"
    assert json.loads(body["body"])["type"] == "urn:bertier:problem:overloaded"
    labels = {"frontend": "http", "reason": "full"}
    assert service.metrics.registry.get_sample_value("bertier_sheds_total", labels) == 1
    await until_held(app)
    await cancel(first)


@pytest.mark.parametrize("path", UNADMITTED)
async def test_a_compressed_body_counts_by_what_it_inflates_to(path: str) -> None:
    """A few bytes sent can become many held."""
    _, app = nearly_full()
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(PART) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert len(packed) < 2_000
    first = sends(path, packed, GZIP).start(app)
    await until_held(app)
    second = sends(path, packed, GZIP)
    await second.start(app)
    assert second.sent.get_nowait()["status"] == 429
    await cancel(first)


@pytest.mark.parametrize("path", UNADMITTED)
async def test_the_largest_body_fits_while_no_other_is_read(path: str) -> None:
    """Else it could never be sent."""
    _, app = nearly_full()
    for _ in range(2):
        caller = sends(path, b" " * MIB)
        task = caller.start(app)
        await until_held(app, MIB)
        caller.send(b"")
        await task
        assert caller.sent.get_nowait()["status"] != 429


@pytest.mark.parametrize("path", UNADMITTED)
@pytest.mark.parametrize("end", ["read", "left", "too slow", "too long", "broken", "cancelled"])
async def test_bytes_are_given_back_however_reading_ends(path: str, end: str) -> None:
    """Else the gateway would refuse forever after."""
    _, app = nearly_full(body_timeout_ms=50 if end == "too slow" else 60_000)
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(PART) + packer.flush(zlib.Z_SYNC_FLUSH)
    caller = sends(path, packed, GZIP) if end == "broken" else sends(path)
    task = caller.start(app)
    await until_held(app)
    if end == "left":
        caller.leave()
    elif end == "cancelled":
        task.cancel()
    elif end != "too slow":
        caller.send({"read": b"{}", "too long": PART, "broken": b"\xff" * 99}[end])
    with suppress(asyncio.CancelledError):
        await task
    assert app.state.bodies.held_bytes == 0


async def test_a_question_is_read_while_other_bodies_fill_their_budget() -> None:
    """It is admitted before it is read, and `max_in_flight` bounds it."""
    _, app = nearly_full()
    first = sends("/v1/answers", b" " * MIB).start(app)
    await until_held(app, MIB)
    caller = Caller("/v1/answer")
    caller.send(json.dumps(QUESTION_BODY).encode())
    await caller.start(app)
    assert caller.sent.get_nowait()["status"] == 200
    await cancel(first)


@pytest.mark.parametrize(
    ("settings", "limit_bytes"),
    [
        ({}, 256 * MIB),
        ({"workers": 4}, 64 * MIB),
        ({"workers": 64}, 32 * MIB),
        ({"max_batch_bytes": 512 * MIB}, 512 * MIB),
        ({"workers": 64, "max_batch_bytes": 1, "max_body_bytes": 9 * MIB}, 9 * MIB),
    ],
)
def test_workers_share_the_budget_but_each_has_room_for_one_body(
    settings: dict[str, Any], limit_bytes: int
) -> None:
    """It bounds the memory of the gateway, and must not refuse what the settings allow."""
    assert make_app(make_service(**settings)).state.bodies.limit_bytes == limit_bytes


@pytest.mark.parametrize("path", ["/v1/answer", *UNADMITTED])
@pytest.mark.parametrize("length", ["9" * 5_000, "-1", "1_0", "x"])
async def test_a_length_that_is_none_is_malformed(path: str, length: str) -> None:
    """Python refuses to read thousands of digits with an error of its own."""
    caller = Caller(path, {"content-length": length})
    caller.send(b"{}")
    await caller.start(make_app(make_service()))
    assert caller.sent.get_nowait()["status"] == 400
