"""The life of a request: admit, encode, route, infer, decode. Knows no protocol and no model server.

`AnswerService.answer` is that life; its steps are below it, in their order.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from gateway.auth import access
from gateway.backends.breaker import RETRY_BURST, RetryBudget
from gateway.backends.protocol import Backend
from gateway.catalog.schema import QA
from gateway.clock import now_ms
from gateway.domain import (
    A,
    Asked,
    Candidate,
    Decision,
    Option,
    Question,
    Served,
    SetName,
    Size,
    Slo,
    SloRequest,
    SloViolation,
    Texts,
    Windows,
)
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    DeadlineExceeded,
    ModelCrashed,
    Overloaded,
    TextTooLong,
    UnknownVariant,
)
from gateway.observability.decision_log import DecisionLog, Entry
from gateway.observability.metrics import Metrics
from gateway.observability.observer import Observer, QuestionRecord
from gateway.qa import codec
from gateway.request import classification, long_context
from gateway.request.cascade import LONG_TEXT_CHARS, Cascade, Job, Outcome, final_violations
from gateway.request.feedback import Feedback
from gateway.request.response_cache import ResponseCache
from gateway.request.rollout import Again, Rollout, Running
from gateway.request.shadow import Shadow
from gateway.routing import policy
from gateway.routing.admission_control import AdmissionControl, Refused
from gateway.routing.admission_queue import Waiting
from gateway.routing.explain import refusal
from gateway.routing.router import Chooser, Routed, Router
from gateway.serving_set import ServingSet
from gateway.settings import Settings
from gateway.slo import SloClass, resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted request: its SLO, resolved by the catalog that was served at that moment."""

    slo: Slo
    serving: ServingSet
    admitted: Waiting
    waited_ms: float


