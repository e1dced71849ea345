"""docs/reference/metrics.md, made from the declarations: `make docs-metrics` writes it, a test keeps it equal."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.domain import STAGES, Reason, SetName, Trust
from gateway.monitoring.rollout_tests import Rate
from gateway.observability.metrics import Metrics
from gateway.observability.metrics_declared import (
    DENIALS,
    FILES,
    FRONTENDS,
    OBJECTIVES,
    ROLLED_OUT,
    Declared,
)


def _words(*words: str) -> str:
    return ", ".join(f"`{word}`" for word in words)


# The values of a label: of one metric (`metric.label`), else of all that have the label. Empty: HEAD describes them.
VALUES = {
    "backend": _words("triton", "embedded"),
    "catalog": "",
    "claim": _words("worse", "no_worse"),
    "commit": "of the study that made the catalog",
    "frontend": "",
    "kind": _words("text", "padding"),
    "plan": "",
    "objective": _words(*OBJECTIVES) + " (both)",
    "quantile": _words("0.95", "0.99"),
    "rate": _words(*Rate),
    "reason": _words(*Reason),
    "replica": "",
    "result": _words("switched", "refused"),
    "sha256": "of `catalog.json`",
    "slo_class": "",
    "stage": _words(*STAGES),
    "state": _words("open", "closed"),
    "task": "`qa`, the name of a classification, or `unknown` (failed before it was known)",
    "trust": _words(*(each for each in Trust if each is not Trust.BROKEN))
    + ", `none` (not served)",
    "variant": "",
    "version": "of the package",
    "file": _words(*FILES),
    "key": "the name of an API key",
    "bertier_cache_requests_total.outcome": "`hit`, `miss`, `bypass` (`Cache-Control: no-store`, or `SLO-Explain`)",
    "bertier_denied_total.reason": _words(*DENIALS),
    "bertier_http_connections_closed_total.reason": "`slow_head` (request head incomplete in time), `large_head`,"
    " `malformed` (not HTTP), `idle` (no request for a long time), `stalled` (the caller did not read),"
    " `full` (`max_connections`)",
    "bertier_feedback_total.outcome": "`taken`, `repeated` (the same again), `conflict` (other than before), `unknown` (no such answer)",
    "bertier_key_requests_total.outcome": _words("admitted", "quota"),
    "bertier_reloads_total.result": _words("loaded", "refused"),
    "bertier_model_reloads_total.result": _words("loaded", "failed"),
    "bertier_decisions_total.plan": "or `none` (refused)",
    "bertier_escalations_total.outcome": _words("kept", "escalated", "cut"),
    "bertier_latency_predictions_total.outcome": _words("within", "beyond"),
    "bertier_request_duration_seconds.slo_class": "or `unknown`",
    "bertier_requests_total.outcome": "`ok`, `gone` (the caller left), or a"
    " [kind of failure](api.md#failures)",
    "bertier_requests_total.slo_class": "or `unknown`",
    "bertier_retries_total.outcome": "`retried`, `no_plan` (no other plan in time), `no_budget`",
    "bertier_rollout_compared_total.outcome": "`agreed`, `disagreed`, `dropped` (no room to ask), `failed`",
    "bertier_rollout_duration_seconds.outcome": "`met`, `violated` (late, below the floor, refused ...), `failed`",
    "bertier_rollouts_total.result": _words(*ROLLED_OUT),
    "bertier_shadow_total.outcome": "`agreed`, `disagreed`, `both_silent` (neither answered),"
    " `dropped` (no capacity), `failed`",
    "bertier_sheds_total.reason": "`full` (`max_in_flight`, or [too many bytes being read](../explanation/routing.md#admission)), `strict` (cannot be met now), `unreachable` (no plan by the deadline)",
    "bertier_slo_outcomes_total.outcome": "`met`, or a [value of `SLO-Met`](api.md#headers-of-an-answer)",
    "bertier_slo_requests_total.outcome": _words("met", "violated"),
}

HEAD = f"""# Metrics

Made from `gateway/observability/metrics_declared.py` by `make docs-metrics`; [how to query them](../how-to/metrics.md).

Names in `_total` are counters, others gauges, unless the row says histogram. The unit is in the name; without one it is a number, F1 and shares from 0 to 1. `_info` is always 1; a metric that is 1 when or while something holds is else 0. `frontend` is {_words(*FRONTENDS)}; `catalog`:
{_words(*SetName)}; `replica`: the address of a model server, where there are several. No request can make a new label value.
Histograms of durations have an edge at the target and at the deadline of every SLO class.

| metric | labels | |
|---|---|---|
"""

FOOT = """
Also, as Prometheus' clients name them: `process_...` (on Linux), `python_gc_...` and `python_info`. Triton's own metrics (`nv_...`) are on its metrics port.
"""


def document(metrics: Metrics) -> str:
    """Return the whole page."""
    return HEAD + "\n".join(_row(each) for each in metrics.declared) + "\n" + FOOT


def _row(metric: Declared) -> str:
    labels = "<br>".join(_labels(metric))
    kind = "Histogram. " if metric.kind == "histogram" else ""
    return f"| `{metric.name}` | {labels} | {kind}{metric.description} |"


def _labels(metric: Declared) -> Iterator[str]:
    for label in metric.labels:
        values = VALUES.get(f"{metric.name}.{label}") or VALUES[label]
        yield f"`{label}`: {values}" if values else f"`{label}`"


if __name__ == "__main__":
    print(document(Metrics()), end="")
