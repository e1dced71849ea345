"""Every Prometheus metric of the gateway and the methods that update it; label values are bounded.

`metrics_declared` describes each metric; `exposition` answers scrapes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import product

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
)

from gateway.domain import STAGES, Cost, SloViolation, Timings
from gateway.monitoring.prediction_powered import Interval
from gateway.observability import metrics_declared as declared
from gateway.observability.metrics_declared import (
    CACHED,
    CLOSINGS,
    DENIALS,
    FILES,
    FRONTENDS,
    OBJECTIVES,
    Declared,
)
from gateway.slo import DEADLINE_FACTOR, STANDARD_CLASSES, SloClass

# Sub-millisecond edges for the stages; `edges_s` adds the bounds of the classes.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03),
    *(0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.4, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

# Seen / predicted P95: 1 is where a prediction stops to hold.
RATIOS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)  # windows

# The time each series was made would be half of all there is to send, and no query of ours asks for it.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's


def edges_s(classes: Mapping[str, SloClass]) -> tuple[float, ...]:
    """Return the histograms' edges, s: one at the target and one at the deadline of every class."""
    targets = {each.latency_ms / 1e3 for each in classes.values()}
    deadlines = {
        (each.timeout_ms or DEADLINE_FACTOR * each.latency_ms) / 1e3 for each in classes.values()
    }
    return tuple(sorted({*SECONDS, *targets, *deadlines}))


