"""The HTTP frontend asked over ASGI, with a small fake in place of the model server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
from fastapi import FastAPI

from gateway.frontends.http import oip, routes
from gateway.lifecycle.watcher import Watcher
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from tests.fakes import CONTEXT, QUESTION, FakeBackend, patient, serving_set, small_and_large

QUESTION_BODY = {"question": QUESTION, "context": CONTEXT}


def make_service(backend: FakeBackend | None = None, **settings: Any) -> AnswerService:
    """Return a service with `small` (5 ms, F1 0.5) and `large` (20 ms, F1 0.7)."""
    service = AnswerService(backend or FakeBackend(), patient(**settings), Metrics())
    service.serving = serving_set(small_and_large())
    return service


def make_app(service: AnswerService) -> FastAPI:
    app = routes.create(service, Watcher(service).readiness)
    app.include_router(oip.router(service))
    return app


def client(service: AnswerService) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=make_app(service))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def post(service: AnswerService, path: str = "/v1/answer", **request: Any) -> httpx.Response:
    async with client(service) as http:
        return await http.post(path, **request)


def outcome(service: AnswerService, slo_class: str, name: str) -> float:
    """Return how many requests were counted with this outcome."""
    labels = {"frontend": "http", "slo_class": slo_class, "task": "qa", "outcome": name}
    return service.metrics.registry.get_sample_value("bertier_requests_total", labels) or 0.0


class Caller:
    """An ASGI caller that sends what a test says, when it says so, and can disconnect."""

    def __init__(self, path: str, headers: dict[str, str] | None = None) -> None:
        named = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": named,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, body: bytes, *, more: bool = False) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    def start(self, app: Callable[..., Any]) -> asyncio.Task[None]:
        return asyncio.create_task(app(self.scope, self.inbox.get, self.sent.put))
