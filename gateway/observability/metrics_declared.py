"""The declaration of each Prometheus metric: name, kind, description and labels. Creates no metric.

`metrics` creates the metrics from these; `gateway.docs.metrics` documents the values of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

# Label values that are the same in every gateway.
OBJECTIVES = ("latency", "accuracy", "joint")
FRONTENDS = ("http", "grpc")
CACHED = ("hit", "miss", "bypass")
DENIALS = ("missing", "unknown", "scope")
CLOSINGS = ("slow_head", "large_head", "malformed", "idle", "stalled", "full")
ROLLED_OUT = ("promoted", "withdrawn", "refused")
FILES = ("keys", "certificate", "classes")  # that serving depends on, and that are read again


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric as it is documented."""

    name: str  # as it is queried, without a histogram's endings
    kind: str  # counter, gauge or histogram
    description: str
    labels: tuple[str, ...]


def _counter(name: str, description: str, *labels: str) -> Declared:
    return Declared(name, "counter", description, labels)


def _gauge(name: str, description: str, *labels: str) -> Declared:
    return Declared(name, "gauge", description, labels)


def _histogram(name: str, description: str, *labels: str) -> Declared:
    return Declared(name, "histogram", description, labels)


_info = _gauge  # a gauge of value 1; the labels hold the information


