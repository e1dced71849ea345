"""The OpenAPI document. Routes parse their own bodies and headers, so their schemas are declared here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.domain import SloPolicy
from gateway.frontends.http.auth import OPEN
from gateway.frontends.http.huggingface import HuggingFaceAnswer, HuggingFaceBody
from gateway.frontends.http.report_schemas import CatalogReport, ReadinessReport
from gateway.frontends.oip_bodies import InferBody, InferReplyBody
from gateway.frontends.problems import KINDS, MEDIA_TYPE
from gateway.frontends.schemas import (
    AnswerBody,
    ClassificationBody,
    FeedbackBody,
    ItemBody,
    PlanBody,
    PlanRequestBody,
    ProblemBody,
    QuestionBody,
    ReadyBody,
    ScoredBody,
    SharedQuestionsBody,
    TextsBody,
)

MODELS: tuple[type[BaseModel], ...] = (
    *(
        QuestionBody,
        ItemBody,
        SharedQuestionsBody,
        AnswerBody,
        TextsBody,
        ClassificationBody,
        PlanRequestBody,
        PlanBody,
        ProblemBody,
        FeedbackBody,
        ScoredBody,
    ),
    *(HuggingFaceBody, HuggingFaceAnswer, InferBody, InferReplyBody),
    *(CatalogReport, ReadinessReport, ReadyBody),
)
KEY = "key"
FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")
JSON = "application/json"
NDJSON = "application/x-ndjson"
OCTETS = "application/octet-stream"

_DECIMAL = {"type": "number"}
_TEXT = {"type": "string"}
REQUEST_HEADERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "SLO-Latency-Ms",
        _DECIMAL | {"minimum": 1, "maximum": 60_000},
        "Latency target, end to end. Absent: the class's.",
    ),
    (
        "SLO-Min-F1",
        _DECIMAL | {"minimum": 0, "maximum": 1},
        "Floor on the expected token F1 of the plan that answers; the accuracy of a classification. Absent: the class's.",
    ),
    (
        "SLO-Max-F1-Loss",
        _DECIMAL | {"minimum": 0, "maximum": 1},
        "How far the plan's expected token F1 may be below the largest variant's. Absent: the class's.",
    ),
    (
        "SLO-Min-Answerable-F1",
        _DECIMAL | {"minimum": 0, "maximum": 1},
        "Floor on the expected token F1 of questions that have an answer. Absent: none.",
    ),
    ("SLO-Class", _TEXT, "A class of the settings: its targets are the defaults."),
    (
        "SLO-Policy",
        _TEXT | {"enum": [str(p) for p in SloPolicy]},
        "What to prefer when latency target and F1 floor cannot both be met. Absent: the class's.",
    ),
    ("Priority", _TEXT | {"default": "u=3"}, "RFC 9218 urgency, `u=0` to `u=7`."),
    ("SLO-Variant", _TEXT, "Pin one variant (evaluation, debugging)."),
    ("SLO-Explain", _TEXT | {"enum": ["0", "1"]}, "`1`: the whole decision in the answer."),
    (
        "Cache-Control",
        _TEXT,
        "Which cached answers may be used, if the gateway caches any: `no-store`, `no-cache`, `max-age=SECONDS`.",
    ),
    (
        "x-envoy-expected-rq-timeout-ms",
        _DECIMAL | {"minimum": 0},
        "Deadline set by a proxy; the tightest deadline counts.",
    ),
    ("X-Request-Id", _TEXT | {"maxLength": 128}, "Printable ASCII; sent back, else one is made."),
)
RESPONSE_HEADERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("SLO-Plan", _TEXT, "The plan that answered."),
    ("SLO-Variant", _TEXT, "The variant that answered."),
    ("SLO-F1", _DECIMAL, "Certified floor of the plan."),
    (
        "SLO-F1-Loss",
        _DECIMAL,
        "Certified loss of the plan to the largest variant, if there is one.",
    ),
    ("SLO-Predicted-Ms", _DECIMAL, "What was predicted when the plan was chosen."),
    (
        "SLO-Met",
        _TEXT,
        "`true`, or the violations: late, below-floor, escalation-cut, partial, uncertified.",
    ),
    (
        "SLO-Catalog",
        {"type": "string", "enum": ["current", "candidate"]},
        "The catalog that answered, while a candidate is tried.",
    ),
    ("Age", {"type": "integer"}, "Of a cached answer: seconds since it was first given."),
    ("Server-Timing", _TEXT, "tokenize, route, queue, infer, decode, total; ms."),
)
REQUEST_ID_HEADER = (("X-Request-Id", _TEXT, "Given or made; the log names it."),)


def ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def operation(
    summary: str,
    takes: dict[str, dict[str, Any]] | None = None,
    gives: dict[str, dict[str, Any]] | None = None,
    *,
    slo: bool = False,
    optional: bool = False,
    answer_headers: bool = False,
    statuses: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the documentation of a route for `add_api_route`; schemas by media type."""
    extra: dict[str, Any] = {"parameters": _parameters(REQUEST_HEADERS if slo else ())}
    if takes is not None:
        extra["requestBody"] = {"required": not optional, "content": _content(takes)}
    headers = (*(RESPONSE_HEADERS if answer_headers else ()), *REQUEST_ID_HEADER)
    responses: dict[int, dict[str, Any]] = {
        200: {"headers": _headers(headers), "content": _content(gives or {})}
    }
    for status in statuses:
        responses[status] = _problem_response(status)
    return {"summary": summary, "openapi_extra": extra, "responses": responses}


