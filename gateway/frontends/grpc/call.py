"""One gRPC call: its SLO and deadline in, its status and metadata out. Knows no service of ours.

Success: metadata goes out as initial metadata. Failure: as trailing metadata, beside the status.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from gateway import slo
from gateway.api_keys import KeyFileError
from gateway.auth import access
from gateway.auth.tls import CertificateError
from gateway.clock import now_ms
from gateway.domain import SloRequest
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    BadInput,
    BertierError,
    ClientGone,
    DeadlineExceeded,
    FeedbackConflict,
    Forbidden,
    Infeasible,
    InvalidLogits,
    Malformed,
    Overloaded,
    RepositoryError,
    Unauthenticated,
    UnknownRequest,
    UnknownTask,
    kind_of,
)
from gateway.frontends import slo_headers
from gateway.frontends.oip import UnknownModel
from gateway.frontends.problems import FIXED_TEXT
from gateway.observability import observer
from gateway.request import response_cache
from gateway.request.service import AnswerService
from gateway.settings import SettingsError

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
Metadata = tuple[tuple[str, str], ...]

STATUS: Mapping[type[BertierError], grpc.StatusCode] = {
    BadInput: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownTask: grpc.StatusCode.NOT_FOUND,
    UnknownRequest: grpc.StatusCode.NOT_FOUND,
    FeedbackConflict: grpc.StatusCode.ALREADY_EXISTS,
    UnknownModel: grpc.StatusCode.NOT_FOUND,  # as Triton says it
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    Infeasible: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    ClientGone: grpc.StatusCode.CANCELLED,
    BackendUnavailable: grpc.StatusCode.UNAVAILABLE,
    InvalidLogits: grpc.StatusCode.UNAVAILABLE,
    BackendError: grpc.StatusCode.INTERNAL,
    RepositoryError: grpc.StatusCode.INTERNAL,
    SettingsError: grpc.StatusCode.INTERNAL,
    KeyFileError: grpc.StatusCode.INTERNAL,
    CertificateError: grpc.StatusCode.INTERNAL,
}
MAX_NEAREST = 8  # feasible plans listed in metadata, which is limited to 8 KiB


def status_of(error: BaseException) -> grpc.StatusCode:
    """Return the status of an error: its class's, else its nearest base's."""
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    return grpc.StatusCode.INTERNAL


def detail_of(error: BaseException, request_id: str) -> str:
    """Return the message for the caller; the cause of an internal error is only logged."""
    if status_of(error) is not grpc.StatusCode.INTERNAL:
        return str(error)
    return f"{FIXED_TEXT}: {request_id}"


def help_of(error: BaseException) -> Metadata:
    """Return the error's type and hints for a retry, as trailing metadata."""
    pairs = [("error-type", kind_of(error))]
    if isinstance(error, Overloaded):
        # gRFC A6: clients with a retry policy wait this long.
        pairs.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_ms)))))
    if isinstance(error, Infeasible):
        pairs.append(("slo-nearest", json.dumps(error.nearest[:MAX_NEAREST])))
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Call:
    """The metadata of a call: id, SLO and deadline."""

    request_id: str
    metadata: Metadata
    arrived_ms: float
    ends_ms: float | None  # the caller's deadline on the same clock; None: it set none

    @classmethod
    def of(cls, context: Context) -> Call:
        metadata = tuple((name, str(value)) for name, value in context.invocation_metadata() or [])
        given = _first(metadata, "x-request-id")
        arrived_ms = now_ms()
        left_s: float | None = context.time_remaining()  # None where the caller set no deadline
        return cls(
            request_id=slo_headers.request_id(given),
            metadata=metadata,
            arrived_ms=arrived_ms,
            ends_ms=None if left_s is None else arrived_ms + left_s * 1e3,
        )

    def again(self) -> Call:
        """Return the same call as one message of a stream sees it: its time begins now."""
        return replace(self, arrived_ms=now_ms())

    def slo_request(self, fields: Mapping[str, object], timeout_ms: float | None) -> SloRequest:
        """Return the SLO asked for: the message's fields, else the metadata; the tightest deadline.

        Raises: InvalidHeader.
        """
        request = slo.parse(slo_headers.overlay(slo_headers.slo_lookup(self.metadata), fields))
        left_ms = None if self.ends_ms is None else self.ends_ms - self.arrived_ms
        ends = [t for t in (request.timeout_ms, left_ms, timeout_ms) if t is not None]
        return slo_headers.of_caller(replace(request, timeout_ms=min(ends, default=None)))

    def slo_class(self, fields: Mapping[str, object]) -> str | None:
        own = fields.get("slo_class")
        if own is not None:
            return str(own)
        names = ("slo-class", "x-slo-class")
        return next((value for name, value in self.metadata if name in names), None)