class Deadline:
    """A block that ends with DeadlineExceeded when the deadline passes within it, or has passed before it.

    A class: every request enters one, and a generator would take some ten calls more.
    """

    def __init__(self, slo: Slo, spent_ms: float) -> None:
        self._timeout_ms = slo.timeout_ms
        self._left_ms = slo.timeout_ms - spent_ms
        self._timer = asyncio.timeout(self._left_ms / 1e3)

    async def __aenter__(self) -> None:
        if self._left_ms <= 0:
            raise self._passed()
        await self._timer.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timer.__aexit__(*raised)
        except TimeoutError as exc:  # of the timer; one from the block is not raised here
            raise self._passed() from exc

    def _passed(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline of {self._timeout_ms:g} ms has passed")


class _Side(NamedTuple):
    """What answers a request: the current set, or the candidate; and by which SLO."""

    slo: Slo
    serving: ServingSet
    name: SetName


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would happen to a request now; `feasible`: the options that an idle system could offer."""

    slo: Slo
    size: Size
    decision: Decision
    candidates: tuple[Candidate, ...]
    feasible: tuple[Option, ...]


class AnswerService:
    """Answers questions, and classifies texts, from the current ServingSet, which may be swapped at any time.

    `backend`: runs the models. `settings`: limits, SLO classes, response cache. `metrics`: counts every request.
    `clock`: returns ms. `draw`: returns a uniform number in [0, 1), to decide which requests are sampled.
    `chooser`: the policy; experiments measure another one in its place.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = now_ms,
        draw: Callable[[], float] = random.random,
        chooser: Chooser = policy,
    ) -> None:
        self.serving: ServingSet | None = None
        self.leaving = False  # the gateway is about to stop
        self.backend = backend
        self.settings = settings
        self.classes: Mapping[str, SloClass] = settings.classes
        self.metrics = metrics
        self.decisions = DecisionLog(settings.decisions_file, metrics.decisions_lost.inc)
        self.observer = Observer(metrics, self.decisions, clock)
        self._responses = ResponseCache(settings, self.observer, clock)
        self.admission = AdmissionControl(settings.max_in_flight, lambda: self.serving, clock)
        metrics.in_flight.set_function(lambda: self.admission.n_open)
        self.shadow = Shadow(backend, settings, metrics, clock, draw)
        self.feedback = Feedback(settings, metrics)
        self.shadow.on_compared = self.feedback.compared
        self.rollout = Rollout(self.shadow, settings, metrics, clock)
        self._clock = clock
        self._router = Router(chooser, clock, self.admission.head_starts_ms)
        self._budget = RetryBudget(settings.retry_share, settings.part_of(RETRY_BURST))
        self._cascade = Cascade(backend, self.observer, clock)

    async def answer(
        self,
        question: Asked[A],
        request: SloRequest,
        arrived_ms: float,
        *,
        admission: Admission | None = None,
        frontend: str = "http",
    ) -> Served[A]:
        """Answer one question, or classify texts, with the smallest model that meets the SLO.

        `admission`: where the caller has admitted the request; None: admit it here.
        Raises: BadInput, Infeasible, Overloaded, DeadlineExceeded, BackendError.
        """
        if admission is None:
            admission = await self.admit(request, frontend, question.task)
            try:
                return await self.answer(question, request, arrived_ms, admission=admission)
            finally:
                self.leave(admission)
        slo, current = self._current(request, admission, question.task)
        entries: list[Entry] = []

        async def ask(tried: Running | None) -> Served[A]:
            side = self._side(request, slo, current, tried)

            async def anew() -> Served[A]:
                again = partial(self._again, request)
                return await self._ask(question, side, arrived_ms, current, entries, again)

            answered = await self._responses.answer(
                question, side.slo, side.serving, arrived_ms, anew
            )
            self.feedback.remember(question, answered, side.serving)
            return answered

        try:
            return await self.rollout.answer(question, slo, current, arrived_ms, ask)
        finally:
            if entries:
                self.observer.decided(entries)

    async def _ask(
        self,
        question: Asked[A],
        side: _Side,
        arrived_ms: float,
        current: ServingSet,
        entries: list[Entry],
        again: Again,
    ) -> Served[A]:
        """Answer from one side: the current set, or the candidate that is tried beside it."""
        slo, serving, name = side
        with self.observer.question(question, slo, arrived_ms, entries) as record:
            async with Deadline(slo, self._clock() - arrived_ms):
                job = await self._encode(question, slo, serving, arrived_ms)
                job, routed = self._route(job, record)
                option = await self._accept(
                    job, routed, final=name is SetName.CURRENT or slo.variant is not None
                )
                try:
                    outcome = await self._cascade.answer(job, option)
                except ModelCrashed:  # this input would end another model, too
                    raise
                except BackendError as failed:
                    option, routed = self._choose_another(job, option, failed, record)
                    outcome = await self._cascade.answer(job, option)
                if serving is current:  # what is certified of it is tested, not of a candidate
                    self.shadow.watch(job, outcome, option.plan)
                self.rollout.watch(job, outcome, routed.decision, name, current, again)
                record.answered = answered = self._answered(job, outcome, option, routed)
                return answered

    async def admit(self, request: SloRequest, frontend: str, task: str | None = QA) -> Admission:
        """Admit the request, after a wait where there is no capacity; it counts until `leave`.

        `task` None: it stands in the body, which is still unread, and is a classification.
        Raises: BadInput, Overloaded, BackendUnavailable.
        """
        serving, caller = self._serving(task), access.caller()
        slo = self._resolve(request, serving)
        try:
            admitted = await self.admission.admit(slo, serving, caller)
        except Refused as refused:
            self.observer.refused(slo, frontend, refused.rule)
            raise refused.error from None
        return Admission(slo, serving, admitted, self._clock() - admitted.arrived_ms)

    def leave(self, admission: Admission) -> None:
        """Count an admitted request no longer: it is answered, or failed."""
        self.admission.leave(admission.admitted)

    def _current(
        self, request: SloRequest, admission: Admission, task: str
    ) -> tuple[Slo, ServingSet]:
        """Return the SLO and the task's serving set.

        Since the admission the catalog may have been switched, or the task may have become known.
        """
        serving = self._serving(task)
        if serving is admission.serving:
            return admission.slo, serving
        return self._resolve(request, serving), serving

    def _side(
        self, request: SloRequest, slo: Slo, current: ServingSet, tried: Running | None
    ) -> _Side:
        """Return what answers a request; only other classes give it another SLO. Raises: Forbidden."""
        if tried is None:
            return _Side(slo, current, SetName.CURRENT)
        if tried.classes:
            slo = self._resolve(request, current, tried.classes)
        return _Side(slo, tried.beside(current), SetName.CANDIDATE)

    async def _encode(
        self, question: Asked[Any], slo: Slo, serving: ServingSet, arrived_ms: float
    ) -> Job:
        began_ms, sampled = self._clock(), self.shadow.drawn()
        with self.observer.stage("tokenize"):
            windows = await self._tokenize(question, serving)
        order = long_context.rank(windows) if windows.n_windows > 1 else None
        encoded_ms = self._clock()
        return Job(
            question, slo, serving, windows, arrived_ms, began_ms, encoded_ms, sampled, order
        )

    def _route(self, job: Job, record: QuestionRecord) -> tuple[Job, Routed]:
        """Return the decision, and the job with as many windows as can be answered in time."""
        spent_ms, detailed = self._clock() - job.arrived_ms, job.slo.explain
        with self.observer.stage("route"):
            routed = self._router.fit(job.slo, job.serving, job.size, spent_ms, detailed=detailed)
        record.whole, record.size = job.whole, routed.size
        record.decisions.append(routed.decision)
        return job.first(routed.size.n_windows), routed

    async def _accept(self, job: Job, routed: Routed, *, final: bool) -> Option:
        """Return the chosen option, or raise the refusal; `final`: no other set answers then."""
        decision, slo = routed.decision, job.slo
        if decision.option is not None:
            self._budget.pay_in()
            return decision.option
        spent_ms = self._clock() - job.arrived_ms
        error = refusal(decision, slo, routed.options, spent_ms)
        if final and isinstance(error, Overloaded):
            await self.admission.hold_back(slo, spent_ms, error)
        raise error

    def _choose_another(
        self, job: Job, option: Option, failed: BackendError, record: QuestionRecord
    ) -> tuple[Option, Routed]:
        """Return a plan in place of one that failed.

        Raises: the failure, where no other plan is in time or the retry budget is used up.
        """
        slo, spent_ms, variant = job.slo, self._clock() - job.arrived_ms, option.plan.variants[0]
        routed = self._router.route(
            slo, job.serving, job.size, spent_ms, {variant}, detailed=slo.explain
        )
        second = routed.decision.option
        if second is None:
            self.observer.retried("no_plan")
            raise failed
        if not self._budget.take():
            self.observer.retried("no_budget")
            raise failed
        self.observer.retried("retried")
        record.decisions.append(routed.decision)
        log.warning("%s; asking %s instead", failed, second.plan.name)
        return second, routed

    async def _again(
        self, request: SloRequest, job: Job, tried: Running
    ) -> tuple[Decision, Outcome]:
        """Answer a job once more, by the candidate and as if it arrived now; nobody waits for it.

        Raises: Forbidden, Infeasible, Overloaded, BackendError, DeadlineExceeded.
        """
        slo, serving, _ = self._side(request, job.slo, job.serving, tried)
        now = self._clock()
        job = replace(job, slo=slo, serving=serving, arrived_ms=now, began_ms=now, encoded_ms=now)
        routed = self._router.route(job.slo, serving, job.size, 0.0)
        if routed.decision.option is None:
            raise refusal(routed.decision, job.slo, routed.options, 0.0)
        async with Deadline(job.slo, 0.0):
            return routed.decision, await self._cascade.answer(job, routed.decision.option)

    def _answered(self, job: Job, outcome: Outcome, option: Option, routed: Routed) -> Served[Any]:
        timings = outcome.timings._replace(total=self._clock() - job.arrived_ms)
        late = timings.total > job.slo.latency_ms
        answer, question = outcome.answer, job.question
        if isinstance(question, Question):
            answer = codec.decide_anew(answer, question)
        return Served(
            answer,
            job.slo,
            routed.decision,
            option,
            outcome.variant,
            final_violations(routed.decision, outcome, late=late),
            timings,
            routed.candidates,
            job.serving.cost(option.plan, outcome.variant, job.size),
        )

    @property
    def retries_left(self) -> tuple[float, float]:
        """How many requests may ask another variant now, and at most."""
        return self._budget.left

    @property
    def cached_answers(self) -> tuple[int, float]:
        """How many answers the response cache has, and an upper bound on their memory, bytes."""
        return self._responses.holds

    def candidates(self) -> tuple[ServingSet, ...]:
        """Return the candidate set that is tried beside the current one, if there is one."""
        running = self.rollout.running
        return () if running is None or running.serving is None else (running.serving,)

    def show_live(self) -> None:
        """Bring the metrics of live F1 up to date, apart for the current catalog and a candidate."""
        running, sets = self.rollout.running, {}
        if self.serving is not None:
            sets[SetName.CURRENT] = self.serving
        if running is not None and running.serving is not None:
            sets[SetName.CANDIDATE] = running.serving
        self.feedback.show(sets)

    def raise_if_full(self, request: SloRequest, frontend: str) -> None:
        """Raise Overloaded where `max_in_flight` is reached; the body of the request is still unread."""
        try:
            self.admission.raise_if_full()
        except Refused as refused:
            if (serving := self.serving) is not None:
                slo = self._resolve(request, serving)
                self.observer.refused(slo, frontend, refused.rule)
            raise refused.error from None

    async def plan(
        self,
        request: SloRequest,
        question: Asked[Any] | None = None,
        n_tokens: int | None = None,
        task: str = QA,
    ) -> PlanReport:
        """Return what would happen to such a request now, without answering it.

        The size comes from `question`, else `n_tokens` of the `task`, else a typical request.
        Raises: BadInput, BackendUnavailable.
        """
        serving = self._serving(task if question is None else question.task)
        slo = self._resolve(request, serving)
        if slo.variant is not None and slo.variant not in serving.trust:
            serving = next(s for s in self._pinnable(serving) if slo.variant in s.trust)
        whole = await self._size(serving, question, n_tokens)
        waits_ms = self.admission.expected_wait_ms(slo, serving.latency.cores, self._clock())
        size, options, decision, candidates = self._router.fit(
            slo, serving, whole, waits_ms, detailed=True
        )
        if decision.option is not None and size != whole:
            decision = replace(decision, violations=(*decision.violations, SloViolation.PARTIAL))
        return PlanReport(slo, size, decision, candidates, policy.nearest_feasible(slo, options))

    async def _size(
        self, serving: ServingSet, question: Asked[Any] | None, n_tokens: int | None
    ) -> Size:
        if question is not None:
            windows = await self._tokenize(question, serving)
            return Size(windows.input_ids.shape[1], windows.n_windows)
        tokens = n_tokens or codec.TYPICAL_TOKENS
        if serving.classification is not None:  # longer texts are cut
            tokens = min(tokens, codec.MAX_TOKENS)
        if tokens <= codec.MAX_TOKENS:
            return Size(codec.bucket_of(tokens), 1)
        return Size(codec.MAX_TOKENS, -(-tokens // (codec.MAX_TOKENS - codec.OVERLAP_TOKENS)))

    def _serving(self, task: str | None = QA) -> ServingSet:
        """Return what serves a task; None: a classification that is not named yet, any of those served.

        Raises: BackendUnavailable, UnknownTask.
        """
        whole = self.serving
        if task is None and whole is not None:
            task = "" if len(whole.catalog.tasks) == 1 else None
        serving = whole if whole is None or task is None else whole.of(task)
        if serving is None or not serving.plans():
            raise BackendUnavailable("no model is ready yet; see /readyz")
        return serving

    def _resolve(
        self,
        request: SloRequest,
        serving: ServingSet,
        tried: Mapping[str, SloClass] = MappingProxyType({}),
    ) -> Slo:
        """Return the request's SLO; `tried`: classes in place of the current ones."""
        classes = {**self.classes, **tried} if tried else self.classes
        variant = request.variant
        if variant is not None:
            sets = self._pinnable(serving)
            if not any(variant in each.variants for each in sets):
                known = dict.fromkeys(name for each in sets for name in each.variants)
                raise UnknownVariant(variant, list(known), self._task_of(variant))
            if not any(variant in each.trust for each in sets):
                raise BackendUnavailable(f"{variant}: not served at present; see /readyz")
        default, task = self.settings.default_class, serving.task or ""
        return resolve(request, classes, default, serving.best_floor, task)

    def _pinnable(self, serving: ServingSet) -> tuple[ServingSet, ...]:
        """Return the sets whose variants a request to this one may pin: questions also the candidate's."""
        others = self.candidates() if serving.classification is None else ()
        return (serving, *(other.of(QA) for other in others))

    def _task_of(self, variant: str) -> str | None:
        """Return the task of a variant that is served; None: it is not."""
        found = None if self.serving is None else self.serving.variants.get(variant)
        return None if found is None else found.task

    async def _tokenize(self, question: Asked[Any], serving: ServingSet) -> Windows:
        """Return the windows of a question, or of texts to classify. Raises: BadInput."""
        limits = self.settings
        if not isinstance(question, Question):
            return await self._tokenize_texts(question, serving)
        if len(question.context) > limits.max_context_chars:
            raise TextTooLong("context", len(question.context), limits.max_context_chars)
        if len(question.question) > limits.max_question_chars:
            raise TextTooLong("question", len(question.question), limits.max_question_chars)
        if len(question.context) <= LONG_TEXT_CHARS:
            return serving.encoder.encode(question)
        return await asyncio.to_thread(serving.encoder.encode, question)

    async def _tokenize_texts(self, texts: Asked[Any], serving: ServingSet) -> Windows:
        assert isinstance(texts, Texts)
        limit = self.settings.max_context_chars
        if max(map(len, texts.texts.values())) <= LONG_TEXT_CHARS:
            return classification.encode(texts, serving, limit)
        return await asyncio.to_thread(classification.encode, texts, serving, limit)
