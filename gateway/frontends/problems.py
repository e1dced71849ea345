"""Errors as RFC 9457 problems: the one table that maps our errors to HTTP. Decides nothing else.

For an error that is not in the table, and for every status 500, the caller gets a fixed text and the
request id; the cause is logged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gateway.errors import (
    BackendError,
    BackendUnavailable,
    BertierError,
    BodyTooSlow,
    ClientGone,
    DeadlineExceeded,
    EmptyText,
    FeedbackConflict,
    Forbidden,
    HeadTooLarge,
    HeadTooSlow,
    Infeasible,
    InvalidField,
    InvalidHeader,
    InvalidLogits,
    Malformed,
    Overloaded,
    QuotaExceeded,
    RepositoryError,
    TextTooLong,
    TooManyConnections,
    TooManyItems,
    Unauthenticated,
    UnknownClass,
    UnknownRequest,
    UnknownTask,
    UnknownVariant,
    UnsupportedEncoding,
)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:bertier:problem:"
FIXED_TEXT = "the gateway failed on this request; its log has the cause under this request id"


@dataclass(frozen=True, slots=True)
class Kind:
    """How HTTP reports one kind of error; `name` is the last part of its `type` and a metric label."""

    status: int
    name: str
    title: str


INTERNAL = Kind(500, BertierError.kind, "Internal error")
STATUS: Mapping[type[BertierError], tuple[int, str]] = {
    ClientGone: (499, "The caller left"),
    Malformed: (400, "The request could not be read"),
    InvalidHeader: (400, "A header's value is not allowed"),
    HeadTooLarge: (431, "The headers are too large"),
    HeadTooSlow: (408, "The headers came too slowly"),
    BodyTooSlow: (408, "The body came too slowly"),
    TextTooLong: (413, "The text is too long"),
    TooManyItems: (413, "Too many questions in one request"),
    UnsupportedEncoding: (415, "The body's coding is not supported"),
    InvalidField: (422, "A field cannot be used"),
    EmptyText: (422, "A text is empty"),
    UnknownClass: (400, "The SLO class is not known"),
    UnknownVariant: (400, "The variant is not served"),
    UnknownTask: (404, "The task is not served"),
    UnknownRequest: (404, "No such answer is remembered"),
    FeedbackConflict: (409, "Other feedback was given before"),
    Unauthenticated: (401, "A valid key is needed"),
    Forbidden: (403, "The key may not do this"),
    QuotaExceeded: (429, "More requests than the key may send"),
    TooManyConnections: (429, "More connections than there may be"),
    Infeasible: (422, "No plan can meet this SLO"),
    Overloaded: (429, "Too busy to meet this SLO now"),
    DeadlineExceeded: (504, "The deadline has passed"),
    BackendUnavailable: (503, "No model server can answer"),
    InvalidLogits: (503, "The model server's answer cannot be read"),
    BackendError: (500, "The model server failed"),
    RepositoryError: (INTERNAL.status, INTERNAL.title),
}
KINDS: Mapping[type[BertierError], Kind] = {
    error: Kind(status, error.kind, title) for error, (status, title) in STATUS.items()
}


def kind_of(error: BaseException) -> Kind:
    """Return the kind of an error: its own, else that of its nearest base in the table."""
    if isinstance(error, HTTPException):
        name = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "http")
        return Kind(error.status_code, name, HTTPStatus(error.status_code).phrase)
    ours = ClientGone if isinstance(error, ClientDisconnect) else type(error)
    return next((KINDS[c] for c in ours.__mro__ if c in KINDS), INTERNAL)


def problem(error: BaseException, request_id: str) -> dict[str, Any]:
    """Return the problem document for the caller."""
    kind = kind_of(error)
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + kind.name,
        "title": kind.title,
        "status": kind.status,
        "detail": FIXED_TEXT if kind.status == INTERNAL.status else _detail(error),
        "request_id": request_id,
    }
    if isinstance(error, Infeasible):
        body["nearest"] = list(error.nearest)
    if isinstance(error, Overloaded):
        body["retry_after_ms"] = round(error.retry_after_ms, 1)
    return body


def headers(error: BaseException) -> dict[str, str]:
    """Return the response headers that belong to an error."""
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, Overloaded):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_ms / 1e3)))}
    if isinstance(error, BackendUnavailable | InvalidLogits):
        return {"Retry-After": "1"}  # the gateway checks for its return all the time
    if isinstance(error, UnsupportedEncoding):
        return {"Accept-Encoding": ", ".join(error.supported)}  # RFC 9110, section 15.5.16
    if isinstance(error, BodyTooSlow):
        return {"Connection": "close"}  # what is still to come would be read as the next request
    return dict(error.headers or {}) if isinstance(error, HTTPException) else {}


def _detail(error: BaseException) -> str:
    return error.detail if isinstance(error, HTTPException) else str(error)