def begin(context: Context) -> Call:
    """Return the call, which the log and the metrics of this task know from now on."""
    call = Call.of(context)
    access.CONNECTION.set(context.peer())
    response_cache.receive(call.metadata)
    parent, state = _first(call.metadata, "traceparent"), _first(call.metadata, "tracestate")
    observer.receive(call.request_id, parent, state)
    return call


class Calls:
    """Runs the bodies of unary calls: counts them and turns errors into statuses."""

    def __init__(self, service: AnswerService) -> None:
        self.service = service
        self.began_ms = -math.inf  # when the last call came

    def begin(self, context: Context) -> Call:
        """Return the call, which the log and the metrics of this task know from now on."""
        self.began_ms = now_ms()
        return begin(context)

    async def begin_stream(self, context: Context) -> Call:
        """Return the call of a stream; end it where there is no room for one more."""
        call = self.begin(context)
        try:
            slo_headers.raise_if_full(self.service, "grpc", call.metadata)
        except Overloaded as exc:
            await abort(context, call, exc)
        return call

    async def run(
        self,
        context: Context,
        request: M | Malformed,
        fields: Mapping[str, object],
        body: Callable[[M, Call], Awaitable[tuple[T, Mapping[str, str]]]],
        *,
        task: str | None = None,
        answers: bool = True,
    ) -> T:
        """Return the body's reply, after sending its metadata; abort the call on an error.

        Only what `answers` a question is counted, as in the HTTP frontend; `task` None: the service notes it.
        """
        call = self.begin(context)
        try:
            with self.observed(call, fields, task) if answers else nullcontext():
                reply, metadata = await body(readable(request), call)
        except Exception as exc:  # noqa: BLE001  # one table maps every error
            await abort(context, call, exc)
        await context.send_initial_metadata((*metadata.items(), *common_metadata(call)))
        return reply

    def observed(
        self, call: Call, fields: Mapping[str, object], task: str | None = None
    ) -> AbstractContextManager[object]:
        label = slo_headers.class_label(call.slo_class(fields), self.service.settings)
        return slo_headers.observed(self.service.observer, "grpc", label, task)


def _first(metadata: Metadata, wanted: str) -> str | None:
    return next((value for name, value in metadata if name == wanted), None)


def readable(request: M | Malformed) -> M:
    """Return the message. Raises: Malformed, when there is none."""
    if isinstance(request, Malformed):
        raise request
    return request


async def abort(context: Context, call: Call, error: Exception) -> NoReturn:
    """End the call with the error's status; an internal one is logged with its cause."""
    log_failure(error, call.request_id)
    trailing = (*help_of(error), *common_metadata(call))
    await context.abort(status_of(error), detail_of(error, call.request_id), trailing)


def common_metadata(call: Call) -> Metadata:
    """Return the metadata of every answer and failure: the call's id and the caller's rate limit."""
    return (*access.rate_limit().items(), ("x-request-id", call.request_id))


def log_failure(error: Exception, request_id: str) -> None:
    if status_of(error) is grpc.StatusCode.INTERNAL:
        log.error("request %s failed", request_id, exc_info=error)
    elif isinstance(error, BackendUnavailable):
        log.warning("request %s: %s", request_id, error)


def handlers(service: Any, servicer: object) -> grpc.GenericRpcHandler:
    """Return a service's handlers; a message that cannot be read reaches them as Malformed.

    protoc's own registration would end such a call as INTERNAL, before any code of ours. Methods that the
    servicer lacks are left to grpc, which answers UNIMPLEMENTED.
    """
    served = (m for m in service.methods if hasattr(servicer, m.name))
    table = {m.name: _handler(m, getattr(servicer, m.name)) for m in served}
    return grpc.method_handlers_generic_handler(service.full_name, table)


def _handler(method: MethodDescriptor, behaviour: Any) -> grpc.RpcMethodHandler[Any, Any]:
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    kind = kinds[method.client_streaming, method.server_streaming]
    return kind(behaviour, request_deserializer=_reader(method), response_serializer=_write)


def _reader(method: MethodDescriptor) -> Callable[[bytes], Message | Malformed]:
    message = message_factory.GetMessageClass(method.input_type)

    def read(raw: bytes) -> Message | Malformed:
        try:
            return message.FromString(raw)
        except (DecodeError, UnicodeDecodeError):
            return Malformed(f"not a {method.input_type.full_name} message in UTF-8")

    return read


def _write(message: Message) -> bytes:
    return message.SerializeToString()