class Metrics:
    """The gateway's metrics in a registry of their own."""

    def __init__(self, classes: Mapping[str, SloClass] = STANDARD_CLASSES) -> None:
        self.registry = CollectorRegistry()
        # Returns the metrics of all workers, given those of this one; None: it is the only one.
        self.merge: Callable[[Sequence[Metric]], Awaitable[Sequence[Metric]]] | None = None
        self.declared: list[Declared] = []
        seconds = edges_s(classes)
        self._declare_requests(seconds)
        self._declare_models(seconds)
        self._declare_catalog(seconds)
        self._declare_certificate_tests()
        self._declare_feedback()
        self._declare_access()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        # Looking a child up costs more than counting in it; how many there are is bounded.
        self._decided = cache(self.decisions.labels)
        self._objective = cache(self._find_objectives)
        self._predicted = cache(self._find_predicted)
        self._ratio = cache(self.prediction_ratio.labels)
        self._inferred = cache(self.inference.labels)
        self._batched = cache(self.batch.labels)
        self._tokens = cache(self._find_tokens)
        self._ended = cache(self.requests.labels)
        self._lasted = cache(self.duration.labels)
        self._violated = cache(self.slo.labels)
        self._computed = cache(self._find_compute)
        self._stages = [self.stage.labels(name) for name in STAGES]
        self._bear(classes)

    def _declare_requests(self, seconds: Sequence[float]) -> None:
        """Requests and answers."""
        self.requests = self._counter(declared.REQUESTS)
        self.duration = self._histogram(declared.DURATION, edges=seconds)
        self.stage = self._histogram(declared.STAGE, edges=seconds)
        self.in_flight = self._gauge(declared.IN_FLIGHT)
        self.windows = self._histogram(declared.WINDOWS, edges=COUNTS)
        self.decisions = self._counter(declared.DECISIONS)
        self.slo = self._counter(declared.SLO)
        self.slo_requests = self._counter(declared.SLO_REQUESTS)
        self.partial_answers = self._counter(declared.PARTIAL_ANSWERS)
        self.sheds = self._counter(declared.SHEDS)
        self.escalations = self._counter(declared.ESCALATIONS)
        self.retries = self._counter(declared.RETRIES)
        self.compute = self._counter(declared.COMPUTE)
        self.largest_compute = self._counter(declared.LARGEST_COMPUTE)
        self.cache_requests = self._counter(declared.CACHE_REQUESTS)
        self.cache_answers = self._gauge(declared.CACHE_ANSWERS)
        self.cache_bytes = self._gauge(declared.CACHE_BYTES)

    def _declare_models(self, seconds: Sequence[float]) -> None:
        """Variants and their model server."""
        self.inference = self._histogram(declared.INFERENCE, edges=seconds)
        self.batch = self._histogram(declared.BATCH, edges=COUNTS)
        self.tokens = self._counter(declared.TOKENS)
        self.predictions = self._counter(declared.PREDICTIONS)
        self.prediction_ratio = self._histogram(declared.PREDICTION_RATIO, edges=RATIOS)
        self.backend_up = self._gauge(declared.BACKEND_UP)
        self.backend_restarts = self._counter(declared.BACKEND_RESTARTS)
        self.worker_restarts = self._counter(declared.WORKER_RESTARTS)
        self.repeated = self._counter(declared.REPEATED_CALLS)
        self.instances_lost = self._counter(declared.INSTANCES_LOST)
        self.model_reloads = self._counter(declared.MODEL_RELOADS)
        self.healing = self._gauge(declared.HEALING)
        self._declare_replicas()
        self.windows_pending = self._gauge(declared.WINDOWS_PENDING)
        self.queue_wait = self._gauge(declared.QUEUE_WAIT)
        self.breaker_open = self._gauge(declared.BREAKER_OPEN)
        self.breaker_changes = self._counter(declared.BREAKER_CHANGES)

    def _declare_replicas(self) -> None:
        """Each of several model servers."""
        self.replica_up = self._gauge(declared.REPLICA_UP)
        self.replica_in_flight = self._gauge(declared.REPLICA_IN_FLIGHT)
        self.replica_ejections = self._counter(declared.REPLICA_EJECTIONS)

    def _declare_feedback(self) -> None:
        """What callers report of answers."""
        self.feedback = self._counter(declared.FEEDBACK)
        self.live_f1 = self._gauge(declared.LIVE_F1)
        self.live_low_f1 = self._gauge(declared.LIVE_LOW_F1)
        self.live_high_f1 = self._gauge(declared.LIVE_HIGH_F1)
        self.live_known = self._gauge(declared.LIVE_KNOWN)

    def _declare_access(self) -> None:
        """Connections and API keys."""
        self.connections = self._gauge(declared.CONNECTIONS)
        self.connections_closed = self._counter(declared.CONNECTIONS_CLOSED)
        self.denied = self._counter(declared.DENIED)
        self.key_requests = self._counter(declared.KEY_REQUESTS)
        self.reloads = self._counter(declared.RELOADS)
        self.certificate_ends = self._gauge(declared.CERTIFICATE_ENDS)
        self.reload_refused = self._gauge(declared.RELOAD_REFUSED)

    def _declare_catalog(self, seconds: Sequence[float]) -> None:
        """The catalog that is served."""
        self.variant_up = self._gauge(declared.VARIANT_UP)
        self.hash_matches = self._gauge(declared.HASH_MATCHES)
        self.certified_f1 = self._gauge(declared.CERTIFIED_F1)
        self.catalog_switches = self._counter(declared.CATALOG_SWITCHES)
        self.catalog_refused = self._gauge(declared.CATALOG_REFUSED)
        self.catalog = self._info(declared.CATALOG)
        self.catalog_loaded = self._gauge(declared.CATALOG_LOADED)
        self.candidate_share = self._gauge(declared.CANDIDATE_SHARE)
        self.candidate_refused = self._gauge(declared.CANDIDATE_REFUSED)
        self.rollouts = self._counter(declared.ROLLOUTS)
        self.rollout_compared = self._counter(declared.ROLLOUT_COMPARED)
        self.rollout_evidence = self._gauge(declared.ROLLOUT_EVIDENCE)
        self.rollout_duration = self._histogram(declared.ROLLOUT_DURATION, edges=seconds)
        self.log_lines_lost = self._counter(declared.LOG_LINES_LOST)
        self.decisions_lost = self._counter(declared.DECISIONS_LOST)
        self.build = self._info(declared.BUILD)

    def _declare_certificate_tests(self) -> None:
        """Tests whether certificates still hold."""
        self.shadows = self._counter(declared.SHADOWS)
        self.certificate_evidence = self._gauge(declared.CERTIFICATE_EVIDENCE)
        self.certificate_broken = self._gauge(declared.CERTIFICATE_BROKEN)
        self.confidence_shift = self._gauge(declared.CONFIDENCE_SHIFT)
        self.confidence_shifted = self._gauge(declared.CONFIDENCE_SHIFTED)

    def _bear(self, classes: Iterable[str]) -> None:
        """Create series at 0: `rate` and `increase` miss the first event of a series that begins at 1."""
        for slo_class in classes:
            self.partial_answers.labels(slo_class)
            self._computed(slo_class)
            for held in (True, False):
                self._objective(slo_class, *[held] * len(OBJECTIVES))
        rare = (
            (self.cache_requests, product(CACHED)),
            (self.connections_closed, product(CLOSINGS)),
            (self.denied, product(FRONTENDS, DENIALS)),
            (self.reloads, product(FILES, ("loaded", "refused"))),
            (self.reload_refused, product(FILES)),
            (self.catalog_switches, product(("switched", "refused"))),
            (self.rollouts, product(declared.ROLLED_OUT)),
        )
        for metric, values in rare:
            for each in values:
                metric.labels(*each)

    def note_decision(self, slo_class: str, plan: str, reason: str) -> None:
        """Count what was chosen, and why; no plan: `none`."""
        self._decided(slo_class, plan, reason).inc()

    def note_inference(self, variant: str, took_s: float, batch: float) -> None:
        """Count what the model server answered, and how many windows it was sent at a time."""
        self._inferred(variant).observe(took_s)
        self._batched(variant).observe(batch)

    def note_tokens(self, variant: str, n_text: int, n: int) -> None:
        """Count the tokens sent: those of the text, and all, padding included."""
        text, padding = self._tokens(variant)
        text.inc(n_text)
        padding.inc(n - n_text)

    def note_prediction(self, variant: str, in_p95: bool, in_p99: bool, ratio: float) -> None:
        """Count whether the predicted latency held; `ratio`: seen / predicted P95."""
        for counter in self._predicted(variant, in_p95, in_p99):
            counter.inc()
        self._ratio(variant).observe(ratio)

    def note_answer(
        self, slo_class: str, violations: Sequence[SloViolation], timings: Timings, n_windows: int
    ) -> None:
        """Count an answer: the time of its stages and what it violates."""
        for stage, ms in zip(self._stages, timings, strict=False):  # the total is no stage
            stage.observe(ms / 1e3)
        self.windows.observe(n_windows)
        self.note_outcome(slo_class, violations)

    def note_outcome(self, slo_class: str, violations: Sequence[SloViolation]) -> None:
        """Count what an answer violates."""
        for outcome in violations or ("met",):
            self._violated(slo_class, outcome).inc()
        if SloViolation.PARTIAL in violations:
            self.partial_answers.labels(slo_class).inc()
        late = SloViolation.LATE in violations
        for counter in self._objective(
            slo_class, not late, len(violations) == late, not violations
        ):
            counter.inc()

    def note_cost(self, slo_class: str, cost: Cost) -> None:
        """Count the compute of an answer, and that of the largest variant in its place."""
        compute, largest = self._computed(slo_class)
        compute.inc(cost.compute_ms / 1e3)
        largest.inc(cost.largest_compute_ms / 1e3)

    def note_violated(self, slo_class: str) -> None:
        """Count a request that got no answer through no fault of its caller."""
        for counter in self._objective(slo_class, *[False] * len(OBJECTIVES)):
            counter.inc()

    def note_request(
        self,
        frontend: str,
        slo_class: str,
        task: str,
        outcome: str,
        took_s: float,
        trace_id: str = "",
    ) -> None:
        """Count how a request ended; its trace becomes an exemplar of the duration."""
        self._ended(frontend, slo_class, task, outcome).inc()
        exemplar = {"trace_id": trace_id} if trace_id else None
        self._lasted(frontend, slo_class, task).observe(took_s, exemplar)

    def note_breaker(self, variant: str, state: str) -> None:
        """Count that a variant's breaker came to another state: `open` or `closed`."""
        self.breaker_open.labels(variant).set(state != "closed")
        self.breaker_changes.labels(variant, state).inc()

    def note_reload(self, file: str, *, loaded: bool) -> None:
        """Count that a file which serving depends on was read again."""
        self.reloads.labels(file, "loaded" if loaded else "refused").inc()
        self.reload_refused.labels(file).set(not loaded)

    def note_catalog(self, sha256: str, commit: str) -> None:
        """Count a switch to this catalog."""
        self.catalog_switches.labels("switched").inc()
        self.catalog_refused.set(0)
        self.catalog.info({"sha256": sha256, "commit": commit})
        self.catalog_loaded.set_to_current_time()

    def note_rollout(self, catalog: str, outcome: str, took_s: float) -> None:
        """Count a request while a candidate is tried: it `met` its SLO, was `broken`, or has `failed`."""
        self.rollout_duration.labels(catalog, outcome).observe(took_s)

    def note_rollout_evidence(self, rate: str, worse: float, no_worse: float) -> None:
        """Show what is known of one rate of the candidate: log10 of both e-values."""
        self.rollout_evidence.labels(rate, "worse").set(worse)
        self.rollout_evidence.labels(rate, "no_worse").set(no_worse)

    def note_candidate(self, share: float, *, refused: bool) -> None:
        """Show how much a candidate gets, and whether there is one that cannot be tried."""
        self.candidate_share.set(share)
        self.candidate_refused.set(refused)
        if not share:
            self.rollout_evidence.clear()

    def note_hashes(self, matches: Mapping[str, bool]) -> None:
        """Show of each variant of the catalog whether the model server has its very file."""
        self.hash_matches.clear()
        for variant, same in matches.items():
            self.hash_matches.labels(variant).set(same)

    def note_floors(self, floors: Mapping[str, float]) -> None:
        """Show the certified F1 of the plans that are served."""
        self.certified_f1.clear()
        for plan, floor in floors.items():
            self.certified_f1.labels(plan).set(floor)

    def note_plan(self, plan: str, log10_e_value: float, *, broken: bool) -> None:
        """Show what is known against a plan's certificate."""
        self.certificate_evidence.labels(plan).set(log10_e_value)
        self.certificate_broken.labels(plan).set(broken)

    def note_confidence(self, variant: str, log10_e_value: float, *, shifted: bool) -> None:
        """Show whether a variant's confidence is spread as certified."""
        self.confidence_shift.labels(variant).set(log10_e_value)
        self.confidence_shifted.labels(variant).set(shifted)

    def note_live(self, found: Iterable[tuple[str, str, int, Interval | None]]) -> None:
        """Show the live F1 of plans: catalog, plan, known outcomes, F1; None: too few are known."""
        for gauge in (self.live_known, self.live_f1, self.live_low_f1, self.live_high_f1):
            gauge.clear()
        for catalog, plan, n_known, f1 in found:
            self.live_known.labels(catalog, plan).set(n_known)
            if f1 is not None:
                self.live_f1.labels(catalog, plan).set(f1.mean)
                self.live_low_f1.labels(catalog, plan).set(f1.low)
                self.live_high_f1.labels(catalog, plan).set(f1.high)

    def clear_certificate_tests(self) -> None:
        """Drop what is shown of plans and variants, before that of another catalog is."""
        for gauge in (self.certificate_evidence, self.certificate_broken):
            gauge.clear()
        for gauge in (self.confidence_shift, self.confidence_shifted):
            gauge.clear()

    def note_queue(self, found: Mapping[str, tuple[int, float]]) -> None:
        """Show the windows pending at each variant, and the wait that they mean, ms."""
        self.windows_pending.clear()
        self.queue_wait.clear()
        for variant, (windows, wait_ms) in found.items():
            self.windows_pending.labels(variant).set(windows)
            self.queue_wait.labels(variant).set(wait_ms / 1e3)

    def _find_objectives(self, slo_class: str, *met: bool) -> list[Counter]:
        words = ["met" if each else "violated" for each in met]
        pairs = zip(OBJECTIVES, words, strict=True)
        return [self.slo_requests.labels(slo_class, objective, word) for objective, word in pairs]

    def _find_predicted(self, variant: str, *held: bool) -> list[Counter]:
        words = ["within" if each else "beyond" for each in held]
        pairs = zip(("0.95", "0.99"), words, strict=True)
        return [self.predictions.labels(variant, quantile, word) for quantile, word in pairs]

    def _find_compute(self, slo_class: str) -> tuple[Counter, Counter]:
        return self.compute.labels(slo_class), self.largest_compute.labels(slo_class)

    def _find_tokens(self, variant: str) -> tuple[Counter, Counter]:
        return self.tokens.labels(variant, "text"), self.tokens.labels(variant, "padding")

    def _counter(self, what: Declared) -> Counter:
        return Counter(*self._declare(what), registry=self.registry)

    def _gauge(self, what: Declared) -> Gauge:
        return Gauge(*self._declare(what), registry=self.registry)

    def _info(self, what: Declared) -> Info:
        name, description, _ = self._declare(what)  # its labels are its value
        return Info(name.removesuffix("_info"), description, registry=self.registry)

    def _histogram(self, what: Declared, edges: Sequence[float]) -> Histogram:
        return Histogram(*self._declare(what), buckets=edges, registry=self.registry)

    def _declare(self, what: Declared) -> tuple[str, str, tuple[str, ...]]:
        self.declared.append(what)
        return what.name, what.description, what.labels
