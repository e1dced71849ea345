"""A gateway's two frontends on free ports, in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from gateway.auth import tls as certificates
from gateway.auth.access import Access
from gateway.backends.protocol import Backend
from gateway.catalog.store import Catalog
from gateway.frontends import sockets
from gateway.frontends.grpc import server as grpc_api
from gateway.frontends.http import oip, routes
from gateway.frontends.http import server as http_server
from gateway.frontends.http.connections import Limits
from gateway.lifecycle.readiness import Readiness
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from tests.fakes import patient, serving_set, small_and_large
from tests.watched import WatchedBackend


@dataclass
class Running:
    """Where it is, and what is behind it."""

    service: AnswerService
    backend: WatchedBackend
    grpc_url: str
    http_url: str  # host:port
    server: http_server.Server


@asynccontextmanager
async def gateway(catalog: Catalog | None = None, /, **settings: Any) -> AsyncIterator[Running]:
    """Run a catalog behind both frontends, by default `small` and `large` of tests.fakes."""
    backend = WatchedBackend()
    service = AnswerService(backend, patient(grpc_port=0, **settings), Metrics())
    service.serving = serving_set(catalog or small_and_large())
    async with _frontends(service, backend) as running:
        yield running


@asynccontextmanager
async def gateway_before(real: Backend, catalog: Catalog) -> AsyncIterator[Running]:
    """Run both frontends before a real model server that has the variants of the catalog."""
    service = AnswerService(real, patient(grpc_port=0), Metrics())
    service.serving = serving_set(catalog)
    async with _frontends(service, WatchedBackend()) as running:
        yield running


@asynccontextmanager
async def _frontends(service: AnswerService, backend: WatchedBackend) -> AsyncIterator[Running]:
    access = Access(service.settings, service.metrics)
    tls = certificates.of(service.settings, service.metrics)
    grpc_server = await grpc_api.start(service, service.settings, access, tls)
    app = routes.create(service, _ready, access=access)
    app.include_router(oip.router(service))
    how = None if tls is None else lambda *_: tls.context()
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", ws="none", ssl_context_factory=how
    )
    server = http_server.Server(config, Limits.of(service.settings), service.metrics)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    listening_at = sockets.bind("127.0.0.1", 0, "http_port")
    port = listening_at.getsockname()[1]
    await server.startup([listening_at])
    try:
        yield Running(
            service, backend, f"127.0.0.1:{grpc_server.port}", f"127.0.0.1:{port}", server
        )
    finally:
        server.should_exit = True
        await server.shutdown()
        await grpc_api.stop(grpc_server, 0)


async def _ready() -> Readiness:
    return Readiness(
        ready=True,
        reasons=(),
        backend="fake",
        engine="fake 1",
        backend_up=True,
        catalog_sha256=None,
        refused=None,
        variants={},
    )