# Requests and their answers.
REQUESTS = _counter(
    "bertier_requests_total",
    "Requests that have ended.",
    *("frontend", "slo_class", "task", "outcome"),
)
DURATION = _histogram(
    "bertier_request_duration_seconds",
    "Time from the request read to the answer ready, failures included.",
    *("frontend", "slo_class", "task"),
)
STAGE = _histogram(
    "bertier_stage_duration_seconds",
    "Time of one stage of a request that was answered.",
    "stage",
)
IN_FLIGHT = _gauge(
    "bertier_requests_in_flight",
    "Requests being answered.",
)
WINDOWS = _histogram(
    "bertier_windows",
    "Windows that the context of a request was read in.",
)
DECISIONS = _counter(
    "bertier_decisions_total",
    "Routing decisions.",
    *("slo_class", "plan", "reason"),
)
SLO = _counter(
    "bertier_slo_outcomes_total",
    "Answers; one with two violations counts under both.",
    *("slo_class", "outcome"),
)
SLO_REQUESTS = _counter(
    "bertier_slo_requests_total",
    "Requests without a fault of the caller, by objective; refused or failed ones miss all.",
    *("slo_class", "objective", "outcome"),
)
PARTIAL_ANSWERS = _counter(
    "bertier_partial_answers_total",
    "Answers from a part of a long context, for lack of time.",
    "slo_class",
)
SHEDS = _counter(
    "bertier_sheds_total",
    "Requests refused by admission control, before their bodies were read.",
    *("frontend", "reason"),
)
ESCALATIONS = _counter(
    "bertier_escalations_total",
    "Stages of cascades: answer kept, escalated to the next variant, or escalation cut (no time, or a failing variant).",
    *("plan", "outcome"),
)
RETRIES = _counter(
    "bertier_retries_total",
    "Requests whose first variant failed, by result of the retry.",
    "outcome",
)
COMPUTE = _counter(
    "bertier_compute_seconds_total",
    "Compute of answers, s of one core by the profiles of this host; cached answers cost 0.",
    "slo_class",
)
LARGEST_COMPUTE = _counter(
    "bertier_largest_compute_seconds_total",
    "Compute of the same answers by the largest variant.",
    "slo_class",
)
CACHE_REQUESTS = _counter(
    "bertier_cache_requests_total",
    "Questions at the response cache, if it is on.",
    "outcome",
)
CACHE_ANSWERS = _gauge(
    "bertier_cache_answers",
    "Answers in the response cache.",
)
CACHE_BYTES = _gauge(
    "bertier_cache_bytes",
    "Upper bound on the memory of the response cache.",
)
# Variants and their model server.
INFERENCE = _histogram(
    "bertier_inference_duration_seconds",
    "Time of a call to the model server, its queue included.",
    "variant",
)
BATCH = _histogram(
    "bertier_batch_windows",
    "Windows sent to the model server in one call.",
    "variant",
)
TOKENS = _counter(
    "bertier_tokens_total",
    "Tokens sent to the model server.",
    *("variant", "kind"),
)
PREDICTIONS = _counter(
    "bertier_latency_predictions_total",
    "Requests that ended within or beyond the latency quantile predicted for them.",
    *("variant", "quantile", "outcome"),
)
PREDICTION_RATIO = _histogram(
    "bertier_latency_prediction_ratio",
    "Time from the decision to the answer, divided by its predicted P95.",
    "variant",
)
BACKEND_UP = _gauge(
    "bertier_backend_up",
    "1 when the model server is ready.",
    "backend",
)
BACKEND_RESTARTS = _counter(
    "bertier_backend_restarts_total",
    "Restarts of the supervised Triton.",
)
WORKER_RESTARTS = _counter(
    "bertier_worker_restarts_total",
    "Workers that ended and were replaced.",
)
WINDOWS_PENDING = _gauge(
    "bertier_windows_pending",
    "Windows in the model server, at work or waiting.",
    "variant",
)
QUEUE_WAIT = _gauge(
    "bertier_queue_wait_seconds",
    "Predicted wait of a new typical request behind the work in flight.",
    "variant",
)
BREAKER_OPEN = _gauge(
    "bertier_breaker_open",
    "1 while the circuit of the variant is open or half-open.",
    "variant",
)
BREAKER_CHANGES = _counter(
    "bertier_breaker_changes_total",
    "Changes of circuit breakers, by new state.",
    *("variant", "state"),
)
REPEATED_CALLS = _counter(
    "bertier_asked_again_total",
    "Requests repeated because one model instance left them unanswered.",
    "variant",
)
INSTANCES_LOST = _counter(
    "bertier_instances_lost_total",
    "Model instances that ended, were stopped, or answered nothing while another did.",
    "variant",
)
MODEL_RELOADS = _counter(
    "bertier_model_reloads_total",
    "Variants that were loaded again because an instance was lost.",
    *("variant", "result"),
)
HEALING = _gauge(
    "bertier_variant_healing",
    "1 from when an instance was found lost until it is loaded again.",
    "variant",
)
# Each of several model servers.
REPLICA_UP = _gauge(
    "bertier_replica_up",
    "1 while the model server is ready and not ejected.",
    "replica",
)
REPLICA_IN_FLIGHT = _gauge(
    "bertier_replica_in_flight",
    "Requests at the model server.",
    "replica",
)
REPLICA_EJECTIONS = _counter(
    "bertier_replica_ejections_total",
    "How often a model server, or a variant on it, was ejected.",
    "replica",
)
# What callers report of answers.
FEEDBACK = _counter(
    "bertier_feedback_total",
    "Feedback on answers, by what became of it.",
    "outcome",
)
LIVE_F1 = _gauge(
    "bertier_live_f1",
    "F1 of the last answers by feedback and scores, at least 20 of them with feedback.",
    "catalog",
    "plan",
)
LIVE_LOW_F1 = _gauge(
    "bertier_live_low_f1",
    "Lower end of its prediction-powered interval of 95 %.",
    "catalog",
    "plan",
)
LIVE_HIGH_F1 = _gauge(
    "bertier_live_high_f1",
    "Upper end of that interval.",
    "catalog",
    "plan",
)
LIVE_KNOWN = _gauge(
    "bertier_live_known_answers",
    "Answers with feedback that this interval counts.",
    "catalog",
    "plan",
)
# Connections, API keys and denials.
CONNECTIONS = _gauge(
    "bertier_http_connections",
    "HTTP connections that are open.",
)
CONNECTIONS_CLOSED = _counter(
    "bertier_http_connections_closed_total",
    "HTTP connections that the gateway closed or did not accept.",
    "reason",
)
DENIED = _counter(
    "bertier_denied_total",
    "Requests refused for their API key.",
    *("frontend", "reason"),
)
KEY_REQUESTS = _counter(
    "bertier_key_requests_total",
    "Questions by API key.",
    *("key", "outcome"),
)
RELOADS = _counter(
    "bertier_reloads_total",
    "Reloads of files that serving depends on.",
    *("file", "result"),
)
CERTIFICATE_ENDS = _gauge(
    "bertier_certificate_end_timestamp_seconds",
    "When the gateway's TLS certificate ends, Unix time.",
)
RELOAD_REFUSED = _gauge(
    "bertier_reload_refused",
    "1 while such a file cannot be used and its previous contents stay in use.",
    "file",
)
# What is served.
VARIANT_UP = _gauge(
    "bertier_variant_up",
    "1 when the variant is routed to, by how far its certificate holds here.",
    *("variant", "trust"),
)
HASH_MATCHES = _gauge(
    "bertier_variant_hash_matches",
    "1 when the variant's file in the model server is the catalog's by its sha256.",
    "variant",
)
CERTIFIED_F1 = _gauge(
    "bertier_plan_certified_f1",
    "Certified floor of the plan's F1.",
    "plan",
)
CATALOG_SWITCHES = _counter(
    "bertier_catalog_switches_total",
    "New catalogs noticed.",
    "result",
)
CATALOG_REFUSED = _gauge(
    "bertier_catalog_refused",
    "1 while the catalog on disk is refused.",
)
CATALOG = _info(
    "bertier_catalog_info",
    "The catalog that is served, and the commit its study ran at.",
    *("sha256", "commit"),
)
CATALOG_LOADED = _gauge(
    "bertier_catalog_loaded_timestamp_seconds",
    "When the catalog was switched to, Unix time.",
)
CANDIDATE_SHARE = _gauge(
    "bertier_candidate_share",
    "Share of requests that a candidate gets; 0 without one, or in shadow.",
)
CANDIDATE_REFUSED = _gauge(
    "bertier_candidate_refused",
    "1 while a candidate is not fit to be tried.",
)
ROLLOUTS = _counter(
    "bertier_rollouts_total",
    "Candidates, by what became of them.",
    "result",
)
ROLLOUT_DURATION = _histogram(
    "bertier_rollout_duration_seconds",
    "Time of requests while a candidate is tried, by the catalog that answered.",
    *("catalog", "outcome"),
)
ROLLOUT_COMPARED = _counter(
    "bertier_rollout_compared_total",
    "Answers of both catalogs by how they compare with the largest current variant's.",
    *("catalog", "outcome"),
)
ROLLOUT_EVIDENCE = _gauge(
    "bertier_rollout_evidence",
    "Evidence that the candidate is worse, or no worse by more than the margin: log10 of the e-value.",
    *("rate", "claim"),
)
LOG_LINES_LOST = _counter(
    "bertier_log_lines_lost_total",
    "Lines of the log that could not be written.",
)
DECISIONS_LOST = _counter(
    "bertier_decisions_lost_total",
    "Lines of `decisions_file` that could not be written.",
)
BUILD = _info(
    "bertier_build_info",
    "Version of the gateway.",
    "version",
)
# Whether certificates still hold for the questions that are asked.
SHADOWS = _counter(
    "bertier_shadow_total",
    "Shadow answers by how they compare with the answer of the largest variant.",
    *("plan", "outcome"),
)
CERTIFICATE_EVIDENCE = _gauge(
    "bertier_certificate_evidence",
    "Evidence that a plan agrees less than certified with the largest variant: log10 of the e-value.",
    "plan",
)
CERTIFICATE_BROKEN = _gauge(
    "bertier_certificate_broken",
    "1 when that evidence reaches the alarm: the plan is no longer trusted.",
    "plan",
)
CONFIDENCE_SHIFT = _gauge(
    "bertier_confidence_shift",
    "Evidence that a variant's confidence differs from the certified data: log10 of the e-value.",
    "variant",
)
CONFIDENCE_SHIFTED = _gauge(
    "bertier_confidence_shifted",
    "1 when that evidence reaches the alarm; routing does not change.",
    "variant",
)
