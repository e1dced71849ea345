"""Shadow answers: the largest variant also answers a sample of requests, and both answers are compared.

A request is drawn on arrival and asked again after its caller has the answer, one window at a time, when there
is capacity. A sample without capacity is dropped and counted: sampling only idle moments would be biased. No
request is delayed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from gateway.auth import access
from gateway.backends.protocol import Backend
from gateway.catalog.schema import Plan, Variant
from gateway.domain import Answer, Logits, Question, Size, Trust, Windows
from gateway.errors import BackendError, DeadlineExceeded
from gateway.monitoring.sequential_tests import Comparison, SequentialTests, compare
from gateway.observability import logs
from gateway.observability.metrics import Metrics
from gateway.qa import codec
from gateway.request.cascade import Job, Outcome
from gateway.serving_set import ServingSet
from gateway.settings import Settings

log = logging.getLogger(__name__)

DEADLINE_MS = 10_000.0  # from the answer to its shadow answer
MOST_WAITING = 16  # samples in the queue; one is asked at a time
LOOK_EVERY_MS = 20.0  # between checks for capacity while a sample waits
LABELS = {
    Comparison.SAME: "agreed",
    Comparison.DIFFERENT: "disagreed",
    Comparison.ONE_SILENT: "disagreed",
    Comparison.BOTH_SILENT: "both_silent",
}


def text_of(question: Question) -> bytes:
    """Return a hash of the context; the text itself is not kept."""
    return hashlib.blake2b(question.context.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Sample:
    """An answered request: what is needed to ask it again and compare the answers."""

    question: Question
    windows: Windows
    serving: ServingSet
    plan: Plan
    variant: str  # that answered
    answer: Answer
    key: tuple[str | None, str, str] = (
        None,
        "",
        "",
    )  # of its caller; its request's id, and its own


def is_shortened(question: Question) -> bool:
    """Return whether the caller allows no answers as long as the certified ones."""
    longest = question.max_answer_tokens
    return longest is not None and longest < codec.MAX_ANSWER_TOKENS


class Tests(Protocol):
    """Where what was observed is tested, in place of this process."""

    def compared(self, plan: str, text: bytes, outcome: Comparison) -> None: ...

    def answered(self, variant: str, text: bytes, score: float, n_tokens: int) -> None: ...


class Shadow:
    """Draws samples, asks the largest variant, and feeds the tests of the certificates."""

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        """`clock` returns ms; `draw` a uniform number in [0, 1)."""
        self.certificate_tests = SequentialTests(settings.shadow_delta, settings.shadow_tolerance)
        self.elsewhere: Tests | None = None  # a worker: its parent tests what all observe
        self._backend = backend
        self._share = settings.shadow_share
        self._metrics = metrics
        self._clock = clock
        self._draw = draw
        self._waiting: deque[tuple[Sample, float]] = deque()  # and when it is dropped, ms
        self._worker: asyncio.Task[None] | None = None
        self.on_compared: Callable[[tuple[str | None, str, str], Comparison], None] = lambda *_: (
            None
        )
        self._unknown: list[str] = []  # plans without an expected agreement in the catalog

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def drawn(self) -> bool:
        """Decide on arrival whether a request belongs to the sample."""
        return self._share > 0 and self._draw() < self._share

    def follow(self, serving: ServingSet) -> ServingSet:
        """Continue with a set that is about to be served; return it with the tests of its certificates."""
        before = self.certificate_tests.broken
        variants = [v for v in serving.catalog.variants if not v.classifies]
        names = {variant.name for variant in variants}
        plans = [p for p in serving.catalog.plans if names.issuperset(p.variants)]
        self.certificate_tests.follow(plans, variants)
        for name in before - self.certificate_tests.broken:
            log.info("%s: certified again, and trusted again", name)
        self._say_what_is_not_known(plans)
        self._metrics.clear_certificate_tests()
        for name in self.certificate_tests.agreement:
            self._tell_plan(name)
        for name in self.certificate_tests.confidence:
            self._tell_variant(name)
        return replace(serving, certificate_tests=self.certificate_tests)

    def watch(self, job: Job, outcome: Outcome, plan: Plan) -> None:
        """Pass an answer to the tests of the certificates.

        Skip classifications: they have no sequential test. Skip pinned variants: evaluations pin them, on questions
        of any kind. Skip partial answers: no certificate covers them. Skip cascades cut short by the deadline: their
        answer is not the plan's. Skip answers that the caller limits to fewer tokens than certified ones: they differ
        by the caller's choice, not because the questions changed.
        """
        question = job.question
        if not isinstance(question, Question) or job.slo.variant is not None:
            return
        if outcome.partial or is_shortened(question):
            return
        self.answered(plan.variants[0], outcome.first, question, job.windows.n_tokens)
        if job.sampled and not outcome.cut:
            variant, answer = outcome.variant, outcome.answer
            key = access.key_name(), logs.request_id.get(), question.id
            self.offer(Sample(question, job.windows, job.serving, plan, variant, answer, key))

    def offer(self, sample: Sample) -> None:
        """Queue an answered sample if it can be compared with the plan's expected agreement."""
        if not self._can_judge(sample):
            return
        if len(self._waiting) >= MOST_WAITING:
            self._count(sample, "dropped")
            return
        self._waiting.append((sample, self._clock() + DEADLINE_MS))
        if self._worker is None or self._worker.done():
            # An empty context: the id and trace of this request are not those of later samples.
            self._worker = asyncio.create_task(self._work(), name="shadow", context=Context())

    def answered(self, variant: str, answer: Answer, question: Question, n_tokens: int) -> None:
        """Test the confidence of an answer: does the variant still see data like its certification data?"""
        if variant not in self.certificate_tests.confidence:
            return
        if self.elsewhere is not None:
            self.elsewhere.answered(variant, text_of(question), answer.score, n_tokens)
        else:
            self.test_confidence(variant, text_of(question), answer.score, n_tokens)

    def test_confidence(self, variant: str, text: bytes, score: float, n_tokens: int) -> None:
        """Take the confidence of one answer on a text."""
        test = self.certificate_tests.confidence.get(variant)
        if test is None:
            return
        before = test.shifted
        if not test.add(text, score, n_tokens):
            return
        self._tell_variant(variant)
        if test.shifted and not before:
            log.warning(
                "%s: its confidence is not spread any more as on the certified data: other questions are"
                " asked. Nothing is rerouted for that; see whether certificates hold, and certify on such"
                " questions",
                variant,
            )

    async def idle(self) -> None:
        """Return when no sample waits or is being asked."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def close(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        if self._worker is not None:
            self._worker.cancel()
        await self.idle()

    def _can_judge(self, sample: Sample) -> bool:
        """The largest variant judges others only, and only where it answers as certified itself."""
        agreement = sample.plan.agreement
        if agreement is None or sample.variant == agreement.reference:
            return False
        trust = [
            sample.serving.trust.get(name) for name in (*sample.plan.variants, agreement.reference)
        ]
        return all(t in (Trust.CERTIFIED, Trust.TRANSFERRED) for t in trust)

    async def _work(self) -> None:
        while self._waiting:
            sample, until_ms = self._waiting.popleft()
            try:
                outcome = await self._shadowed(sample, until_ms)
            except (BackendError, DeadlineExceeded) as exc:
                log.info("no shadow answer: %s", exc)
                self._count(sample, "failed")
                continue
            except Exception:  # a request that was answered well must not end the watch over all
                log.exception("a shadow answer broke")
                self._count(sample, "failed")
                continue
            if outcome is None:
                self._count(sample, "dropped")
            else:
                self._learn(sample, outcome)

    async def _shadowed(self, sample: Sample, until_ms: float) -> Comparison | None:
        """Return how the largest variant's answer compares; None: there was no capacity."""
        assert sample.plan.agreement is not None
        variant = sample.serving.catalog.variant(sample.plan.agreement.reference)
        return await self.compared(
            sample.serving, variant, sample.question, sample.windows, sample.answer, until_ms
        )

    async def compared(
        self,
        serving: ServingSet,
        variant: Variant,
        question: Question,
        windows: Windows,
        ours: Answer,
        until_ms: float,
    ) -> Comparison | None:
        """Ask a variant in spare time and return how its answer compares; None: there was no capacity.

        Raises: BackendError, DeadlineExceeded.
        """
        logits = []
        for row in range(windows.n_windows):
            if not await self.room(serving, until_ms):
                return None
            if not serving.breakers.of(variant.name).closed:
                raise BackendError(f"{variant.name}: fails at present")
            logits.append(await self._infer(serving, variant, windows.window(row), until_ms))
        whole = Logits(*(np.concatenate(part) for part in zip(*logits, strict=True)))
        theirs = await asyncio.to_thread(codec.decode, windows, whole, question, variant.decoding)
        return compare(ours.text, theirs.text)

    async def room(self, serving: ServingSet, until_ms: float) -> bool:
        """Wait until one more window delays no request; False: the time is up."""
        while (left_ms := until_ms - self._clock()) > 0 and not serving.latency.has_room:  # noqa: ASYNC110 (what others do ends without a word)
            await asyncio.sleep(LOOK_EVERY_MS / 1e3)
        return left_ms > 0

    async def _infer(
        self, serving: ServingSet, variant: Variant, window: Windows, until_ms: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of one window. It counts as work in flight, so that routing sees it."""
        latency, size = serving.latency, Size(window.input_ids.shape[1], 1)
        work = latency.begin(variant.name, size, self._clock())
        try:
            found = await self._backend.infer(variant, window, until_ms - self._clock())
        finally:
            latency.leave(work, self._clock())
        return found.spans.start, found.spans.end

    def _learn(self, sample: Sample, outcome: Comparison) -> None:
        self._count(sample, LABELS[outcome])
        self.on_compared(sample.key, outcome)
        if self.elsewhere is not None:
            self.elsewhere.compared(sample.plan.name, text_of(sample.question), outcome)
        else:
            self.test_agreement(sample.plan.name, text_of(sample.question), outcome)

    def test_agreement(self, name: str, text: bytes, outcome: Comparison) -> None:
        """Take one comparison of a plan's answer on a text."""
        rose = self.certificate_tests.compared(name, text, outcome)
        if name in self.certificate_tests.agreement:
            self._tell_plan(name)
        if rose:
            test = self.certificate_tests.agreement[name]
            seen = test.seen
            log.error(
                "%s: its certificate is broken: it agreed with %s on %d of the %d questions that at least one of them"
                " answered (one of the two gave no answer to %d), fewer than certified. The plan is no longer"
                " trusted, and requests move to other plans. Check which questions arrive now, and certify again"
                " on such questions ('bertier-optimize certify')",
                name,
                test.expected.reference,
                seen[Comparison.SAME],
                seen.total() - seen[Comparison.BOTH_SILENT],
                seen[Comparison.ONE_SILENT],
            )

    def _say_what_is_not_known(self, plans: Sequence[Plan]) -> None:
        judges = {(p.agreement.reference,) for p in plans if p.agreement is not None}
        unknown = [p.name for p in plans if p.agreement is None and p.variants not in judges]
        if (
            self._share
            and self.elsewhere is None
            and len(plans) > 1
            and unknown
            and unknown != self._unknown
        ):
            log.warning(
                "the catalog has no expected agreement with the largest variant for %s: shadow answers cannot test"
                " their certificates; publish them again",
                ", ".join(unknown),
            )
        self._unknown = unknown

    def _tell_plan(self, name: str) -> None:
        test = self.certificate_tests.agreement[name]
        self._metrics.note_plan(name, test.log10_e_value, broken=test.broken)

    def _tell_variant(self, name: str) -> None:
        test = self.certificate_tests.confidence[name]
        self._metrics.note_confidence(name, test.log10_e_value, shifted=test.shifted)

    def _count(self, sample: Sample, outcome: str) -> None:
        self._metrics.shadows.labels(sample.plan.name, outcome).inc()
