"""A stopping gateway reports not ready first, and stops later."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable

import uvicorn

from gateway.frontends.http.connections import Limits
from gateway.frontends.http.shutdown import Server
from gateway.observability.metrics import Metrics
from tests import asgi, live


async def _nothing(*_: object) -> None:
    return


def server(delay_ms: float, leave: Callable[[], None]) -> Server:
    return Server(uvicorn.Config(_nothing), Limits(), Metrics(), delay_ms, leave)


async def test_it_says_that_it_leaves_and_stops_later() -> None:
    """Who listens has that long to send callers elsewhere."""
    left = asyncio.Event()
    stopping = server(1.0, left.set)
    stopping.handle_exit(signal.SIGTERM, None)
    assert not stopping.should_exit
    async with asyncio.timeout(5):
        await left.wait()
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, later.set)
        await later.wait()
    assert stopping.should_exit


async def test_a_second_signal_waits_for_nothing() -> None:
    """Somebody at a terminal presses Ctrl-C again."""
    stopping = server(3_600_000.0, lambda: None)
    stopping.handle_exit(signal.SIGINT, None)
    assert not stopping.should_exit
    stopping.handle_exit(signal.SIGINT, None)
    assert stopping.should_exit


async def test_without_a_delay_it_stops_at_once() -> None:
    """The default: a terminal is no balancer."""
    stopping = server(0.0, lambda: None)
    stopping.handle_exit(signal.SIGTERM, None)
    assert stopping.should_exit


async def test_who_leaves_is_not_ready_answers_and_sends_callers_away() -> None:
    """A balancer looks at /readyz, a caller at its connection."""
    service = asgi.make_service()
    async with asgi.client(service) as http:
        before = await http.post("/v1/answer", json=asgi.QUESTION_BODY)
        service.leaving = True
        after = await http.post("/v1/answer", json=asgi.QUESTION_BODY)
        ready, alive = await http.get("/readyz"), await http.get("/healthz")
    assert (before.status_code, before.headers.get("connection")) == (200, None)
    assert (after.status_code, after.headers["connection"]) == (200, "close")
    assert (ready.status_code, alive.status_code) == (503, 200)
    assert "about to stop" in ready.text


async def test_a_stop_under_load_answers_every_request_that_was_accepted() -> None:
    """Also what is on its way over an open connection, and what the system accepted and nobody has read."""
    answered = 0
    body = json.dumps(asgi.QUESTION_BODY).encode()
    request = (
        b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nSLO-Class: batch\r\nContent-Length: %d\r\n\r\n"
    )

    async def ask_until_refused(host: str, port: int) -> None:
        """Ask over and over; raise where a request that was sent gets no answer."""
        nonlocal answered
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except ConnectionRefusedError:
                return
            try:
                while not reader.at_eof():
                    writer.write(request % len(body) + body)
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert b" 200 " in head.split(b"\r\n", 1)[0]
                    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                    await reader.readexactly(length)
                    answered += 1
                    if b"connection: close" in head:
                        break
            finally:
                writer.close()
                await writer.wait_closed()

    async with live.gateway() as running, asyncio.timeout(60):
        host, port = running.http_url.split(":")
        async with asyncio.TaskGroup() as callers:
            for _ in range(50):
                callers.create_task(ask_until_refused(host, int(port)))
            await running.backend.until_asked(100)
            await running.server.shutdown()
    assert answered >= 100


async def test_a_stop_waits_for_no_idle_connection() -> None:
    """Clients keep connections open for as long as they may."""
    async with live.gateway() as running, asyncio.timeout(20):
        host, port = running.http_url.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"}")
        await running.server.shutdown()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
