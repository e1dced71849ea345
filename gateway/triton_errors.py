"""Triton's errors as ours: by status where it has one, else by its words."""

from __future__ import annotations

import logging

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


_INSTANCE_LOST = ("stub process", "health mutex")  # of a Python backend, which never starts it again


def says_instance_lost(exc: BaseException) -> bool:
    """Say whether Triton answered that the process of the instance is gone, or silent."""
    if not isinstance(exc, grpc.aio.AioRpcError):
        return False
    said = (exc.details() or "").lower()
    return any(words in said for words in _INSTANCE_LOST)


def inference_error(exc: grpc.aio.AioRpcError, model: str) -> BertierError:
    """Return our error for a caller, who is not told Triton's own words: the log has them."""
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
