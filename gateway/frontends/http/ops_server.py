"""The ops server: /metrics, /debug/state, /healthz and /readyz on a port of their own, without key or TLS."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from gateway.frontends.http import server as http_server
from gateway.frontends.http.auth import DEBUG_STATE
from gateway.frontends.http.connections import Limits
from gateway.frontends.http.middleware import RequestFrame
from gateway.frontends.http.routes import HttpApi
from gateway.observability.metrics import Metrics


class _Server(http_server.Server):
    """The gateway's own server has the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def opened(
    api: HttpApi, listener: socket.socket, limits: Limits, metrics: Metrics
) -> AsyncIterator[None]:
    """Answer at this socket for the length of the block."""
    routes = [
        Route("/metrics", api.metrics),
        Route(DEBUG_STATE, api.debug_state),
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
    ]
    config = uvicorn.Config(
        RequestFrame(Starlette(routes=routes), lambda: False),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config, limits, metrics)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="ops server")
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([serving])
