"""Trace spans of requests and their stages, and the W3C trace context. Off until `start` switches it on.

While off, it costs almost nothing and needs no library; `otel` makes the spans. Spans never contain the text of a
question, a context or an answer.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from gateway.domain import Decision, Served, Size, Slo

if TYPE_CHECKING:
    from gateway.observability.otel import RequestSpan, Tracing

log = logging.getLogger(__name__)

# Later versions may add fields; an id of zeros is none.
# Source: https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
TRACE_VARIABLES = (
    *("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    "OTEL_EXPORTER_OTLP_ENDPOINT",
)

_OFF: AbstractContextManager[None] = nullcontext()
_parent: ContextVar[Mapping[str, str]] = ContextVar("parent", default={})  # noqa: B039 (never written to)
_active: Tracing | None = None


def start(version: str) -> bool:
    """Switch tracing on if OTEL_* variables configure it; return whether it is on.

    An error in them is logged; the gateway serves without traces.
    """
    global _active
    variable = _configured_by(os.environ)
    if variable is None:
        return False
    try:
        from gateway.observability.otel import Tracing

        _active = Tracing(version, os.environ)
    except ImportError as exc:
        log.error("no traces: %s is set, but %s; install the extra `otel`", variable, exc)
    except Exception as exc:  # noqa: BLE001 (the SDK says in many ways what it cannot read)
        log.error("no traces: the OTEL_* variables cannot be used: %s", exc)
    else:
        log.info("traces are on, because %s is set", variable)
    return _active is not None


def stop() -> None:
    """Send the remaining spans, for a short time, and switch tracing off."""
    global _active
    if _active is not None:
        _active.close()
        _active = None


def receive(traceparent: str | None, tracestate: str | None) -> str:
    """Note the caller's context for the requests of this task; return its trace id, '' for none."""
    found = TRACEPARENT.fullmatch(traceparent or "")
    if not found or found["version"] == "ff":
        _parent.set({})
        return ""
    _parent.set({"traceparent": found[0], "tracestate": tracestate or ""})
    return found["trace"]


def request(frontend: str, request_id: str) -> AbstractContextManager[RequestSpan | None]:
    """Open the span of one request, as a child of the caller's span if there is one."""
    if _active is None:
        return _OFF
    return _active.request(
        _parent.get(), {"bertier.frontend": frontend, "bertier.request_id": request_id}
    )


def stage(name: str, variant: str = "") -> AbstractContextManager[None]:
    """Open the span of one stage of the current request."""
    if _active is None:
        return _OFF
    return _active.stage(name, {"bertier.variant": variant} if variant else {})


def queued(wait_ms: float) -> None:
    """Record the wait in the gateway at the beginning of the open stage."""
    if _active is not None:
        _active.record("queue", wait_ms)


def decided(slo: Slo, decision: Decision, size: Size) -> None:
    """Add the SLO and the decision to the request's span."""
    if _active is not None:
        _active.annotate(
            {
                "bertier.slo.class": slo.slo_class,
                "bertier.slo.latency_ms": slo.latency_ms,
                "bertier.slo.min_f1": slo.min_f1,
                "bertier.slo.policy": slo.policy.value,
                "bertier.bucket_tokens": size.bucket,
                "bertier.windows": size.n_windows,
                "bertier.reason": decision.reason.value,
                "bertier.plan": decision.option.plan.name if decision.option else "none",
            }
        )


def answered(what: Served[Any]) -> None:
    """Add the answering variant and the SLO outcome to the request's span."""
    if _active is not None:
        _active.annotate(
            {
                "bertier.variant": what.variant,
                "bertier.slo.met": what.met,
                "bertier.predicted_ms": what.option.predicted_ms,
                "bertier.certified_f1": what.option.certified_f1,
            }
        )


def outgoing() -> tuple[tuple[str, str], ...] | None:
    """Return the context of the open span, as metadata of a call to a model server."""
    return None if _active is None else _active.outgoing()


def _configured_by(environ: Mapping[str, str]) -> str | None:
    """Return the variable that configures traces; None: there is none."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    configured = [name for name in TRACE_VARIABLES if environ.get(name)]
    if not configured or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    return configured[0]
