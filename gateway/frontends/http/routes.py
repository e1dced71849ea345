"""The HTTP frontend: routes that parse requests, call the service and write responses. Decides nothing.

Routes read their own bodies and headers (`DirectRoute`): FastAPI's parsing costs more than tokenizing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any, TypeAlias

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from gateway.auth import access
from gateway.auth.access import Access
from gateway.catalog.schema import QA
from gateway.clock import now_ms
from gateway.domain import A, Answer, Asked, Classification, Served, SloRequest
from gateway.errors import BackendUnavailable, BertierError, InvalidField
from gateway.frontends import replies, slo_headers, sockets
from gateway.frontends import schemas as models
from gateway.frontends.http import cors, huggingface
from gateway.frontends.http import openapi as http_docs
from gateway.frontends.http.auth import DEBUG_STATE, AuthMiddleware
from gateway.frontends.http.batch import Batch
from gateway.frontends.http.compression import CompressesReplies, InflatesRequests
from gateway.frontends.http.exposition import Exposition
from gateway.frontends.http.huggingface import HuggingFaceBody
from gateway.frontends.http.middleware import (
    AnswersHead,
    RequestFrame,
    UnderPrefix,
    on_error,
    problem_response,
)
from gateway.frontends.http.openapi import JSON
from gateway.frontends.http.playground import pages
from gateway.frontends.http.streaming import (
    WATCH_AFTER_MS,
    BodyBudget,
    bodies_of,
    disconnected,
    read_body,
    while_connected,
)
from gateway.lifecycle.inner_state import inner_state
from gateway.lifecycle.readiness import Readiness, catalog_report
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.slo import parse

ANSWER = "/v1/answer"
VERSION = version("bertier")
NOTHING_ASKED = SloRequest()
SLO_HEADERS = {given.encode() for given in slo_headers.SLO_HEADERS}
SLO_PREFIXES = tuple(prefix.encode() for prefix in slo_headers.SLO_PREFIXES)  # misspelt ones, too


# What a body asks, and what writes the body of the reply.
_Read: TypeAlias = tuple[Asked[A], Callable[[Served[A]], bytes]]


class DirectRoute(APIRoute):
    """A route whose endpoint takes the Request and returns the Response, and nothing between."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


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
    def settings(self) -> Settings:
        return self._settings

    @property
    def watched_elsewhere(self) -> bool:
        return self._settings.metrics_port is not None

    async def answer(self, request: Request) -> Response:
        def read(raw: bytes) -> _Read[Answer]:
            parsed = models.read(models.QuestionBody, raw).to_parsed(self._settings)
            return parsed.question, partial(replies.answer_body, parsed=parsed)

        return await self._answer(request, read)

    async def huggingface(self, request: Request) -> Response:
        """Answer in the words of Hugging Face's inference clients."""

        def read(raw: bytes) -> _Read[Answer]:
            body = models.read(HuggingFaceBody, raw)
            question = body.to_parsed(self._settings).question
            return question, partial(huggingface.answer_body, body=body)

        return await self._answer(request, read)

    async def classify(self, request: Request) -> Response:
        def read(raw: bytes) -> _Read[Classification]:
            texts = models.read(models.TextsBody, raw).to_texts()
            return texts, partial(replies.classification_body, own_id=texts.id)

        return await self._answer(request, read, task=None)

    async def _answer(
        self, request: Request, read: Callable[[bytes], _Read[A]], task: str | None = QA
    ) -> Response:
        """Answer one question, or classify texts, under the SLO of the headers.

        `read` returns what a body asks. `task` None: the body says it.
        """
        label = self._class_label(request)
        with self._service.observer.request("http", label, task, unread=True) as record:
            access.take(1)
            slo = read_slo(request.headers.raw)
            admission = await self._service.admit(slo, "http", task)
            try:
                limits = self._settings
                raw = await read_body(request, limits.max_body_bytes, limits.body_timeout_ms)
                record.read()
                arrived_ms = now_ms() - admission.waited_ms  # the wait counts; reading does not
                question, reply = read(raw)
                async with while_connected(partial(disconnected, request.receive), WATCH_AFTER_MS):
                    answered = await self._service.answer(
                        question, slo, arrived_ms, admission=admission
                    )
            finally:
                self._service.leave(admission)
            return Response(
                reply(answered),
                headers=slo_headers.slo_headers(answered),
                media_type=JSON,
            )

    async def answers(self, request: Request) -> Response:
        """Answer a list or lines; the latency of an item counts from when it is begun."""
        label = self._class_label(request)
        with slo_headers.refused_whole(self._service.observer, "http", label, QA):
            slo = read_slo(request.headers.raw)
            self._service.raise_if_full(slo, "http")
            return await Batch(self._service, slo).answer(request)

    async def plan(self, request: Request) -> Response:
        access.take(1)
        slo = read_slo(request.headers.raw)
        raw = await self._body(request)
        body = models.read(models.PlanRequestBody, raw or b"{}")
        report = await self._service.plan(slo, body.to_asked(), body.n_tokens, body.task or QA)
        return Response(replies.plan_body(report), media_type=JSON)

    async def variants(self, _: Request) -> Response:
        if self._service.serving is None:
            raise BackendUnavailable("no catalog is loaded yet; see /readyz")
        serving = self._service.serving
        report = catalog_report(serving, (await self._service.feedback.known(serving))[0])
        return Response(to_json(report), media_type=JSON)

    async def feedback(self, request: Request) -> Response:
        access.take(1)
        body = models.read(models.FeedbackBody, await self._body(request))
        scored = await self._service.feedback.report(body.key, body.truth)
        return Response(to_json(scored), media_type=JSON)

    async def healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "version": VERSION})

    async def readyz(self, _: Request) -> Response:
        readiness = await self._readiness()
        status = 200 if readiness.ready else 503
        body = {"ready": readiness.ready} if access.lacks_key() else readiness
        return Response(to_json(body), status_code=status, media_type=JSON)

    async def debug_state(self, _: Request) -> Response:
        return Response(to_json(await inner_state(self._service)), media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        names = request.query_params.getlist("name[]")
        scraped = await self._exposition.scrape(request.headers.get("accept", ""), names)
        return Response(scraped.text, headers={"content-type": scraped.content_type})

    async def _body(self, request: Request) -> bytes:
        """Return the body of a request that needs no admission."""
        return await bodies_of(request).read(request, self._settings.max_body_bytes)

    def _class_label(self, request: Request) -> str:
        headers = request.headers
        name = headers.get("slo-class")
        return slo_headers.class_label(
            name if name is not None else headers.get("x-slo-class"), self._settings
        )


def read_slo(raw: Iterable[tuple[bytes, bytes]]) -> SloRequest:
    """Return what the headers ask for. Raises: InvalidHeader."""
    pairs = tuple(
        [each for each in raw if each[0] in SLO_HEADERS or each[0].startswith(SLO_PREFIXES)]
    )
    return slo_headers.of_caller(_parsed(pairs) if pairs else NOTHING_ASKED)


@lru_cache(maxsize=256)  # callers send the same few
def _parsed(pairs: tuple[tuple[bytes, bytes], ...]) -> SloRequest:
    text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]
    return parse(slo_headers.slo_lookup(text))


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
    """Return the HTTP app without the routes of the Open Inference Protocol; no `access`: open to all."""
    app = FastAPI(
        title="bertier",
        version=VERSION,
        description="Question answering from the smallest model that meets each request's SLO.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.router.route_class = DirectRoute
    sheds = service.metrics.sheds
    app.state.bodies = BodyBudget(service.settings, lambda: sheds.labels("http", "full").inc())
    for error in (BertierError, ClientDisconnect, HTTPException):
        app.add_exception_handler(error, on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    api = HttpApi(service, readiness)
    guarded = access is not None and access.guarded
    _add_routes(app, api, guarded=guarded)
    files = pages.read() if service.settings.playground else {}
    _add_pages(app, files, service)
    inside: ASGIApp = InflatesRequests(DirectAnswer(app.build_middleware_stack(), api))
    if access is not None and access.guarded:
        inside = AuthMiddleware(inside, access, files)
    outside: ASGIApp = AnswersHead(CompressesReplies(RequestFrame(inside, lambda: service.leaving)))
    if service.settings.root_path:
        outside = UnderPrefix(outside, service.settings.root_path)
        app.servers = [{"url": service.settings.root_path}]
    app.middleware_stack = cors.allow_origins(outside, service.settings.cors_origins)
    return app


def _add_routes(app: FastAPI, api: HttpApi, *, guarded: bool) -> None:
    def add(method: str, path: str, endpoint: Any, **documented: Any) -> None:
        app.add_api_route(path, endpoint, methods=[method], response_class=Response, **documented)

    async def openapi(_: Request) -> Response:
        return JSONResponse(http_docs.openapi(app, guarded=guarded))

    add("POST", ANSWER, api.answer, **http_docs.ANSWER)
    add("POST", "/v1/classify", api.classify, **http_docs.CLASSIFY)
    for path in huggingface.PATHS:
        add("POST", path, api.huggingface, **http_docs.HUGGINGFACE)
    add("POST", "/v1/answers", api.answers, **http_docs.ANSWERS)
    add("POST", "/v1/plan", api.plan, **http_docs.PLAN)
    add("POST", "/v1/feedback", api.feedback, **http_docs.FEEDBACK)
    add("GET", "/v1/variants", api.variants, **http_docs.VARIANTS)
    add("GET", "/healthz", api.healthz, **http_docs.HEALTHZ)
    add("GET", "/readyz", api.readyz, **http_docs.READYZ)
    if not api.watched_elsewhere:
        add("GET", "/metrics", api.metrics, **http_docs.METRICS)
        if sockets.is_local(api.settings):
            add("GET", DEBUG_STATE, api.debug_state, include_in_schema=False)
    add("GET", "/openapi.json", openapi, include_in_schema=False)


def _add_pages(app: FastAPI, files: Mapping[str, pages.File], service: AnswerService) -> None:
    """Serve the pages for a browser, and the one thing they ask that no API tells."""

    async def choices(_: Request) -> Response:
        return Response(
            to_json(pages.settings_for_pages(service.settings, service.classes)), media_type=JSON
        )

    for path, file in files.items():
        app.add_api_route(path, file.respond, methods=["GET"], include_in_schema=False)
    if files:
        app.add_api_route(pages.SETTINGS, choices, methods=["GET"], include_in_schema=False)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    return problem_response(request.url.path, InvalidField(f"{where}: {first['msg']}"))