def openapi(app: FastAPI, *, guarded: bool) -> dict[str, Any]:
    """Return the document with every model of ours; made once. `guarded`: are keys asked for?"""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            servers=app.servers or None,
        )
        template = "#/components/schemas/{model}"
        _, schemas = models_json_schema(
            [(model, "validation") for model in MODELS], ref_template=template
        )
        components = document.setdefault("components", {})
        components["securitySchemes"] = {KEY: {"type": "http", "scheme": "bearer"}}
        known = components.setdefault("schemas", {})
        known.update(schemas["$defs"])
        for name in FASTAPIS_OWN:  # failures are problem documents here
            known.pop(name, None)
        document["security"] = [{KEY: []}] if guarded else [{}, {KEY: []}]
        for path, methods in document["paths"].items():
            for operation in methods.values():
                _document_access(path, operation)
        app.openapi_schema = document
    return app.openapi_schema


def _document_access(path: str, operation: dict[str, Any]) -> None:
    """Add to an operation what it says of keys, and problem documents in place of FastAPI's own."""
    responses = operation["responses"]
    if any(name in str(responses.get("422")) for name in FASTAPIS_OWN):
        del responses["422"]
    if path in OPEN:
        operation["security"] = []
        return
    for status in (401, 403):
        responses.setdefault(str(status), _problem_response(status))
    operation["responses"] = dict(sorted(responses.items()))


def _problem_response(status: int) -> dict[str, Any]:
    kinds = [kind for kind in KINDS.values() if kind.status == status]
    titles = [kind.title for kind in kinds] or [HTTPStatus(status).phrase]
    response: dict[str, Any] = {
        "description": "; ".join(dict.fromkeys(titles)),
        "headers": _headers(REQUEST_ID_HEADER),
        "content": _content({MEDIA_TYPE: ref(ProblemBody)}),
    }
    if status == 429:
        retry = {"description": "Whole seconds, at least 1.", "schema": {"type": "integer"}}
        response["headers"]["Retry-After"] = retry
    return response


def _content(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type, schema in schemas.items()}


def _headers(rows: Iterable[tuple[str, dict[str, Any], str]]) -> dict[str, Any]:
    return {name: {"description": text, "schema": schema} for name, schema, text in rows}


def _parameters(rows: Iterable[tuple[str, dict[str, Any], str]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
        for name, schema, text in rows
    ]


_ANYTHING = {JSON: {"type": "object"}}
_QUESTIONS: dict[str, dict[str, Any]] = {
    JSON: {"anyOf": [{"type": "array", "items": ref(ItemBody)}, ref(SharedQuestionsBody)]},
    NDJSON: ref(ItemBody),
}
_ANSWER_LINES: dict[str, dict[str, Any]] = {
    NDJSON: {"anyOf": [ref(AnswerBody), {"type": "object", "required": ["error"]}]}
}
ANSWER = operation(
    "Answer one question",
    {JSON: ref(QuestionBody)},
    {JSON: ref(AnswerBody)},
    slo=True,
    answer_headers=True,
    statuses=(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)
CLASSIFY = operation(
    "Classify a text, or a pair of texts",
    {JSON: ref(TextsBody)},
    {JSON: ref(ClassificationBody)},
    slo=True,
    answer_headers=True,
    statuses=(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)
HUGGINGFACE = operation(
    "Answer one question, as Hugging Face's inference clients ask it",
    {JSON: ref(HuggingFaceBody)},
    {
        JSON: {
            "anyOf": [
                ref(HuggingFaceAnswer),
                {"type": "array", "items": ref(HuggingFaceAnswer)},
            ]
        }
    },
    slo=True,
    answer_headers=True,
    statuses=(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)
ANSWERS = operation(
    "Answer many, one line each, in order",
    _QUESTIONS,
    _ANSWER_LINES,
    slo=True,
    statuses=(400, 408, 413, 415, 422, 429),
)
PLAN = operation(
    "What would happen to such a request now",
    {JSON: ref(PlanRequestBody)},
    {JSON: ref(PlanBody)},
    slo=True,
    optional=True,
    statuses=(400, 404, 408, 413, 415, 422, 429, 503),
)
FEEDBACK = operation(
    "Whether an answer was right",
    {JSON: ref(FeedbackBody)},
    {JSON: ref(ScoredBody)},
    statuses=(400, 404, 408, 409, 413, 415, 422, 429),
)
VARIANTS = operation("The catalog as served", gives={JSON: ref(CatalogReport)}, statuses=(503,))
HEALTHZ = operation("Is the process up?", gives=_ANYTHING)
# Who has no key where keys are asked for gets `ready` alone.
_READINESS = {JSON: {"anyOf": [ref(ReadinessReport), ref(ReadyBody)]}}
READYZ = operation("Can it answer? 503: no", gives=_READINESS)
READYZ["responses"][503] = {"description": "It cannot", "content": _content(_READINESS)}
INFER = operation(
    "Answer questions as tensors; binary tensors follow the JSON",
    {JSON: ref(InferBody), OCTETS: {"type": "string", "format": "binary"}},
    {JSON: ref(InferReplyBody), OCTETS: {"type": "string", "format": "binary"}},
    slo=True,
    answer_headers=True,
    statuses=(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)
OIP_READ = operation(
    "Of the server or its models: `qa`, and each classification", gives=_ANYTHING, statuses=(404,)
)
METRICS = operation("Prometheus metrics", gives={"text/plain": {"type": "string"}})
