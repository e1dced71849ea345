"""The HTTP front: routes, each from the wire to the service and back. Chooses nothing itself.

Routes read their own bodies and headers (`DirectRoute`): FastAPI's way costs more than tokenizing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from gateway import fronts, http_docs, slo
from gateway import http_models as models
from gateway.access import Access
from gateway.domain import SloRequest
from gateway.errors import (
    BackendUnavailable,
    BertierError,
    InvalidField,
    TextTooLong,
)
from gateway.exposition import Exposition
from gateway.http_access import HttpDoor
from gateway.http_docs import NDJSON, operation, ref
from gateway.http_frame import RequestFrame, on_error, problem_response
from gateway.http_stream import Inbox, disconnected, read_body, while_connected
from gateway.problems import ClientGone
from gateway.readiness import Readiness, catalog_report
from gateway.service import AnswerService, now_ms

FRONT = "http"
ANSWER = "/v1/answer"
VERSION = version("bertier")
JSON = "application/json"
NDJSON_TYPES = (NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines")
SLO_HEADERS = {given.encode() for given in fronts.SLO_HEADERS}

Write = Callable[[bytes], Awaitable[None]]


class DirectRoute(APIRoute):
    """A route whose endpoint takes the Request and returns the Response, and nothing between."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


class LinesResponse(Response):
    """An answer of lines, each sent when it is there."""

    def __init__(self, run: Callable[[Write], Awaitable[None]]) -> None:
        super().__init__(media_type=NDJSON)
        del self.headers["content-length"]
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)

        async def write(line: bytes) -> None:
            await send({"type": "http.response.body", "body": line + b"\n", "more_body": True})

        try:
            await self._run(write)
        except ClientGone:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class HttpApi:
    """The endpoints, over one service."""

    def __init__(
        self, service: AnswerService, readiness: Callable[[], Awaitable[Readiness]]
    ) -> None:
        self._service = service
        self._settings = service.settings
        self._readiness = readiness
        self._exposition = Exposition(service)

    @property
    def watched_elsewhere(self) -> bool:
        return self._settings.metrics_port is not None

    async def answer(self, request: Request) -> Response:
        with fronts.observed(self._service.metrics, FRONT, self._class_label(request)):
            promise = read_slo(request.headers.raw)
            if shed := self._service.shed(promise, FRONT):
                raise shed
            raw = await self._body(request, self._settings.max_body_bytes)
            arrived_ms = now_ms()  # the promise counts from the request read
            body = models.read(models.QuestionBody, raw)
            question = body.to_question(self._settings.max_top_k)
            async with while_connected(partial(disconnected, request.receive)):
                answered = await self._service.answer(question, promise, arrived_ms)
            return Response(
                models.answer_body(answered, question),
                headers=fronts.slo_headers(answered),
                media_type=JSON,
            )

    async def answers(self, request: Request) -> Response:
        """Answer a list or lines; the SLO of an item counts from when its turn has come."""
        promise = read_slo(request.headers.raw)
        if shed := self._service.shed(promise, FRONT, told=False):
            raise shed
        if request.headers.get("content-type", "").split(";")[0].strip().lower() in NDJSON_TYPES:
            inbox = Inbox(self._settings.max_body_bytes, self._settings.max_batch_bytes)
            return LinesResponse(
                partial(self._stream, inbox.lines(), partial(inbox.fill, request), promise)
            )
        values = models.read_json(await self._body(request, self._settings.max_batch_bytes))
        if not isinstance(values, list):
            raise InvalidField(f"body: send a list, or lines with Content-Type: {NDJSON}")
        leaving = partial(disconnected, request.receive)
        return LinesResponse(partial(self._stream, _each(values), leaving, promise))

    async def plan(self, request: Request) -> Response:
        promise = read_slo(request.headers.raw)
        raw = await self._body(request, self._settings.max_body_bytes)
        body = models.read(models.PlanRequestBody, raw or b"{}")
        question = body.to_question()
        report = await asyncio.to_thread(self._service.plan, promise, question, body.n_tokens)
        return Response(models.plan_body(report), media_type=JSON)

    async def variants(self, _: Request) -> Response:
        if self._service.serving is None:
            raise BackendUnavailable("no catalog is loaded yet; see /readyz")
        return Response(to_json(catalog_report(self._service.serving)), media_type=JSON)

    async def healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "version": VERSION})

    async def readyz(self, _: Request) -> Response:
        readiness = await self._readiness()
        status = 200 if readiness.ready else 503
        return Response(to_json(readiness), status_code=status, media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        names = request.query_params.getlist("name[]")
        scraped = await self._exposition.scrape(request.headers.get("accept", ""), names)
        return Response(scraped.text, headers={"content-type": scraped.content_type})

    async def _body(self, request: Request, limit_bytes: int) -> bytes:
        return await read_body(request, limit_bytes, self._settings.body_timeout_ms)

    async def _stream(
        self,
        items: AsyncIterator[Any],
        leaving: Callable[[], Awaitable[None]],
        promise: SloRequest,
        write: Write,
    ) -> None:
        limit = self._settings.max_concurrent_items
        async with while_connected(leaving):
            await fronts.map_in_order(items, partial(self._line, promise), write, limit)

    async def _line(self, promise: SloRequest, item: Any) -> bytes:
        """Return the answer to one item, or its failure."""
        item_id = None
        try:
            value = _value(item)
            item_id = _string(value, "id")
            return await self._answer_item(promise, value)
        except Exception as exc:  # noqa: BLE001 (a failure is one line; the others are answered)
            failure = problem_response("", exc).body
            return b'{"id":' + to_json(item_id) + b',"error":' + bytes(failure) + b"}"

    async def _answer_item(self, promise: SloRequest, value: Any) -> bytes:
        arrived_ms = now_ms()
        own = _string(value.get("slo"), "class") if isinstance(value, dict) else None
        label = fronts.class_label(own or promise.slo_class, self._settings)
        with fronts.observed(self._service.metrics, FRONT, label):
            item = models.check(models.ItemBody, value)
            question = item.to_question(self._settings.max_top_k)
            answered = await self._service.answer(question, item.slo.over(promise), arrived_ms)
            return models.answer_body(answered, question)

    def _class_label(self, request: Request) -> str:
        headers = request.headers
        name = headers.get("slo-class")
        return fronts.class_label(
            name if name is not None else headers.get("x-slo-class"), self._settings
        )


def read_slo(raw: Iterable[tuple[bytes, bytes]]) -> SloRequest:
    """Return what the headers ask for. Raises: InvalidHeader."""
    pairs = ((k.decode(), v.decode("latin-1")) for k, v in raw if k in SLO_HEADERS)
    return fronts.of_caller(slo.parse(fronts.slo_lookup(pairs)))


class DirectAnswer:
    """Answers the one hot route before FastAPI's layers, which cost more than choosing a model."""

    def __init__(self, app: ASGIApp, api: HttpApi) -> None:
        self._app = app
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == ANSWER and scope["method"] == "POST":
            response = await self._api.answer(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def create(
    service: AnswerService,
    readiness: Callable[[], Awaitable[Readiness]],
    lifespan: Lifespan[FastAPI] | None = None,
    access: Access | None = None,
) -> FastAPI:
    """Return the HTTP front, without the Open Inference Protocol's routes; no `access`: open to all."""
    app = FastAPI(
        title="bertier",
        version=VERSION,
        description="Question answering from the smallest model that keeps each request's promise.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.router.route_class = DirectRoute
    for error in (BertierError, ClientGone, ClientDisconnect, HTTPException):
        app.add_exception_handler(error, on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    api = HttpApi(service, readiness)
    _add_routes(app, api)
    inside: ASGIApp = DirectAnswer(app.build_middleware_stack(), api)
    if access is not None and access.guarded:
        inside = HttpDoor(inside, access)
    app.middleware_stack = RequestFrame(inside)
    return app


def _add_routes(app: FastAPI, api: HttpApi) -> None:
    answer_errors = (400, 408, 413, 422, 429, 500, 503, 504)
    question, item = ref(models.QuestionBody), ref(models.ItemBody)
    answer = ref(models.AnswerBody)
    lines = {NDJSON: {"anyOf": [answer, {"type": "object", "required": ["error"]}]}}
    many: dict[str, dict[str, Any]] = {JSON: {"type": "array", "items": item}, NDJSON: item}

    def add(method: str, path: str, endpoint: Any, **told: Any) -> None:
        app.add_api_route(path, endpoint, methods=[method], response_class=Response, **told)

    add(
        *("POST", ANSWER, api.answer),
        **operation(
            "Answer one question",
            {JSON: question},
            {JSON: answer},
            slo=True,
            answer_headers=True,
            statuses=answer_errors,
        ),
    )
    add(
        *("POST", "/v1/answers", api.answers),
        **operation(
            "Answer many, one line each, in order",
            many,
            lines,
            slo=True,
            statuses=(400, 408, 413, 422),
        ),
    )
    add(
        *("POST", "/v1/plan", api.plan),
        **operation(
            "What would happen to such a request now",
            {JSON: ref(models.PlanRequestBody)},
            {JSON: ref(models.PlanBody)},
            slo=True,
            optional=True,
            statuses=(400, 408, 413, 422, 503),
        ),
    )
    anything = {JSON: {"type": "object"}}
    served = operation("The catalog as served", gives=anything, statuses=(503,))
    add("GET", "/v1/variants", api.variants, **served)
    add("GET", "/healthz", api.healthz, **operation("Is the process up?", gives=anything))
    add("GET", "/readyz", api.readyz, **operation("Can it answer? 503: no", gives=anything))
    if not api.watched_elsewhere:
        metrics = operation("Prometheus metrics", gives={"text/plain": {"type": "string"}})
        add("GET", "/metrics", api.metrics, **metrics)

    async def openapi(_: Request) -> Response:
        return JSONResponse(http_docs.openapi(app))

    add("GET", "/openapi.json", openapi, include_in_schema=False)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    return problem_response(request.url.path, InvalidField(f"{where}: {first['msg']}"))


async def _each(values: list[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


def _value(item: Any) -> Any:
    """Return an item as a JSON value; a line comes as its bytes, or as what is wrong with it."""
    if isinstance(item, TextTooLong):
        raise item
    return models.read_json(item) if isinstance(item, bytes) else item


def _string(value: Any, name: str) -> str | None:
    """Return a string of a JSON object, if it is there."""
    found = value.get(name) if isinstance(value, dict) else None
    return found[: models.MAX_ID_CHARS] if isinstance(found, str) else None
