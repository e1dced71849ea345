"""The only module that knows OpenTelemetry; imported when traces are asked for, and not before.

The SDK reads its own variables: sampler, limits, batching, endpoint, headers, certificates.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

log = logging.getLogger(__name__)

EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
LOG_EVERY_S = 60.0  # between warnings that the collector takes no spans
FLUSH_S = 2.0  # the longest that sending the last spans may delay a stop

Attributes = Mapping[str, str | float]


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """The span of one request, as the frontends see it."""

    span: Span

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self.span.get_span_context().trace_id:032x}"

    def end(self, outcome: str, *, failed: bool) -> None:
        """Record how the request ended; `failed`: without a fault of the caller."""
        self.span.set_attribute("bertier.outcome", outcome)
        if failed:
            self.span.set_attribute("error.type", outcome)
            self.span.set_status(StatusCode.ERROR)


class Tracing:
    """A tracer with the exporter that the variables name."""

    def __init__(self, version: str, environ: Mapping[str, str]) -> None:
        """Raises: ValueError, ImportError, and what the SDK says of its variables."""
        # What the SDK would say of every lost batch, `_Exporter` says now and then.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = _Exporter(_otlp_exporter(environ))
        self._provider = TracerProvider(
            resource=_resource(version, environ), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("bertier", version)
        self._propagator = TraceContextTextMapPropagator()
        self._request: ContextVar[Span | None] = ContextVar("request_span", default=None)

    @contextmanager
    def request(self, parent: Mapping[str, str], attributes: Attributes) -> Iterator[RequestSpan]:
        """Open a request's span; `parent`: the caller's context as it was sent."""
        context = self._propagator.extract(parent)
        with self._open("answer", attributes, SpanKind.SERVER, context) as span:
            token = self._request.set(span)
            try:
                yield RequestSpan(span)
            finally:
                self._request.reset(token)

    @contextmanager
    def stage(self, name: str, attributes: Attributes) -> Iterator[None]:
        """Open a stage's span; of an exception it keeps the type only: a message can hold anything."""
        with self._open(name, attributes) as span:
            try:
                yield
            except BaseException as exc:
                span.set_attribute("error.type", type(exc).__name__)
                span.set_status(StatusCode.ERROR)
                raise

    def annotate(self, attributes: Attributes) -> None:
        """Add attributes to the request's span, whatever stage is open."""
        span = self._request.get()
        if span is not None:
            span.set_attributes(attributes)

    def record(self, name: str, lasted_ms: float) -> None:
        """Record what the open stage began with as a span of its own."""
        stage = get_current_span()
        if isinstance(stage, ReadableSpan) and stage.start_time is not None:
            span = self._tracer.start_span(name, start_time=stage.start_time)
            span.end(stage.start_time + int(lasted_ms * 1e6))

    def outgoing(self) -> tuple[tuple[str, str], ...]:
        """Return the open span's context as headers of a call."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return tuple(carrier.items())

    def close(self) -> None:
        """Send what is left, in a thread: a collector that hangs must not hold up the end."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_S)
        self._exporter.shutdown()

    @contextmanager
    def _open(
        self,
        name: str,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Context | None = None,
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=kind,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span


class _Exporter(SpanExporter):
    """Wraps an exporter and logs its failures now and then, instead of each one."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._lost = 0
        self._logged_s = float("-inf")
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if not self._closed and self._inner.export(spans) is SpanExportResult.SUCCESS:
            return SpanExportResult.SUCCESS
        self._lost += len(spans)
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("the trace collector takes nothing; spans lost so far: %d", self._lost)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        if not self._closed:
            self._closed = True
            self._inner.shutdown()


def _resource(version: str, environ: Mapping[str, str]) -> Resource:
    """Return who sends the spans: `bertier`, where the variables don't name it."""
    said = environ.get("OTEL_SERVICE_NAME", "") + environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in said
    name = {} if named else {"service.name": "bertier"}
    return Resource.create({"service.version": version, **name})


def _otlp_exporter(environ: Mapping[str, str]) -> SpanExporter:
    """Return the exporter for the protocol asked for. Raises: ValueError, ImportError."""
    exporter = environ.get(EXPORTER) or "otlp"
    if exporter != "otlp":
        raise ValueError(f"{EXPORTER}: {exporter!r}; use otlp or none")
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), "http/protobuf")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

        return grpc_exporter.OTLPSpanExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_exporter

        return http_exporter.OTLPSpanExporter()
    raise ValueError(f"{PROTOCOLS[1]}: {protocol!r}; use grpc or http/protobuf")
