"""`Expect: 100-continue`, spoken over a real socket: the body is asked for only where it is wanted."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests import live
from tests.asgi import QUESTION_BODY
from tests.gateway.frontends.http.test_connections import LOCKED, WAIT_S, closing, connected

BODY = json.dumps(QUESTION_BODY).encode()


def head(*lines: str, size: int = len(BODY)) -> bytes:
    fields = ["Host: x", "Expect: 100-continue", f"Content-Length: {size}", *lines]
    return "\r\n".join(["POST /v1/answer HTTP/1.1", *fields, "", ""]).encode()


async def test_a_body_that_is_wanted_is_asked_for() -> None:
    """curl waits a second for it where it is not."""
    async with live.gateway() as running:
        reader, writer = await connected(running)
        writer.write(head())
        async with asyncio.timeout(WAIT_S):
            asked = await reader.readuntil(b"\r\n\r\n")
            writer.write(BODY)
            answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in answer


@pytest.mark.parametrize(
    ("request_head", "settings", "status"),
    [
        (head(), LOCKED, 401),
        (head("SLO-Latency-Ms: soon"), {}, 400),
        (head("Content-Encoding: br"), {}, 415),
        (head(size=10 << 20), {}, 413),
    ],
)
async def test_a_body_that_is_not_wanted_is_not_asked_for(
    request_head: bytes, settings: dict[str, object], status: int
) -> None:
    """What the headers decide is answered at once, and the connection ends: the body may still come, or not."""
    async with live.gateway(**settings) as running:
        streams = await connected(running)
        streams[1].write(request_head)
        answer = await closing(streams)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"100 Continue" not in answer
    assert b"connection: close" in answer
