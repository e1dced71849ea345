"""What a gateway refuses or fails with, the same over both protocols.

ApiError
├── InvalidRequest    the question, a header or a field is invalid: correct it
├── Denied            no API key, a wrong one, or one without permission
├── Infeasible        no plan can meet the SLO, even on an idle system: see `nearest`
├── Overloaded        busy: retry after `retry_after_ms`
├── DeadlineExceeded  the deadline of the request has passed
├── Unavailable       no model can answer at present: retry after `retry_after_ms`
├── Unreachable       no gateway answers at this address
└── ServerFailed      the gateway failed; its log has the cause under `request_id`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Failure:
    """The details of a failure; `kind` is the stable last part of the problem's type."""

    kind: str
    detail: str
    request_id: str = ""
    retry_after_ms: float | None = None
    nearest: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def unreachable(url: str, why: str) -> str:
    """Return the message for a failed connection. A gateway that refuses a certificate sends no reason."""
    message = f"no gateway answers at {url}: {why}"
    if url.startswith(("https:", "grpcs:")) and "refused" not in why.lower():
        message += " (if it requires client certificates: check that yours is set, valid now, and signed by its authority)"
    return message


class ApiError(Exception):
    """A request that got no answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.kind = failure.kind
        self.detail = failure.detail
        self.request_id = failure.request_id
        self.retry_after_ms = failure.retry_after_ms
        self.nearest = failure.nearest


class InvalidRequest(ApiError):
    pass


class Denied(ApiError):
    pass


class Infeasible(ApiError):
    pass


class Overloaded(ApiError):
    pass


class DeadlineExceeded(ApiError):
    pass


class Unavailable(ApiError):
    pass


class Unreachable(ApiError):
    pass


class ServerFailed(ApiError):
    pass


UNREACHABLE: Final = "unreachable"
TIMEOUT: Final = "timeout"  # no answer within the client's own timeout
# By HTTP status and by gRPC's; a kind of its own where one status says two things.
_BY_KIND: Final[Mapping[str, type[ApiError]]] = {
    "infeasible": Infeasible,
    UNREACHABLE: Unreachable,
}
_BY_STATUS: Final[Mapping[int | str, type[ApiError]]] = {
    401: Denied,
    403: Denied,
    429: Overloaded,
    503: Unavailable,
    504: DeadlineExceeded,
    "UNAUTHENTICATED": Denied,
    "PERMISSION_DENIED": Denied,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "FAILED_PRECONDITION": Infeasible,
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": InvalidRequest,
    "ALREADY_EXISTS": InvalidRequest,
    "UNIMPLEMENTED": InvalidRequest,
}


def error_of(status: int | str, failure: Failure) -> ApiError:
    """Return the error for an HTTP status, or for the name of a gRPC one."""
    found = _BY_KIND.get(failure.kind) or _BY_STATUS.get(status)
    if found is None:
        refused = isinstance(status, int) and 400 <= status < 500
        found = InvalidRequest if refused else ServerFailed
    return found(failure)
