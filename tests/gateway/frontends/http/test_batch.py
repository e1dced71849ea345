"""Many questions in one HTTP request: lists and lines, each item for itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import cache
from itertools import pairwise
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.request.service import AnswerService
from tests.asgi import QUESTION_BODY, Caller, make_app, make_service, outcome, post
from tests.fakes import QUESTION, FakeBackend
from tests.texts import PIECES

NDJSON = {"content-type": "application/x-ndjson"}


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


MIXED = [
    QUESTION_BODY | {"id": "a"},
    QUESTION_BODY | {"id": "b", "slo": {"min_f1": 0.1}},
    {"id": "c", "question": "", "context": "x"},
    7,
    QUESTION_BODY | {"id": "e", "slo": {"class": "gold"}},
    QUESTION_BODY | {"id": "f", "slo": {"min_f1": 7}},
    QUESTION_BODY | {"id": "g", "slo": {"variant": "small", "explain": True}},
]


def as_lines(items: list[Any]) -> bytes:
    return b"\n".join(json.dumps(item).encode() for item in items)


@pytest.mark.parametrize(
    "request_", [{"json": MIXED}, {"content": as_lines(MIXED), "headers": NDJSON}]
)
async def test_items_are_answered_in_order_and_fail_alone(request_: dict[str, Any]) -> None:
    """One bad item must not cost the others their answers."""
    response = await post(make_service(), "/v1/answers", **request_)
    a, b, c, d, e, f, g = lines(response)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert (a["id"], a["variant"]) == ("a", "large")
    assert (b["id"], b["variant"]) == ("b", "small")
    assert (c["id"], c["error"]["type"]) == ("c", "urn:bertier:problem:empty-text")
    assert (d["id"], d["error"]["status"]) == (None, 422)
    assert (e["id"], e["error"]["type"]) == ("e", "urn:bertier:problem:unknown-class")
    assert (f["id"], f["error"]["type"]) == ("f", "urn:bertier:problem:invalid-field")
    assert (g["variant"], g["explain"]["reason"]) == ("small", "pinned")


async def test_the_headers_slo_holds_for_each_item() -> None:
    """A list has one SLO unless an item has its own."""
    headers = {"SLO-Min-F1": "0.1"}
    response = await post(
        make_service(), "/v1/answers", json=[QUESTION_BODY, QUESTION_BODY], headers=headers
    )
    assert [line["variant"] for line in lines(response)] == ["small", "small"]


async def test_a_bad_or_long_line_fails_alone() -> None:
    """A stream goes on after a line that cannot be read."""
    good = json.dumps(QUESTION_BODY).encode()
    body = b"\n".join([b"{", good, b"", b'"' + b"x" * 500 + b'"', b'{"id": "\xff"}', good])
    service = make_service(max_body_bytes=300)
    response = await post(service, "/v1/answers", content=body, headers=NDJSON)
    received = [
        line["error"]["type"].rsplit(":")[-1] if "error" in line else "ok"
        for line in lines(response)
    ]
    assert received == ["malformed", "ok", "text-too-long", "malformed", "ok"]


@cache
def shared_app() -> FastAPI:
    return make_app(make_service())


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[str], list[bytes]]:
    """Return contexts, and NDJSON that asks of each, in the pieces in which it comes."""
    contexts = draw(st.lists(st.lists(PIECES, max_size=4).map(" ".join), max_size=6))
    ascii_ = draw(st.booleans())
    items = [
        json.dumps({"id": str(i), "question": QUESTION, "context": c}, ensure_ascii=ascii_)
        for i, c in enumerate(f"Normandy {c}" for c in contexts)
    ]
    ends = st.sampled_from(["\n", "\r\n", "\n\n", "\r\n \r\n"])
    body = "".join(item + draw(ends) for item in items)
    body = draw(st.sampled_from(["", "\ufeff", "\ufeff\r\n", "\n"])) + body
    if draw(st.booleans()):
        body = body.rstrip("\r\n ")
    raw = body.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=30)))
    return contexts, [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]


@settings(max_examples=80, deadline=None)
@given(stream=streams())
def test_every_line_of_a_stream_is_answered(stream: tuple[list[str], list[bytes]]) -> None:
    """Byte-order marks, CRLF cut in two, U+2028 in a string, a last line without an end: all are sent."""
    contexts, pieces = stream

    async def ask() -> bytes:
        caller = Caller("/v1/answers", NDJSON)
        for piece in pieces:
            caller.send(piece, more=True)
        caller.send(b"")
        task = caller.start(shared_app())
        sent = [await caller.sent.get()]
        while sent[-1].get("more_body", True):
            sent.append(await caller.sent.get())
        task.cancel()
        return b"".join(message.get("body", b"") for message in sent)

    received = asyncio.run(ask()).decode()
    assert received.splitlines() == received.split("\n")[:-1], "a reader of lines sees more of them"
    answered = [json.loads(line) for line in received.splitlines()]
    assert [line["id"] for line in answered] == [str(i) for i in range(len(contexts))]
    for line, context in zip(answered, contexts, strict=True):
        assert line["answer"] == f"Normandy {context}"[line["start"] : line["end"]] != ""


@pytest.mark.parametrize(
    ("body", "status"), [(b"{}", 422), (b"[", 400), (b"[" + b" " * 2000 + b"]", 413)]
)
async def test_a_bad_list_is_refused_whole(body: bytes, status: int) -> None:
    """There is nothing to answer item by item."""
    response = await post(make_service(max_batch_bytes=1000), "/v1/answers", content=body)
    assert response.status_code == status


async def trickle() -> AsyncIterator[bytes]:
    yield b"["
    await asyncio.Event().wait()


REFUSED: dict[str, tuple[dict[str, Any], str, bool]] = {
    "too many in flight": ({"json": [QUESTION_BODY]}, "overloaded", True),
    "a body that is no list": ({"json": {}}, "invalid-field", False),
    "no JSON": ({"content": b"["}, "malformed", False),
    "too long": ({"content": b" " * 2000}, "text-too-long", False),
    "too slow": ({"content": trickle()}, "body-too-slow", False),
    "a bad header": ({"json": [], "headers": {"SLO-Min-F1": "7"}}, "invalid-header", False),
}


@pytest.mark.parametrize("why", REFUSED)
async def test_a_batch_that_is_refused_as_a_whole_is_counted(why: str) -> None:
    """Else nobody who watches the gateway sees it; what is our fault burns the class's budget."""
    request, kind, ours = REFUSED[why]
    service = make_service(max_batch_bytes=1000, body_timeout_ms=20, max_in_flight=1)
    service.admission.in_flight = int(ours)
    assert (await post(service, "/v1/answers", **request)).status_code >= 400
    assert outcome(service, "standard", kind) == 1
    assert violations(service) == ours


