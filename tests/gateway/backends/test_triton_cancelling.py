"""Who leaves, or runs out of time, frees the real Triton of what was asked for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.backends.triton import TritonBackend
from tests import live, local_triton
from tests.fakes import CONTEXT, QUESTION, make_catalog, make_variant
from tests.gateway.conftest import RunningTriton
from tests.live import Running
from tests.local_triton import SLOW_SINGLE

ASKERS = 40
BODY = json.dumps({"question": QUESTION, "context": CONTEXT}).encode()
PINNED = {"slo-variant": SLOW_SINGLE, "slo-latency-ms": "60000"}


@pytest.fixture
async def running(triton: RunningTriton) -> AsyncIterator[Running]:
    variant = make_variant(SLOW_SINGLE, 1.0, sha256=triton.hashes[SLOW_SINGLE])
    async with live.gateway_before(
        TritonBackend(triton.options.grpc_url), make_catalog([variant], [0.5])
    ) as running:
        yield running
        await running.service.backend.close()


async def http_and_leave(running: Running, asked: Callable[[], Awaitable[None]]) -> None:
    host, port = running.http_url.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    headers = "".join(f"{name}: {value}\r\n" for name, value in PINNED.items())
    head = f"POST /v1/answer HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(BODY)}\r\n\r\n"
    writer.write(head.encode() + BODY)
    await writer.drain()
    await asked()
    writer.close()
    await writer.wait_closed()


async def http_and_time_out(running: Running, asked: Callable[[], Awaitable[None]]) -> None:
    host, port = running.http_url.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    names = PINNED | {"x-envoy-expected-rq-timeout-ms": "300"}
    headers = "".join(f"{name}: {value}\r\n" for name, value in names.items())
    head = f"POST /v1/answer HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(BODY)}\r\n\r\n"
    writer.write(head.encode() + BODY)
    await reader.readline()  # 504, or the answer of the first ones
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("ask", [http_and_leave, http_and_time_out])
async def test_what_nobody_waits_for_is_not_run(
    running: Running,
    triton: RunningTriton,
    ask: Callable[[Running, Callable[[], Awaitable[None]]], Awaitable[None]],
) -> None:
    """A queue of work for callers who have gone is what makes everybody else late."""
    service, port = running.service, triton.options.metrics_port

    async def asked() -> None:
        await local_triton.wait_until(lambda: (in_flight() or 0) >= ASKERS / 2)

    def in_flight() -> float | None:
        return service.metrics.registry.get_sample_value("bertier_requests_in_flight")

    before = local_triton.counter(port, "nv_inference_count", SLOW_SINGLE)
    await asyncio.gather(*(ask(running, asked) for _ in range(ASKERS)))
    await local_triton.wait_until(lambda: in_flight() == 0)
    pending = "nv_inference_pending_request_count"
    await local_triton.wait_until(lambda: local_triton.counter(port, pending, SLOW_SINGLE) == 0)
    assert local_triton.counter(port, "nv_inference_count", SLOW_SINGLE) < before + ASKERS
    assert service.serving is not None
    assert not service.serving.latency.busy
