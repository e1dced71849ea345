"""Runs a plan on one request: asks its variants in order until one is confident of its answer.

A direct plan is a cascade of one variant. The plan is chosen in service.py. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gateway.backends.protocol import Backend
from gateway.domain import (
    Answer,
    Asked,
    Classification,
    Decision,
    Inference,
    Ints,
    LabelLogits,
    Option,
    Question,
    Size,
    Slo,
    SloPolicy,
    SloViolation,
    Timings,
    Windows,
)
from gateway.errors import BackendError, DeadlineExceeded
from gateway.observability.observer import Observer
from gateway.qa import codec
from gateway.request import classification, long_context
from gateway.routing import policy
from gateway.serving_set import ServingSet

log = logging.getLogger(__name__)

LONG_TEXT_CHARS = 8_000  # above this, tokenizing and decoding leave the event loop
RESERVE = (
    0.05  # share of the deadline that a hanging escalation leaves, to return the answer at hand
)


@dataclass(frozen=True, slots=True)
class Job:
    """One encoded request: the input of every attempt to answer it."""

    question: Asked[Any]
    slo: Slo
    serving: ServingSet  # of its task alone
    windows: Windows
    arrived_ms: float
    began_ms: float
    encoded_ms: float
    sampled: bool  # drawn on arrival for a shadow answer of the largest variant
    order: Ints | None = None  # windows to ask, the most promising first; None: there is only one

    @property
    def size(self) -> Size:
        n_asked = self.windows.n_windows if self.order is None else len(self.order)
        return Size(self.windows.input_ids.shape[1], n_asked)

    @property
    def whole(self) -> Size:
        """The size of the whole context, including windows that are not asked."""
        return Size(self.windows.input_ids.shape[1], self.windows.n_windows)

    def first(self, n_windows: int) -> Job:
        """Return the job with its most promising windows only."""
        return self if self.order is None else replace(self, order=self.order[:n_windows])


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of a plan."""

    answer: Any  # what the task gives: an Answer, or a Classification
    variant: str  # that answered
    first: Any  # of the plan's first variant, the only one that sees every question
    cut: bool  # the answer was below the threshold, but the next variant could not be asked
    partial: bool  # part of the text was not read
    timings: Timings


def final_violations(
    decision: Decision, outcome: Outcome, *, late: bool
) -> tuple[SloViolation, ...]:
    """Return what the answer violates in the end; `late` is measured, not predicted."""
    violations = [SloViolation.LATE] if late else []
    violations += [v for v in decision.violations if v is not SloViolation.LATE]
    violations += [SloViolation.ESCALATION_CUT] if outcome.cut else []
    violations += [SloViolation.PARTIAL] if outcome.partial else []
    return tuple(violations)


@dataclass(frozen=True, slots=True)
class _Stage:
    """The answer of one variant and its times, ms."""

    variant: str
    answer: Answer | Classification
    asked_ms: float
    queue_ms: float
    inferred_ms: float
    done_ms: float
    partial: bool