def violations(service: AnswerService) -> float:
    labels = {"slo_class": "standard", "objective": "latency", "outcome": "violated"}
    return service.metrics.registry.get_sample_value("bertier_slo_requests_total", labels) or 0.0


async def test_a_list_is_counted_by_its_items_alone() -> None:
    """A request that is not refused is as many as the questions in it."""
    service = make_service()
    await post(service, "/v1/answers", json=[QUESTION_BODY, QUESTION_BODY])
    assert outcome(service, "standard", "ok") == 2
    await post(service, "/v1/answers", json=[])
    assert outcome(service, "standard", "ok") == 2


async def test_items_run_side_by_side_but_not_too_many() -> None:
    """One list must not take the whole gateway."""
    gate = asyncio.Event()
    backend = FakeBackend(gate)
    service = make_service(backend, max_concurrent_items=2)
    asking = asyncio.create_task(post(service, "/v1/answers", json=[QUESTION_BODY] * 5))
    await backend.until_asked(2)
    for _ in range(20):  # turns of the loop in which a third could begin
        await asyncio.sleep(0)
    assert len(backend.asked) == 2
    gate.set()
    assert len(lines(await asking)) == 5


@pytest.fixture
def held() -> tuple[FakeBackend, AnswerService]:
    """A service whose inferences do not end."""
    backend = FakeBackend(asyncio.Event())
    return backend, make_service(backend)


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-ndjson"}])
async def test_who_leaves_a_list_cancels_its_items(
    held: tuple[FakeBackend, AnswerService], headers: dict[str, str]
) -> None:
    """A long list is the costliest work to go on with for nobody."""
    backend, service = held
    caller = Caller("/v1/answers", headers)
    items = [QUESTION_BODY, QUESTION_BODY]
    caller.send(as_lines(items) if headers else json.dumps(items).encode())
    task = caller.start(make_app(service))
    await backend.until_asked(2)
    caller.leave()
    await task
    assert backend.cancelled == 2


async def test_a_line_is_answered_before_the_next_is_sent() -> None:
    """A stream may be a conversation."""
    caller = Caller("/v1/answers", {"content-type": "application/x-ndjson"})
    task = caller.start(make_app(make_service()))
    await caller.sent.get()
    for _ in range(3):
        caller.send(json.dumps(QUESTION_BODY).encode() + b"\n", more=True)
        answered = await caller.sent.get()
        assert json.loads(answered["body"])["variant"] == "large"
    caller.send(b"")
    assert not (await caller.sent.get())["more_body"]
    task.cancel()


async def test_items_count_as_requests_in_flight() -> None:
    """One list could otherwise ask for more than all callers together may."""
    backend = FakeBackend(asyncio.Event())
    service = make_service(backend, max_in_flight=1, max_concurrent_items=2)
    sending = asyncio.create_task(post(service, "/v1/answers", json=[QUESTION_BODY, QUESTION_BODY]))
    await backend.until_asked(1)
    assert backend.gate is not None
    backend.gate.set()
    first, second = (json.loads(line) for line in (await sending).text.splitlines())
    assert first["answer"]
    assert (second["error"]["type"], second["error"]["status"]) == (
        "urn:bertier:problem:overloaded",
        429,
    )
