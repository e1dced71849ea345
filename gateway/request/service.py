"""The life of a request: admit, encode, route, infer, decode. Knows no protocol and no model server."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from gateway.auth import access
from gateway.backends.breaker import RetryBudget
from gateway.backends.protocol import Backend
from gateway.clock import now_ms
from gateway.domain import (
    Answered,
    Candidate,
    Decision,
    Option,
    Question,
    Reason,
    Size,
    Slo,
    SloRequest,
    SloViolation,
    Windows,
)
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    ModelCrashed,
    Overloaded,
    TextTooLong,
    UnknownVariant,
)
from gateway.observability.decision_log import DecisionLog
from gateway.observability.metrics import Metrics
from gateway.observability.observer import Observer
from gateway.qa import codec, own_threshold
from gateway.request import cost, long_context
from gateway.request.cascade import LONG_TEXT_CHARS, Cascade, Job, Outcome, final_violations
from gateway.request.deadline import Deadline
from gateway.request.response_cache import ResponseCache
from gateway.request.shadow import Sample, Shadow
from gateway.routing import explain, policy
from gateway.routing.admission_control import AdmissionControl, Refused
from gateway.routing.choice import Chooser, Routed, route
from gateway.routing.refusal import refusal
from gateway.serving_set import ServingSet
from gateway.settings import Settings
from gateway.slo import resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would happen to a request now; `feasible`: the options that an idle system could offer."""

    slo: Slo
    size: Size
    decision: Decision
    candidates: tuple[Candidate, ...]
    feasible: tuple[Option, ...]