class Cascade:
    """Asks the variants of a plan and reports each outcome to the latency model and the breakers."""

    def __init__(
        self,
        backend: Backend,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._observer = observer
        self._clock = clock

    async def answer(self, job: Job, option: Option) -> Outcome:
        """Return the answer of the first confident variant, or of the last one that there was time for.

        Raises: BackendError, DeadlineExceeded, for the first variant only. If a later variant fails or is
        late, the answer at hand is returned.
        """
        plan, cut = option.plan, False
        may_be_partial = job.slo.policy is not SloPolicy.STRICT
        stages = [await self._ask(job, plan.variants[0], partial=may_be_partial)]
        for variant, threshold in zip(plan.variants[1:], plan.thresholds, strict=True):
            doubted = stages[-1].answer.score < threshold
            further = await self._escalate(job, variant) if doubted else None
            if further is None:
                cut = doubted
                break
            stages.append(further)
        last, timings = stages[-1], _timings(job, stages)
        return Outcome(last.answer, last.variant, stages[0].answer, cut, last.partial, timings)

    async def _escalate(self, job: Job, variant: str) -> _Stage | None:
        """Ask the next variant; None: it fails, or there is not enough time left."""
        now, slo, serving = self._clock(), job.slo, job.serving
        spent_ms = now - job.arrived_ms
        quantile = policy.quantile_for(slo.policy)
        predicted = serving.latency.predict_stage(variant, job.size, quantile, now)
        if predicted.predicted_ms > policy.escalation_left_ms(slo, spent_ms):
            return None
        if variant in serving.breakers.failing(now):
            return None
        left_ms = (1 - RESERVE) * slo.timeout_ms - spent_ms
        try:
            async with asyncio.timeout(left_ms / 1e3):
                return await self._ask(job, variant, partial=False)
        except (BackendError, DeadlineExceeded, TimeoutError) as failed:
            log.warning("%s: no escalation, the answer at hand is returned: %r", variant, failed)
            return None

    async def _ask(self, job: Job, variant: str, *, partial: bool) -> _Stage:
        """Ask the model server once; `partial`: accept an answer from part of the windows when time is short."""
        serving, asked_ms = job.serving, self._clock()
        work = serving.latency.begin(variant, job.size, asked_ms)
        breaker = serving.breakers.of(variant)
        call = breaker.begin(asked_ms)
        try:
            with self._observer.stage("infer", variant):
                windows, inference = await self._infer(job, variant, partial=partial)
            inferred = self._clock()
            if call.worked(inferred):
                self._observer.breaker_changed(variant, breaker.state(inferred))
            serving.latency.leave(work, inferred)
            with self._observer.stage("decode", variant):
                answer = await self._decode(job, windows, inference, variant)
            done = self._clock()
        except BaseException as exc:  # cancelled, timed out or failed: the time is a lower bound
            now = self._clock()
            self._observer.predicted(serving.latency.give_up(work, now))
            failed = isinstance(exc, BackendError)
            if call.failed(now) if failed else call.gave_up(now, work.compute_ms):
                self._observer.breaker_changed(variant, breaker.state(now))
                log.warning("%s: %s", variant, breaker.describe(now))
            raise
        latency, whole = serving.latency, windows.n_windows == job.size.n_windows
        self._observer.predicted(
            latency.finish(work, done) if whole else latency.give_up(work, done)
        )
        left_out = windows.is_cut or windows.n_windows < job.windows.n_windows
        return _Stage(variant, answer, asked_ms, inference.queue_ms, inferred, done, left_out)

    async def _infer(self, job: Job, variant: str, *, partial: bool) -> tuple[Windows, Inference]:
        """Return the windows that were answered, and their logits."""
        left_ms = job.slo.timeout_ms - (self._clock() - job.arrived_ms)
        known, windows = job.serving.variants[variant], job.windows
        if job.order is None:
            found = await self._backend.infer(known, windows, left_ms)
        else:
            windows, found = await long_context.infer(
                self._backend, known, windows, job.order, left_ms, partial=partial
            )
        self._observer.inferred(variant, windows, found)
        return windows, found

    async def _decode(
        self, job: Job, windows: Windows, inference: Inference, variant: str
    ) -> Answer | Classification:
        known, logits, question = job.serving.variants[variant], inference.logits, job.question
        if isinstance(logits, LabelLogits):
            return classification.decode(logits, job.serving, known)
        assert isinstance(question, Question)
        how = known.decoding
        if len(question.context) <= LONG_TEXT_CHARS:
            return codec.decode(windows, logits, question, how)
        return await asyncio.to_thread(codec.decode, windows, logits, question, how)


def _timings(job: Job, stages: list[_Stage]) -> Timings:
    """Return the time of each stage, summed over variants; a cut escalation counts in `total` only."""
    queue_ms = sum(stage.queue_ms for stage in stages)
    return Timings(
        tokenize=job.encoded_ms - job.began_ms,
        route=stages[0].asked_ms - job.encoded_ms,
        queue=queue_ms,
        infer=sum(stage.inferred_ms - stage.asked_ms for stage in stages) - queue_ms,
        decode=sum(stage.done_ms - stage.inferred_ms for stage in stages),
    )
