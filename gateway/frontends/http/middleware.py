"""What surrounds every HTTP request: its path below a prefix, its id, its log line, an answer to any failure."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.auth import access
from gateway.frontends import problems, slo_headers
from gateway.frontends.http import huggingface
from gateway.observability import logs, observer
from gateway.request import response_cache

log = logging.getLogger(__name__)

OIP_PREFIX = "/v2"


def problem_response(path: str, error: Exception) -> Response:
    """Return the problem response of an error; one of status 500 and above is logged with its cause."""
    body = problems.problem(error, logs.request_id.get())
    if body["status"] >= 500:
        _log_failure(body["type"], error, body["status"])
    if path.startswith(OIP_PREFIX) or path in huggingface.PATHS:
        body["error"] = body["detail"]  # where clients of these protocols expect it
    return Response(
        json.dumps(body),
        status_code=body["status"],
        headers=problems.headers(error),
        media_type=problems.MEDIA_TYPE,
    )


async def on_error(request: Request, error: Exception) -> Response:
    """Answer an expected failure: an exception handler of the app."""
    return problem_response(request.url.path, error)


class RequestFrame:
    """Pure ASGI, around everything else."""

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool]) -> None:
        """`leaving` returns whether the gateway is about to stop; then responses close their connection."""
        self.app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        access.CONNECTION.set(scope.get("client"))
        headers = dict(reversed(scope["headers"]))  # the first of each name
        response_cache.receive(scope["headers"] if b"cache-control" in headers else ())
        name = slo_headers.request_id(_text(headers.get(b"x-request-id")))
        parent, state = headers.get(b"traceparent"), headers.get(b"tracestate")
        observer.receive(name, _text(parent), _text(state))
        began = time.perf_counter()
        status = 0

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                limits = access.rate_limit().items()  # also of failures
                own = [(key.encode(), value.encode()) for key, value in limits]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode()), *own]
                if self._leaving():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self.app(scope, receive, send_framed)
        except Exception as exc:
            if status:  # headers are sent: only closing the connection is left
                raise
            await problem_response(scope["path"], exc)(scope, receive, send_framed)
        finally:
            if log.isEnabledFor(logging.DEBUG):
                _log_access(scope, status, began)


class UnderPrefix:
    """Pure ASGI: takes the prefix off a path that has it; a proxy that takes it off itself, and probes, send none."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            rest = scope["path"].removeprefix(self._prefix)
            if rest != scope["path"] and rest[:1] in ("", "/"):
                scope = {**scope, "path": rest or "/"}
        await self._app(scope, receive, send)


class AnswersHead:
    """Pure ASGI: answers HEAD wherever GET is answered, by the same route and without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _log_access(scope: Scope, status: int, began: float) -> None:
    """Log the request without its query: that could hold anything."""
    path = scope.get("raw_path") or scope["path"].encode()  # as sent: no line breaks in it
    spent_ms = (time.perf_counter() - began) * 1e3
    log.debug(
        "%s %s %d %.1f ms", scope["method"], path.decode("ascii", "replace"), status, spent_ms
    )


def _log_failure(kind: str, error: Exception, status: int) -> None:
    if status == problems.INTERNAL.status:
        log.error("%s", kind, exc_info=error)
    else:
        log.warning("%s: %s", kind, error)