class AnswerService:
    """Answers questions from the current ServingSet, which may be swapped at any time."""

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = now_ms,
        draw: Callable[[], float] = random.random,
        chooser: Chooser = policy,
    ) -> None:
        """`draw` returns a uniform number in [0, 1); it decides which requests are sampled."""
        self.serving: ServingSet | None = None
        self.leaving = False  # the gateway is about to stop
        self.backend = backend
        self.settings = settings
        self.metrics = metrics
        self._clock = clock
        self._chooser = chooser
        self._budget = RetryBudget(settings.retry_share)
        self.admission = AdmissionControl(settings.max_in_flight, lambda: self.serving, clock)
        self._cascade = Cascade(backend, metrics, clock, settings.hedge_share)
        self.shadow = Shadow(backend, settings, metrics, clock, draw)
        lost = metrics.decisions_lost.inc
        self.decisions = DecisionLog(settings.decisions_file, clock, lost)
        self._observer = Observer(metrics, self.decisions)
        self._responses = ResponseCache(settings, self._observer, clock)

    async def answer(
        self,
        question: Question,
        request: SloRequest,
        arrived_ms: float,
        *,
        admitted: bool = False,
        frontend: str = "http",
    ) -> Answered:
        """Answer one question with the smallest model that meets its SLO.

        `admitted`: the request has passed admission control already, in a block of `self.admitted`.
        Raises: BadInput, Infeasible, Overloaded, DeadlineExceeded, BackendError.
        """
        if admitted:
            return await self._answer_in_time(question, request, arrived_ms)
        async with self.admitted(request, frontend):
            return await self._answer_in_time(question, request, arrived_ms)

    @asynccontextmanager
    async def admitted(self, request: SloRequest, frontend: str) -> AsyncIterator[float]:
        """Admit the request for the length of the block; yield how long it waited, ms.

        Raises: BadInput, Overloaded, BackendUnavailable.
        """
        serving = self._serving()
        slo = self._resolve_slo(request, serving)
        try:
            with self._observer.in_flight():
                async with self.admission.admitted(slo, serving, access.caller()) as waited_ms:
                    yield waited_ms
        except Refused as refused:
            self._observer.refused(slo, frontend, refused.rule)
            raise refused.error from None

    def raise_if_full(self, request: SloRequest, frontend: str) -> None:
        """Raise Overloaded where `max_in_flight` is reached; the body of the request is still unread."""
        try:
            self.admission.raise_if_full()
        except Refused as refused:
            if (serving := self.serving) is not None:
                slo = self._resolve_slo(request, serving)
                self._observer.refused(slo, frontend, refused.rule)
            raise refused.error from None

    async def _answer_in_time(
        self, question: Question, request: SloRequest, arrived_ms: float
    ) -> Answered:
        serving = self._serving()
        slo = self._resolve_slo(request, serving)

        async def ask() -> Answered:
            with self._observer.answering(slo, arrived_ms):
                async with self._deadline(slo, arrived_ms):
                    return await self._answer(question, slo, serving, arrived_ms)

        return await self._responses.answer(question, slo, serving, arrived_ms, ask)

    async def _answer(
        self, question: Question, slo: Slo, serving: ServingSet, arrived_ms: float
    ) -> Answered:
        began, sampled = self._clock(), self.shadow.drawn()
        with self._observer.stage("tokenize"):
            windows = await self._encode(question, serving)
        order = long_context.rank(windows) if windows.n_windows > 1 else None
        now = self._clock()
        job = Job(question, slo, serving, windows, arrived_ms, began, now, sampled, order)
        with self._observer.stage("route"):
            job, routed = self._fit(job)
        self._observer.decided(slo, routed.decision, job.size, job.whole)
        option = await self._accept(job, routed)
        self._budget.pay_in()
        try:
            outcome = await self._cascade.answer(job, option)
            return self._answered(job, outcome, option, routed)
        except ModelCrashed:
            raise
        except BackendError as failed:
            second = self._another(job, frozenset(option.plan.variants[:1]))
            if second is None:
                raise
            log.warning("%s; asking %s instead", failed, second[0].plan.name)
        option, routed = second
        outcome = await self._cascade.answer(job, option)
        return self._answered(job, outcome, option, routed)

    def _fit(self, job: Job) -> tuple[Job, Routed]:
        """Route the request; drop the least promising windows of its context until a plan can answer in time."""
        routed = self._route(job)
        while routed.decision.reason is Reason.SHED and job.size.n_windows > 1:
            job = job.shortened()
            routed = self._route(job)
        return job, routed

    def _another(self, job: Job, tried: frozenset[str]) -> tuple[Option, Routed] | None:
        """Return another plan in place of one that failed; None: no plan in time, or no retry budget."""
        routed = self._route(job, tried)
        option = routed.decision.option
        if option is None:
            outcome = "no_plan"
        elif not self._budget.take():
            outcome = "no_budget"
        else:
            outcome = "retried"
        self._observer.retried(job.slo, outcome, routed.decision, job.whole)
        return (option, routed) if option is not None and outcome == "retried" else None

    def _route(self, job: Job, tried: frozenset[str] = frozenset()) -> Routed:
        now, slo, serving, size = self._clock(), job.slo, job.serving, job.size
        spent_ms, failing = now - job.arrived_ms, tried | serving.breakers.failing(now)
        n_behind = self.admission.n_behind
        routed = route(self._chooser, slo, serving, size, spent_ms, now, failing, n_behind)
        if not slo.explain:
            return routed
        candidates = explain.list_candidates(
            serving, slo, size, routed.options, spent_ms, now, failing
        )
        return routed._replace(candidates=candidates)

    async def plan(
        self, request: SloRequest, question: Question | None = None, n_tokens: int | None = None
    ) -> PlanReport:
        """Return what would happen to such a request now, without answering it.

        The size comes from `question`, else `n_tokens`, else a typical request.
        Raises: BadInput, BackendUnavailable.
        """
        serving = self._serving()
        slo = self._resolve_slo(request, serving)
        size = whole = await self._size(serving, question, n_tokens)
        now, n_behind = self._clock(), self.admission.n_behind
        waits_ms = self.admission.expected_wait_ms(slo, now)
        failing = serving.breakers.failing(now)

        def routed(size: Size) -> Routed:
            return route(self._chooser, slo, serving, size, waits_ms, now, failing, n_behind)

        options, decision, _ = routed(size)
        while decision.reason is Reason.SHED and size.n_windows > 1:  # as `_fit` does
            size = replace(size, n_windows=(size.n_windows + 1) // 2)
            options, decision, _ = routed(size)
        if decision.option is not None and size != whole:
            decision = replace(decision, violations=(*decision.violations, SloViolation.PARTIAL))
        candidates = explain.list_candidates(serving, slo, size, options, waits_ms, now, failing)
        nearest = policy.nearest_feasible(slo, options)
        return PlanReport(slo, size, decision, candidates, nearest)

    async def _size(
        self, serving: ServingSet, question: Question | None, n_tokens: int | None
    ) -> Size:
        if question is not None:
            windows = await self._encode(question, serving)
            return Size(windows.input_ids.shape[1], windows.n_windows)
        tokens = n_tokens or codec.TYPICAL_TOKENS
        if tokens <= codec.MAX_TOKENS:
            return Size(codec.bucket_of(tokens), 1)
        return Size(codec.MAX_TOKENS, -(-tokens // (codec.MAX_TOKENS - codec.OVERLAP_TOKENS)))

    def _serving(self) -> ServingSet:
        if self.serving is None or not self.serving.plans():
            raise BackendUnavailable("no model is ready yet; see /readyz")
        return self.serving

    def _resolve_slo(self, request: SloRequest, serving: ServingSet) -> Slo:
        settings = self.settings
        known = [v.name for v in serving.catalog.variants]
        if request.variant is not None and request.variant not in known:
            raise UnknownVariant(request.variant, known)
        if request.variant is not None and request.variant not in serving.trust:
            raise BackendUnavailable(f"{request.variant}: not served at present; see /readyz")
        best = serving.catalog.best_floor
        return resolve(request, settings.classes, settings.default_class, best)

    def _deadline(self, slo: Slo, arrived_ms: float) -> Deadline:
        return Deadline(slo.timeout_ms, slo.timeout_ms - (self._clock() - arrived_ms))

    def _checked(self, question: Question) -> Question:
        limits = self.settings
        if len(question.context) > limits.max_context_chars:
            raise TextTooLong("context", len(question.context), limits.max_context_chars)
        if len(question.question) > limits.max_question_chars:
            raise TextTooLong("question", len(question.question), limits.max_question_chars)
        return question

    async def _encode(self, question: Question, serving: ServingSet) -> Windows:
        self._checked(question)
        if len(question.context) <= LONG_TEXT_CHARS:
            return serving.encoder.encode(question)
        return await asyncio.to_thread(serving.encoder.encode, question)

    async def _accept(self, job: Job, routed: Routed) -> Option:
        """Return the chosen option, or raise the refusal."""
        decision, slo = routed.decision, job.slo
        if decision.option is not None:
            return decision.option
        spent_ms = self._clock() - job.arrived_ms
        error = refusal(decision, slo, routed.options, spent_ms)
        if isinstance(error, Overloaded):
            await self.admission.hold_back(slo, spent_ms, error)
        raise error

    def _answered(self, job: Job, outcome: Outcome, option: Option, routed: Routed) -> Answered:
        slo, decision, candidates = job.slo, routed.decision, routed.candidates
        self._watch(job, outcome, option)
        timings = replace(outcome.timings, total=self._clock() - job.arrived_ms)
        violations = final_violations(decision, outcome, late=timings.total > slo.latency_ms)
        answer = own_threshold.apply(outcome.answer, job.question)
        spent = cost.of_answer(job.serving, option.plan, outcome.variant, job.size)
        answered = Answered(
            answer, slo, decision, option, outcome.variant, violations, timings, candidates, spent
        )
        self._observer.answered(job.question, answered, job.size.n_windows)
        return answered

    def _watch(self, job: Job, outcome: Outcome, option: Option) -> None:
        """Pass the answer to the tests of the certificates.

        Skip pinned variants: evaluations pin them, on questions of any kind. Skip partial answers: no
        certificate covers them. Skip cascades cut short by the deadline: their answer is not the plan's.
        """
        if job.slo.variant is not None:
            return
        if outcome.partial:
            return
        n_tokens = job.windows.n_tokens
        self.shadow.answered(option.plan.variants[0], outcome.first, job.question, n_tokens)
        if job.sampled and not outcome.cut:
            plan, variant = option.plan, outcome.variant
            self.shadow.offer(
                Sample(job.question, job.windows, job.serving, plan, variant, outcome.answer)
            )
