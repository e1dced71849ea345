"""The life of a request: encode, route, infer, decode. Knows no protocol and no model server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway import policy, slo, spans
from gateway.backend import Backend
from gateway.domain import (
    Answer,
    Answered,
    Decision,
    Gave,
    Inference,
    Option,
    Question,
    Reason,
    Size,
    Slo,
    SloRequest,
    Timings,
    Windows,
)
from gateway.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    Infeasible,
    Overloaded,
    TextTooLong,
    UnknownVariant,
)
from gateway.latency import Seen
from gateway.metrics import Metrics
from gateway.serving import ServingSet
from gateway.settings import Settings

LONG_TEXT_CHARS = 8_000  # above this, tokenizing and decoding leave the event loop
TYPICAL_TOKENS = 192


def now_ms() -> float:
    """Return the monotonic time, ms: the clock of arrivals and deadlines."""
    return time.monotonic() * 1e3


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would happen to a request now; `feasible` is what an idle system could promise."""

    slo: Slo
    size: Size
    decision: Decision
    options: tuple[Option, ...]
    feasible: tuple[Option, ...]


class AnswerService:
    """Answers questions from the current ServingSet, which may be swapped at any time."""

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = now_ms,
    ) -> None:
        self.serving: ServingSet | None = None
        self.backend = backend
        self.settings = settings
        self.metrics = metrics
        self._clock = clock

    async def answer(self, question: Question, request: SloRequest, arrived_ms: float) -> Answered:
        """Answer one question under its SLO, from the smallest model that keeps it.

        Raises: BadInput, Infeasible, Overloaded, DeadlineExceeded, BackendError.
        """
        serving = self._serving()
        promise = self._promise(request, serving)
        with self.metrics.in_flight.track_inprogress():
            async with self._deadline(promise, arrived_ms):
                return await self._answer(question, promise, serving, arrived_ms)

    async def _answer(
        self, question: Question, promise: Slo, serving: ServingSet, arrived_ms: float
    ) -> Answered:
        began = self._clock()
        windows = await self._encode(question, serving)
        encoded = self._clock()
        size = Size(windows.input_ids.shape[1], windows.n_windows)
        options, decision = route(promise, serving, size, encoded - arrived_ms, encoded)
        option = self._accept(decision, promise, options)
        work = serving.latency.begin(option.plan.variants[0], size, encoded)
        try:
            routed = self._clock()
            inference = await self._infer(option, serving, windows, promise, arrived_ms)
            inferred = self._clock()
            serving.latency.leave(work, inferred)
            answer = await self._decode(windows, inference, question, option, serving)
            done = self._clock()
        except BaseException:  # cancelled, timed out, failed: it would have taken longer
            self._note(serving.latency.give_up(work, self._clock()))
            raise
        self._note(serving.latency.finish(work, done))
        timings = Timings(
            tokenize=encoded - began,
            route=routed - encoded,
            queue=inference.queue_ms,
            infer=inferred - routed - inference.queue_ms,
            decode=done - inferred,
            total=done - arrived_ms,
        )
        return self._answered(answer, promise, decision, option, options, timings)

    def plan(
        self, request: SloRequest, question: Question | None = None, n_tokens: int | None = None
    ) -> PlanReport:
        """Return what would happen to such a request now, without answering it.

        The size comes from `question`, else `n_tokens`, else a typical request.
        Raises: BadInput, BackendUnavailable.
        """
        serving = self._serving()
        promise = self._promise(request, serving)
        size = self._size(serving, question, n_tokens)
        options, decision = route(promise, serving, size, 0.0, self._clock())
        return PlanReport(
            promise, size, decision, options, policy.nearest_feasible(promise, options)
        )

    def _size(self, serving: ServingSet, question: Question | None, n_tokens: int | None) -> Size:
        if question is not None:
            windows = serving.encoder.encode(self._checked(question))
            return Size(windows.input_ids.shape[1], windows.n_windows)
        tokens = n_tokens or TYPICAL_TOKENS
        if tokens <= spans.MAX_TOKENS:
            return Size(spans.bucket_of(tokens), 1)
        return Size(spans.MAX_TOKENS, -(-tokens // (spans.MAX_TOKENS - spans.OVERLAP_TOKENS)))

    def _serving(self) -> ServingSet:
        if self.serving is None or not self.serving.plans():
            raise BackendUnavailable("no model is ready yet; see /readyz")
        return self.serving

    def _promise(self, request: SloRequest, serving: ServingSet) -> Slo:
        settings = self.settings
        known = [v.name for v in serving.catalog.variants]
        if request.variant is not None and request.variant not in known:
            raise UnknownVariant(request.variant, known)
        if request.variant is not None and request.variant not in serving.trust:
            raise BackendUnavailable(f"{request.variant}: not served at present; see /readyz")
        best = serving.catalog.best_floor
        return slo.resolve(request, settings.classes, settings.default_class, best)

    def _deadline(self, promise: Slo, arrived_ms: float) -> _Deadline:
        return _Deadline(promise.timeout_ms, promise.timeout_ms - (self._clock() - arrived_ms))

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

    def _accept(self, decision: Decision, promise: Slo, options: tuple[Option, ...]) -> Option:
        """Count the decision and return its option, or raise the refusal it stands for."""
        plan = decision.option.plan.name if decision.option else "none"
        self.metrics.decisions.labels(promise.slo_class, plan, decision.reason).inc()
        if decision.option is not None:
            return decision.option
        raise refusal(decision, promise, options)

    def _note(self, seen: Seen | None) -> None:
        """Count whether the predicted latency held, where that is known."""
        if seen is None:
            return
        for quantile, held in (("0.95", seen.in_p95), ("0.99", seen.in_p99)):
            outcome = "within" if held else "beyond"
            self.metrics.predictions.labels(seen.variant, quantile, outcome).inc()
        self.metrics.prediction_ratio.labels(seen.variant).observe(seen.ratio)

    async def _infer(
        self,
        option: Option,
        serving: ServingSet,
        windows: Windows,
        promise: Slo,
        arrived_ms: float,
    ) -> Inference:
        left_ms = promise.timeout_ms - (self._clock() - arrived_ms)
        variant = serving.catalog.variant(option.plan.variants[0])
        return await self.backend.infer(variant, windows, left_ms)

    async def _decode(
        self,
        windows: Windows,
        inference: Inference,
        question: Question,
        option: Option,
        serving: ServingSet,
    ) -> Answer:
        how = serving.catalog.variant(option.plan.variants[0]).decoding
        if len(question.context) <= LONG_TEXT_CHARS:
            return spans.decode(windows, inference.logits, question, how)
        return await asyncio.to_thread(spans.decode, windows, inference.logits, question, how)

    def _answered(
        self,
        answer: Answer,
        promise: Slo,
        decision: Decision,
        option: Option,
        options: tuple[Option, ...],
        timings: Timings,
    ) -> Answered:
        late = (Gave.LATE,) if timings.total > promise.latency_ms else ()
        gave = (*late, *(g for g in decision.gave if g is not Gave.LATE))
        for stage in ("tokenize", "route", "queue", "infer", "decode"):
            self.metrics.stage.labels(stage).observe(getattr(timings, stage) / 1e3)
        for outcome in gave or ("met",):
            self.metrics.slo.labels(promise.slo_class, outcome).inc()
        variant = option.plan.variants[0]
        return Answered(answer, promise, decision, option, variant, gave, timings, options)


def route(
    promise: Slo, serving: ServingSet, size: Size, spent_ms: float, now_ms: float
) -> tuple[tuple[Option, ...], Decision]:
    """Return every option for a request of this size, and the one chosen."""
    options = tuple(serving.options(size, policy.quantile_for(promise.policy), now_ms))
    return options, policy.choose(promise, options, spent_ms)


def refusal(decision: Decision, promise: Slo, options: tuple[Option, ...]) -> Exception:
    """Return the error that a decision without an option stands for."""
    asked = f"{promise.latency_ms:g} ms at F1 >= {promise.min_f1:.3f}"
    if decision.reason is Reason.INFEASIBLE:
        points = [describe(o) for o in policy.nearest_feasible(promise, options)]
        return Infeasible(f"no plan gives {asked}, even on an idle system", points)
    if decision.reason is Reason.TOO_LATE:
        spent = f"{asked} can no longer be kept: too much of the time passed in the gateway"
        return Overloaded(f"{spent}; try again", decision.retry_after_ms)
    if decision.reason is Reason.SHED:
        late = f"no plan is predicted to answer before the deadline of {promise.timeout_ms:g} ms"
        return Overloaded(f"{late}; try again later or give more time", decision.retry_after_ms)
    return Overloaded(f"busy: {asked} cannot be kept now", decision.retry_after_ms)


def describe(option: Option) -> dict[str, str | float]:
    """Return an option as the fronts show it."""
    return {
        "plan": option.plan.name,
        "certified_f1": option.certified_f1,
        "idle_ms": round(option.idle_ms, 3),
        "predicted_ms": round(option.predicted_ms, 3),
        "cost_ms": round(option.cost_ms, 3),
        "trust": str(option.trust),
    }


class _Deadline:
    """Ends its block with DeadlineExceeded when the time of the request is up."""

    def __init__(self, timeout_ms: float, left_ms: float) -> None:
        self._message = f"the deadline of {timeout_ms:g} ms has passed"
        self._left_ms = left_ms
        self._timer = asyncio.timeout(max(0.0, left_ms) / 1e3)

    async def __aenter__(self) -> None:
        if self._left_ms <= 0:
            raise DeadlineExceeded(self._message)
        await self._timer.__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self._timer.__aexit__(*exc_info)  # type: ignore[arg-type]
        except TimeoutError as exc:
            raise DeadlineExceeded(self._message) from exc
