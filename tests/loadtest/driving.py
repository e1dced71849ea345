"""Requests for tests of the driver, and a server that dies when it has answered a few."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from gateway.domain import Slo, SloPolicy
from loadtest.drive.outcomes import Outcome, Reply, Result
from loadtest.drive.schedule import Request
from optimizer.data.question_sets import Example
from tests.fakes import CONTEXT, QUESTION

EXAMPLE = Example("q0", QUESTION, CONTEXT, ("The Normans",), (0,), "test")


def slo(
    latency_ms: float = 60_000.0,
    min_f1: float = 0.0,
    policy: SloPolicy = SloPolicy.PREFER_LATENCY,
    slo_class: str = "test",
) -> Slo:
    timeout_ms = latency_ms * (1 if policy is SloPolicy.STRICT else 4)
    return Slo(latency_ms, min_f1, policy, timeout_ms, slo_class)


def schedule(arrivals_ms: Sequence[float], requested: Slo | None = None) -> list[Request]:
    requested = requested or slo()
    return [Request(i, at_ms, requested, EXAMPLE) for i, at_ms in enumerate(arrivals_ms)]


def result(
    at_ms: float,
    took_ms: float,
    requested: Slo,
    *,
    outcome: Outcome = Outcome.ANSWERED,
    answer: str = "The Normans",
    plan: str = "small",
    certified_f1: float = 0.5,
    feasible: bool = True,
) -> Result:
    """Return a request that was due at `at_ms` and ended `took_ms` later."""
    request = Request(int(at_ms), at_ms, requested, EXAMPLE, feasible)
    if outcome is not Outcome.ANSWERED:
        return Result(request, at_ms, at_ms + took_ms, Reply(outcome, f"said {outcome}"))
    reply = Reply(outcome, "", answer, plan, plan, "true", certified_f1, 10.0)
    return Result(request, at_ms, at_ms + took_ms, reply)


@asynccontextmanager
async def mortal(answers: int) -> AsyncIterator[str]:
    """Serve `answers` questions, then be gone: the connection breaks and nobody listens any more."""
    app, left = web.Application(), [answers]
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def here(_: web.Request) -> web.Response:
        return web.Response(text="{}")

    async def answer(request: web.Request) -> web.Response:
        left[0] -= 1
        if left[0] < 0:
            await site.stop()
            assert request.transport is not None
            request.transport.abort()
            await asyncio.Event().wait()
        body = {"answer": "The Normans", "slo": {"latency_ms": 60_000.0, "min_f1": 0.0}}
        return web.json_response(body, headers={"SLO-Plan": "small"})

    app.router.add_get("/healthz", here)
    app.router.add_get("/readyz", here)
    app.router.add_post("/v1/answer", answer)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()
