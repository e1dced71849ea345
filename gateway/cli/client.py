"""The client of the command line: asks a gateway over HTTP, or answers in this process.

Both return the JSON of the HTTP API. `bertier` is imported where a gateway is asked: `serve` starts without it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gateway import slo
from gateway.catalog import store
from gateway.catalog.schema import QA
from gateway.clock import now_ms
from gateway.domain import SloRequest
from gateway.errors import BackendError, BackendUnavailable, InvalidField
from gateway.frontends import replies, schemas
from gateway.latency.kept_profiles import KeptProfiles
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings

if TYPE_CHECKING:
    from bertier.errors import ApiError
    from bertier.over_http import HttpTransport

T = TypeVar("T")
Json = dict[str, Any]
PATIENCE_S = 120.0
FILE_NAME = re.compile(r"\S*/\S*|\S+\.(txt|md|json|html?|csv|rst)")  # what looks like one


class AskFailed(BackendError):
    """The gateway refused the request; the text is the gateway's."""


class HttpGateway:
    """A gateway at a URL, asked over the transport of `bertier.Client`."""

    def __init__(self, url: str, api_key: str | None = None, authority: Path | None = None) -> None:
        """`authority`: PEM file that its certificate is signed by; None: the system's. Raises: InvalidField."""
        from bertier.security import Security

        if not url.startswith(("http://", "https://")):
            raise InvalidField(f"--url {url}: give it with http:// or https://")
        self._url = url.rstrip("/")
        self._security = Security(api_key, authority)

    def answer(self, body: Json, headers: Mapping[str, str]) -> Json:
        return self._fetch("POST", "/v1/answer", body, headers)

    def classify(self, body: Json, headers: Mapping[str, str]) -> Json:
        return self._fetch("POST", "/v1/classify", body, headers)

    def plan(self, body: Json, headers: Mapping[str, str]) -> Json:
        return self._fetch("POST", "/v1/plan", body, headers)

    def variants(self) -> Json:
        return self._fetch("GET", "/v1/variants", None, {})

    def state(self) -> Json:
        """Raises: InvalidField where the state is not at this address."""
        from bertier.errors import ApiError

        try:
            return self._fetch("GET", "/debug/state", None, {})
        except AskFailed as exc:
            if isinstance(exc.__cause__, ApiError) and exc.__cause__.kind == "not-found":
                raise InvalidField(
                    f"--url {self._url}: has no /debug/state; with metrics_port set, give that port, e.g."
                    " --url http://127.0.0.1:9090; without it, the gateway must listen on loopback"
                ) from exc
            raise

    def _fetch(self, method: str, path: str, body: Json | None, headers: Mapping[str, str]) -> Json:
        from bertier.errors import TIMEOUT, ApiError, Unreachable

        try:
            with closing(self._transport()) as transport:
                return transport.fetch(method, path, body, headers)
        except ApiError as exc:
            if not isinstance(exc, Unreachable) and exc.kind != TIMEOUT:
                raise AskFailed(_failure(exc)) from exc
            advice = "start one with 'make run' or 'bertier serve', or ask in this process with --embedded"
            if "CERTIFICATE_VERIFY_FAILED" in exc.detail:
                advice = "name the authority that signed its certificate with --authority PEM"
            raise BackendUnavailable(f"{exc}; {advice}") from exc

    def _transport(self) -> HttpTransport:
        from bertier.over_http import HttpTransport

        try:
            own = self._security.headers()
            return HttpTransport(self._url, self._security, own, PATIENCE_S, trust_env=False)
        except OSError as exc:  # ssl.SSLError is one
            authority = self._security.authority
            raise InvalidField(
                f"--authority {authority}: no PEM file of certificates ({exc})"
            ) from exc


class EmbeddedGateway:
    """A repository answered from in this process, without a server."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def answer(self, body: Json, headers: Mapping[str, str]) -> Json:
        sent = schemas.check(schemas.QuestionBody, body)

        async def work(service: AnswerService) -> Json:
            parsed_question = sent.to_parsed(service.settings)
            answered = await service.answer(parsed_question.question, _slo(headers), now_ms())
            return _parsed(replies.answer_body(answered, parsed_question))

        return asyncio.run(self._with_service(work))

    def classify(self, body: Json, headers: Mapping[str, str]) -> Json:
        texts = schemas.check(schemas.TextsBody, body).to_texts()

        async def work(service: AnswerService) -> Json:
            classified = await service.answer(texts, _slo(headers), now_ms())
            return _parsed(replies.classification_body(classified, texts.id))

        return asyncio.run(self._with_service(work))

    def plan(self, body: Json, headers: Mapping[str, str]) -> Json:
        sent = schemas.check(schemas.PlanRequestBody, body)

        async def work(service: AnswerService) -> Json:
            report = await service.plan(
                _slo(headers), sent.to_asked(), sent.n_tokens, sent.task or QA
            )
            return _parsed(replies.plan_body(report))

        return asyncio.run(self._with_service(work))

    async def _with_service(self, work: Callable[[AnswerService], Awaitable[T]]) -> T:
        from gateway.backends.embedded import EmbeddedBackend
        from gateway.lifecycle import preparation

        catalog = store.read(self._repository)
        backend = EmbeddedBackend(self._repository)
        try:
            settings = Settings(model_repository=self._repository)
            service = AnswerService(backend, settings, Metrics())
            service.serving = await preparation.prepare(
                self._repository, catalog, backend, kept=KeptProfiles.of(settings)
            )
            return await work(service)
        finally:
            await backend.close()


def read_context(given: str, stdin: Callable[[], str]) -> str:
    """Return the context: standard input for `-`, a file's text, else the argument itself.

    Raises: InvalidField when the file cannot be read as UTF-8 text.
    """
    if given == "-":
        return stdin()
    path = Path(given)
    try:
        if len(given) < 4096 and path.is_file():
            return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidField(f"--context {given}: cannot be read as UTF-8 text: {exc}") from exc
    if FILE_NAME.fullmatch(given):
        raise InvalidField(
            f"--context {given}: no such file; if it is a text, pass it on standard input with --context -"
        )
    return given


def headers_of(**given: object) -> dict[str, str]:
    """Return the SLO headers of what was given on the command line."""
    names = {
        "latency_ms": "SLO-Latency-Ms",
        "min_f1": "SLO-Min-F1",
        "max_f1_loss": "SLO-Max-F1-Loss",
        "min_answerable_f1": "SLO-Min-Answerable-F1",
        "slo_class": "SLO-Class",
        "policy": "SLO-Policy",
        "variant": "SLO-Variant",
        "explain": "SLO-Explain",
    }
    return {names[name]: str(value) for name, value in given.items() if value is not None}


def _slo(headers: Mapping[str, str]) -> SloRequest:
    return slo.parse({name.lower(): value for name, value in headers.items()}.get)


def _parsed(body: bytes) -> Json:
    parsed: Json = json.loads(body)
    return parsed


def _failure(error: ApiError) -> str:
    """Return a refusal or failure in one line, with the feasible plans."""
    near = "; ".join(
        f"{p['plan']}: {p['idle_ms']:g} ms at F1 {p['certified_f1']:.3f}" for p in error.nearest
    )
    return error.detail + (f"; feasible: {near}" if near else "")
