"""A gateway that is told to stop says so first, and stops later."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import uvicorn

from gateway.stopping import Server
from tests import asgi


async def _nothing(*_: object) -> None:
    return


def server(delay_ms: float, leave: Callable[[], None]) -> Server:
    return Server(uvicorn.Config(_nothing), delay_ms, leave)


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
        before = await http.post("/v1/answer", json=asgi.ASKED)
        service.leaving = True
        after = await http.post("/v1/answer", json=asgi.ASKED)
        ready, alive = await http.get("/readyz"), await http.get("/healthz")
    assert (before.status_code, before.headers.get("connection")) == (200, None)
    assert (after.status_code, after.headers["connection"]) == (200, "close")
    assert (ready.status_code, alive.status_code) == (503, 200)
    assert "about to stop" in ready.text
