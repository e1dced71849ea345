"""Everything that is recorded about a request: metrics, trace spans, access log and decision log.

The frontends and the service report each event once; this module knows who records it. A question fills a
`QuestionRecord` on its way, which is written when the question ends. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from gateway.domain import (
    STAGES,
    Asked,
    Decision,
    Inference,
    Seen,
    Served,
    Size,
    Slo,
    SloViolation,
    Windows,
)
from gateway.errors import (
    BadInput,
    DeadlineExceeded,
    Infeasible,
    Overloaded,
    is_gateway_at_fault,
    kind_of,
)
from gateway.observability import logs, tracing
from gateway.observability.decision_log import DecisionLog, Entry
from gateway.observability.metrics import Metrics

UNKNOWN_TASK = "unknown"  # metric label of a request that failed before its task was known

access_log = logging.getLogger("gateway.request_log")  # documented: operators filter by it


@dataclass(slots=True)
class RequestRecord:
    """A request of a frontend; one request may hold several questions."""

    read_s: (
        float | None
    )  # when it was read: its duration counts from then; None: it is not read yet
    logged: list[dict[str, Any]] | None  # a line of the access log per answer; None: not sampled
    task: str | None  # None: not known yet

    def read(self) -> None:
        """Note that the whole request was read."""
        self.read_s = time.perf_counter()

    def took_s(self) -> float:
        return 0.0 if self.read_s is None else time.perf_counter() - self.read_s


@dataclass(slots=True)
class QuestionRecord:
    """What is known about one question, or texts to classify; the service fills it."""

    question: Asked[Any]
    slo: Slo
    arrived_ms: float
    whole: Size | None = None  # the size of its whole context
    size: Size | None = None  # of the part that is asked
    decisions: list[Decision] = field(default_factory=list)  # two when another plan is asked
    answered: Served[Any] | None = None
    # Of the decision log: two where the candidate catalog failed first.
    entries: list[Entry] = field(default_factory=list)


_request: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def receive(request_id: str, traceparent: str | None, tracestate: str | None) -> None:
    """Note the id and the trace context of the requests of this task."""
    logs.request_id.set(request_id)
    logs.trace_id.set(tracing.receive(traceparent, tracestate))


class Observer:
    """Records the events of requests, from their arrival to the answer."""

    def __init__(
        self, metrics: Metrics, decisions: DecisionLog, clock: Callable[[], float]
    ) -> None:
        self._metrics = metrics
        self._decisions = decisions
        self._clock = clock
        self._logged_share = 0.0
        self._log_texts = False

    def log_access(self, share: float, *, texts: bool) -> None:
        """Log this share of the requests, 0 to 1; `texts`: with question, context and answer."""
        self._logged_share = share
        self._log_texts = texts

    @contextmanager
    def request(
        self, frontend: str, slo_class: str, task: str | None, *, unread: bool = False
    ) -> Iterator[RequestRecord]:
        """Record how the request of the block ends; `unread`: the block reports when its body is read.

        `task`: one that is served, or `qa`; None: the SLO says it, once it is known.
        """
        began_s = time.perf_counter()
        sampled = self._logged_share > 0 and random.random() < self._logged_share
        record = RequestRecord(None if unread else began_s, [] if sampled else None, task)
        _request.set(record)
        outcome, failed = "ok", False
        with tracing.request(frontend, logs.request_id.get()) as span:
            if span is not None:
                logs.trace_id.set(span.trace_id)
            try:
                yield record
            except asyncio.CancelledError:
                outcome = "gone"
                raise
            except Exception as exc:
                outcome, failed = kind_of(exc), is_gateway_at_fault(exc)
                raise
            finally:
                trace_id = logs.trace_id.get()
                self._metrics.note_request(
                    *(frontend, slo_class, record.task or UNKNOWN_TASK, outcome),
                    *(record.took_s(), trace_id),
                )
                if failed:
                    self._metrics.note_violated(slo_class)
                if span is not None:
                    span.end(outcome, failed=failed)
                if record.logged is not None:
                    said = {"frontend": frontend, "class": slo_class, "outcome": outcome}
                    unanswered = {"total_ms": round((time.perf_counter() - began_s) * 1e3, 3)}
                    _log_access(said, record.logged or [unanswered])

    def refused(self, slo: Slo, frontend: str, rule: str) -> None:
        """Record that admission control refused a request by this rule."""
        _note_task(slo)
        self._metrics.sheds.labels(frontend, rule).inc()
        if self._decisions.on:
            entry = Entry(slo, self._clock(), reason=rule, outcome="refused")
            self._decisions.add(entry)

    def decided(self, entries: Sequence[Entry]) -> None:
        """Write one line about a question: where the candidate catalog failed first, it tells both."""
        first, last = entries[0], entries[-1]
        last.instead_of = None if first is last else first
        self._decisions.add(last)

    @contextmanager
    def question(
        self, question: Asked[Any], slo: Slo, arrived_ms: float, entries: list[Entry]
    ) -> Iterator[QuestionRecord]:
        """Record how the question answered in the block ends; `entries`: for `decided`."""
        _note_task(slo)
        record = QuestionRecord(question, slo, arrived_ms, entries=entries)
        try:
            yield record
        except BaseException as exc:
            self._write(record, exc)
            raise
        else:
            self._write(record, None)

    def stage(self, name: str, variant: str = "") -> AbstractContextManager[object]:
        """Record the block as a stage of the current question."""
        return tracing.stage(name, variant)

    def retried(self, outcome: str) -> None:
        """Record what followed when a plan's first variant failed."""
        self._metrics.retries.labels(outcome).inc()

    def answered_from_cache(self, question: Asked[Any], answered: Served[Any]) -> None:
        """Record an answer that was kept: no stage of it took place, and nothing was decided."""
        _note_task(answered.slo)
        slo_class = answered.slo.slo_class
        self._metrics.cache_requests.labels("hit").inc()
        self._metrics.note_outcome(slo_class, answered.violations)
        self._metrics.note_cost(slo_class, answered.cost)
        tracing.answered(answered)
        self._log_answer(question, answered)

    def missed_cache(self) -> None:
        """Record a request that found no cached answer."""
        self._metrics.cache_requests.labels("miss").inc()

    def bypassed_cache(self) -> None:
        """Record a request that neither reads nor leaves a cached answer."""
        self._metrics.cache_requests.labels("bypass").inc()

    def cache_holds(self, n_answers: int, n_bytes: float) -> None:
        """Record what the response cache holds."""
        self._metrics.cache_answers.set(n_answers)
        self._metrics.cache_bytes.set(n_bytes)

    def inferred(self, variant: str, windows: Windows, inference: Inference) -> None:
        """Record an inference, while its stage is open."""
        took_s = (inference.queue_ms + inference.infer_ms) / 1e3
        self._metrics.note_inference(variant, took_s, windows.n_windows / inference.n_batches)
        self._metrics.note_tokens(variant, *windows.count_tokens())
        tracing.queued(inference.queue_ms)

    def predicted(self, seen: Seen | None) -> None:
        """Record whether a predicted latency held; None: that is unknown."""
        if seen is not None:
            self._metrics.note_prediction(seen.variant, seen.in_p95, seen.in_p99, seen.ratio)

    def breaker_changed(self, variant: str, state: str) -> None:
        """Record that a variant's breaker opened or closed."""
        self._metrics.note_breaker(variant, state)

    def _write(self, record: QuestionRecord, error: BaseException | None) -> None:
        slo_class, decisions = record.slo.slo_class, record.decisions
        for decision in decisions:
            plan = decision.option.plan.name if decision.option else "none"
            self._metrics.note_decision(slo_class, plan, decision.reason)
        if record.size is not None and decisions:
            tracing.decided(record.slo, decisions[0], record.size)
        if record.size is not None and (answered := record.answered) is not None:
            violations, timings = answered.violations, answered.timings
            self._metrics.note_answer(slo_class, violations, timings, record.size.n_windows)
            self._metrics.note_cost(slo_class, answered.cost)
            self._count_escalations(answered)
            tracing.answered(answered)
            self._log_answer(record.question, answered)
        if self._decisions.on and not isinstance(error, BadInput):  # else nothing was decided
            record.entries.append(self._entry(record, error))

    def _count_escalations(self, answered: Served[Any]) -> None:
        """Count what a cascade did after each variant but its last one: it escalated, or it stopped."""
        plan = answered.option.plan
        n_escalated = plan.variants.index(answered.variant)
        outcomes = ["escalated"] * n_escalated
        if n_escalated < len(plan.variants) - 1:
            cut = SloViolation.ESCALATION_CUT in answered.violations
            outcomes.append("cut" if cut else "kept")
        for outcome in outcomes:
            self._metrics.escalations.labels(plan.name, outcome).inc()

    def _entry(self, record: QuestionRecord, error: BaseException | None) -> Entry:
        entry = Entry(record.slo, record.arrived_ms, record.whole)
        if record.decisions:
            last = record.decisions[-1]
            entry.reason = last.reason
            if (option := last.option) is not None:
                entry.plan, entry.predicted_ms = option.plan.name, round(option.predicted_ms, 3)
        entry.took_ms = max(0.0, self._clock() - record.arrived_ms)
        entry.outcome = _outcome(error)
        entry.gone = isinstance(error, asyncio.CancelledError)
        return entry

    def _log_answer(self, question: Asked[Any], answered: Served[Any]) -> None:
        """Add an answer to the access log's lines of the current request."""
        request = _request.get()
        if request is None or request.logged is None:
            return
        fields: dict[str, Any] = {
            "plan": answered.option.plan.name,
            "variant": answered.variant,
            "reason": answered.decision.reason.value,
            "met": answered.met,
            **{f"{s}_ms": round(getattr(answered.timings, s), 3) for s in (*STAGES, "total")},
        }
        if self._log_texts:
            fields |= {**question.texts, "answer": answered.answer.text}
        request.logged.append(fields)


def _note_task(slo: Slo) -> None:
    """Note the task of the current request, if it is known by now."""
    request = _request.get()
    if request is not None and slo.task:
        request.task = slo.task


def _log_access(fields: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    for each in lines:
        access_log.info("request", extra={logs.FIELDS: fields | each})


def _outcome(error: BaseException | None) -> str:
    """Return how a question ended, in the words of the decision log."""
    if error is None:
        return "answered"
    if isinstance(error, Overloaded | Infeasible):
        return "refused"
    return "expired" if isinstance(error, DeadlineExceeded) else "failed"
