"""Maps Triton's errors to ours: by status where it has one, else by message."""

from __future__ import annotations

import logging
import re

import grpc
import grpc.aio

from gateway.errors import (
    BackendError,
    BackendUnavailable,
    BertierError,
    DeadlineExceeded,
    VariantUnavailable,
)

log = logging.getLogger(__name__)

# Triton has no status of its own for a request that waited longer than its `timeout`.
_QUEUE_TIMEOUT = "request timeout expired"
_STACK = "\n\nAt:"  # begins the Python stack in the reason of a Python backend
NO_EXPLICIT_LOAD = "explicit model load"
# Other than `unavailable`, these say that a model or version is not there (yet).
_NOT_SERVED = ("is not ready", "unknown model", "is not found", "not at ready state", "healthy")


# Of a Python backend, whose process of an instance is gone or silent; it never starts it again.
_INSTANCE_LOST = re.compile(r"Stub process '([^']*)' is not healthy|obtain the health mutex")


def lost_instance(exc: BaseException) -> str | None:
    """Return which instance a call failed at because it is lost; "": Triton does not say; None: it is not lost."""
    if not isinstance(exc, grpc.aio.AioRpcError):
        return None
    found = _INSTANCE_LOST.search(exc.details() or "")
    return None if found is None else found[1] or ""


def inference_error(exc: grpc.aio.AioRpcError, model: str) -> BertierError:
    """Return our error without Triton's own message, which only the log has."""
    error = map_triton_error(exc, model)
    if not isinstance(error, BackendUnavailable):
        return error
    log.warning("%s", error)
    return type(error)(f"{model}: the model server cannot answer now; see /readyz")


def map_triton_error(exc: grpc.aio.AioRpcError, what: str) -> BertierError:
    """Return our error for Triton's; `what` was asked: a model, or the server's address."""
    details = (exc.details() or exc.code().name).split(_STACK)[0].rstrip(";\n ")
    said = details.lower()
    if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED or _QUEUE_TIMEOUT in said:
        return DeadlineExceeded(f"{what}: the model server did not answer in time")
    if any(words in said for words in _NOT_SERVED):
        return VariantUnavailable(f"{what}: {details}")
    if exc.code() is grpc.StatusCode.UNAVAILABLE:
        return BackendUnavailable(f"{what}: {details}")
    return BackendError(f"{what}: {details}")
