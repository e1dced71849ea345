"""Every Prometheus metric, declared once, with its unit; label values come from bounded sets only."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
)
from prometheus_client import generate_latest as _generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST  # of what `Metrics.text` returns

# Sub-millisecond edges for the stages, and an edge at the target of every shipped class.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03),
    *(0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.4, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

# Seen / predicted P95: 1 is where a prediction stops to hold.
RATIOS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


class Metrics:
    """The gateway's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "bertier_requests",
            "Requests by front, SLO class and outcome (ok or the error's kind).",
            ("front", "slo_class", "outcome"),
            registry=registry,
        )
        self.duration = Histogram(
            "bertier_request_duration_seconds",
            "From the request read to the answer ready.",
            ("front", "slo_class"),
            buckets=SECONDS,
            registry=registry,
        )
        self.stage = Histogram(
            "bertier_stage_duration_seconds",
            "Time of one stage of a request: tokenize, route, queue, infer, decode.",
            ("stage",),
            buckets=SECONDS,
            registry=registry,
        )
        self.decisions = Counter(
            "bertier_decisions",
            "Decisions by SLO class, plan (none: refused) and reason.",
            ("slo_class", "plan", "reason"),
            registry=registry,
        )
        self.slo = Counter(
            "bertier_slo_outcomes",
            "Answers by SLO class and what became of the promise (met, or what gave).",
            ("slo_class", "outcome"),
            registry=registry,
        )
        self.predictions = Counter(
            "bertier_latency_predictions",
            "Requests that ended within or beyond the latency quantile predicted for them.",
            ("variant", "quantile", "outcome"),
            registry=registry,
        )
        self.prediction_ratio = Histogram(
            "bertier_latency_prediction_ratio",
            "Time from the decision to the answer / its predicted P95.",
            ("variant",),
            buckets=RATIOS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "bertier_requests_in_flight", "Requests being answered.", registry=registry
        )
        self.backend_up = Gauge(
            "bertier_backend_up",
            "1 when the model server is ready, else 0.",
            ("backend",),
            registry=registry,
        )
        self.variant_up = Gauge(
            "bertier_variant_up",
            "1 when the variant is routed to, by how far its certificate holds here.",
            ("variant", "trust"),
            registry=registry,
        )
        self.breaker_open = Gauge(
            "bertier_breaker_open",
            "1 while the variant is left alone because it fails, or is being probed, else 0.",
            ("variant",),
            registry=registry,
        )
        self.breaker_changes = Counter(
            "bertier_breaker_changes",
            "Breakers that came to a state: open or closed.",
            ("variant", "state"),
            registry=registry,
        )
        self.retries = Counter(
            "bertier_retries",
            "Requests whose first variant failed, by what came of it: retried, no_plan or no_budget.",
            ("outcome",),
            registry=registry,
        )
        self.escalations = Counter(
            "bertier_escalations",
            "Stages of cascades that were left, by plan and why: kept (sure enough), escalated, or cut (the"
            " time left, or a failing variant, did not allow it).",
            ("plan", "outcome"),
            registry=registry,
        )
        self.catalog_switches = Counter(
            "bertier_catalog_switches",
            "New catalogs noticed, by result: switched or refused.",
            ("result",),
            registry=registry,
        )
        self.backend_restarts = Counter(
            "bertier_backend_restarts", "Restarts of the supervised Triton.", registry=registry
        )
        self.build = Info("bertier_build", "Version of the gateway.", registry=registry)

    def note_breaker(self, variant: str, state: str) -> None:
        """Count that a variant's breaker came to another state: `open` or `closed`."""
        self.breaker_open.labels(variant).set(state != "closed")
        self.breaker_changes.labels(variant, state).inc()

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text form."""
        return _generate_latest(self.registry)
