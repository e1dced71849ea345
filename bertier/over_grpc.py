"""The gRPC transport: messages, a stream for many questions, statuses as errors. The only user of grpc."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bertier import answers
from bertier.answers import Answer
from bertier.errors import UNREACHABLE, ApiError, Failure, error_of, unreachable
from bertier.questions import Batch, Operation
from bertier.security import Security
from gateway.proto.bertier.v1 import qa_pb2 as pb
from gateway.proto.bertier.v1 import qa_pb2_grpc

T = TypeVar("T")
QA = "QuestionAnswering"
NOBODY = ("UNAVAILABLE", "CANCELLED")
# gRPC's own back-off of a second and more would outlast the client's retries.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
SERVING = health_pb2.HealthCheckResponse.SERVING


class GrpcTransport:
    """One gateway over gRPC, asked from threads."""

    def __init__(
        self, url: str, security: Security, own: Mapping[str, str], timeout_s: float
    ) -> None:
        """`own`: metadata of every call."""
        self._url, self._timeout_s, self._own = url, timeout_s, own
        target = urlsplit(url).netloc
        self._channel = (
            grpc.secure_channel(target, security.credentials(), _CHANNEL_OPTIONS)
            if url.startswith("grpcs:")
            else grpc.insecure_channel(target, _CHANNEL_OPTIONS)
        )
        self._stubs = _stubs(self._channel)

    def call(self, operation: Operation[T], headers: Mapping[str, str]) -> T:
        send = getattr(self._stubs[operation.service], operation.rpc)
        with _foreign(self._url):
            reply, call = send.with_call(
                operation.message, timeout=self._timeout_s, metadata=self._all(headers)
            )
        return answers.with_request_id(operation.of_message(reply), _id_of(call.initial_metadata()))

    def many(self, batch: Batch, headers: Mapping[str, str]) -> Iterator[Answer | ApiError]:
        with _foreign(self._url):
            call = _stream(self._stubs[QA], batch, self._all(headers))
            for item in call:
                yield answers.with_request_id(_item(item), _id_of(call.initial_metadata()))

    def ready(self) -> bool:
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        with _foreign(self._url):
            reply = health.Check(health_pb2.HealthCheckRequest(), timeout=self._timeout_s)
        return bool(reply.status == SERVING)

    def close(self) -> None:
        self._channel.close()

    def _all(self, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        return list({**self._own, **headers}.items())


class AsyncGrpcTransport:
    """One gateway over gRPC, asked from an event loop."""

    def __init__(
        self, url: str, security: Security, own: Mapping[str, str], timeout_s: float
    ) -> None:
        """`own`: metadata of every call."""
        self._url, self._timeout_s, self._own = url, timeout_s, own
        target = urlsplit(url).netloc
        self._channel = (
            grpc.aio.secure_channel(target, security.credentials(), _CHANNEL_OPTIONS)
            if url.startswith("grpcs:")
            else grpc.aio.insecure_channel(target, _CHANNEL_OPTIONS)
        )
        self._stubs = _stubs(self._channel)

    async def call(self, operation: Operation[T], headers: Mapping[str, str]) -> T:
        send = getattr(self._stubs[operation.service], operation.rpc)
        async with _foreign_async(self._url):
            call = send(operation.message, timeout=self._timeout_s, metadata=self._all(headers))
            reply, metadata = await call, await call.initial_metadata()
        return answers.with_request_id(operation.of_message(reply), _id_of(metadata))

    async def many(
        self, batch: Batch, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer | ApiError]:
        async with _foreign_async(self._url):
            call = _stream(self._stubs[QA], batch, self._all(headers))
            async for item in call:
                request_id = _id_of(await call.initial_metadata())
                yield answers.with_request_id(_item(item), request_id)

    async def ready(self) -> bool:
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        async with _foreign_async(self._url):
            reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=self._timeout_s)
        return bool(reply.status == SERVING)

    async def close(self) -> None:
        await self._channel.close()

    def _all(self, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        return list({**self._own, **headers}.items())


def _stubs(channel: grpc.Channel | grpc.aio.Channel) -> dict[str, Any]:
    """Return what sends the calls, by service."""
    kinds: dict[str, Any] = {
        QA: qa_pb2_grpc.QuestionAnsweringStub,
        "Classification": qa_pb2_grpc.ClassificationStub,
    }
    return {name: kind(channel) for name, kind in kinds.items()}


def _stream(stub: Any, batch: Batch, metadata: list[tuple[str, str]]) -> Any:
    """Return the call that answers a batch; the texts of all are sent once."""
    if batch.shared is not None:
        return stub.AnswerMany(batch.shared_message(), metadata=metadata)
    return stub.AnswerStream(iter([ask.message() for ask in batch.asks]), metadata=metadata)


def _id_of(metadata: Any) -> str | None:
    return next((str(value) for name, value in metadata or () if name == "x-request-id"), None)


def _item(item: pb.AnswerItem) -> Answer | ApiError:
    if not item.HasField("failure"):
        return answers.answer_of_message(item.answer)
    failure = item.failure
    after_ms = failure.retry_after_ms if failure.HasField("retry_after_ms") else None
    return error_of(failure.code, Failure(failure.type, failure.detail, retry_after_ms=after_ms))


@contextmanager
def _foreign(url: str) -> Iterator[None]:
    """Turn grpc's errors into ours."""
    try:
        yield
    except grpc.RpcError as exc:
        raise _error(url, exc) from exc


@asynccontextmanager
async def _foreign_async(url: str) -> AsyncIterator[None]:
    with _foreign(url):
        yield


def _error(url: str, exc: Any) -> ApiError:
    """Return the error of a failed call; without `error-type` it did not come from a gateway.

    A stopping gateway cancels calls that reach it at that moment, unread.
    """
    status, detail = exc.code().name, exc.details() or ""
    trailing = {str(k): str(v) for k, v in exc.trailing_metadata() or ()}
    kind = trailing.get("error-type", status.lower())
    if status in NOBODY and "error-type" not in trailing:
        kind, detail = UNREACHABLE, unreachable(url, detail)
    pushback = trailing.get("grpc-retry-pushback-ms")
    failure = Failure(
        kind=kind,
        detail=detail,
        request_id=trailing.get("x-request-id", ""),
        retry_after_ms=None if pushback is None else float(pushback),
        nearest=json.loads(trailing.get("slo-nearest", "[]")),
    )
    return error_of(status, failure)
