"""Everything that is recorded about a request: metrics, trace spans, decision log and access log.

The service reports each event once; this module knows who records it. It decides nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from gateway.domain import Answered, Decision, Question, Size, Slo
from gateway.observability import access_log, tracing
from gateway.observability.decision_log import DecisionLog
from gateway.observability.metrics import Metrics


class Observer:
    """Records the events of requests, from admission to the answer."""

    def __init__(self, metrics: Metrics, decisions: DecisionLog) -> None:
        self._metrics = metrics
        self._decisions = decisions

    def in_flight(self) -> AbstractContextManager[object]:
        """Count a request as in flight for the length of the block."""
        return self._metrics.in_flight.track_inprogress()

    def refused(self, slo: Slo, frontend: str, rule: str) -> None:
        """Record that admission control refused a request by this rule."""
        self._metrics.sheds.labels(frontend, rule).inc()
        self._decisions.refused_unread(slo, rule)

    def answering(self, slo: Slo, arrived_ms: float) -> AbstractContextManager[object]:
        """Record how the question answered in the block ends."""
        return self._decisions.asked(slo, arrived_ms)

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Record the block as a stage of the current request."""
        return tracing.stage(name)

    def decided(self, slo: Slo, decision: Decision, size: Size, whole: Size) -> None:
        """Record the decision about the current request; `whole`: the size of its whole context."""
        tracing.decided(slo, decision, size)
        self._count(slo, decision, whole)

    def retried(self, slo: Slo, outcome: str, decision: Decision, whole: Size) -> None:
        """Record what followed when the first variant failed; `retried`: another plan is asked."""
        self._metrics.retries.labels(outcome).inc()
        if outcome == "retried":
            self._count(slo, decision, whole)

    def answered(self, question: Question, answered: Answered, n_windows: int) -> None:
        """Record an answer."""
        slo_class, violations = answered.slo.slo_class, answered.violations
        self._metrics.note_answer(slo_class, violations, answered.timings, n_windows)
        self._metrics.note_cost(slo_class, answered.cost)
        tracing.answered(answered)
        access_log.answered(question, answered)

    def answered_from_cache(self, question: Question, answered: Answered) -> None:
        """Record an answer that was kept: no stage of it took place, and nothing was decided."""
        slo_class = answered.slo.slo_class
        self._metrics.cache_requests.labels("hit").inc()
        self._metrics.note_outcome(slo_class, answered.violations)
        self._metrics.note_cost(slo_class, answered.cost)
        tracing.answered(answered)
        access_log.answered(question, answered)

    def missed_cache(self) -> None:
        """Record a request that found no kept answer."""
        self._metrics.cache_requests.labels("miss").inc()

    def bypassed_cache(self) -> None:
        """Record a request that neither reads nor leaves a kept answer."""
        self._metrics.cache_requests.labels("bypass").inc()

    def cache_holds(self, n_answers: int, n_bytes: float) -> None:
        """Record what the response cache holds."""
        self._metrics.cache_answers.set(n_answers)
        self._metrics.cache_bytes.set(n_bytes)

    def _count(self, slo: Slo, decision: Decision, whole: Size) -> None:
        plan = decision.option.plan.name if decision.option else "none"
        self._metrics.note_decision(slo.slo_class, plan, decision.reason)
        self._decisions.decided(decision, whole)
