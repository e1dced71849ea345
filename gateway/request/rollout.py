"""A rollout: a candidate set answers a share of the requests, or answers in shadow, and is compared with the current.

It decides which set answers a request, notes how that ended, and compares answers with the largest current
variant's. What follows from the verdict is done in lifecycle/candidates.py; a candidate that is shown to be worse
gets no further request at once. Of several workers none tests: their parent does, with what all of them send it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from gateway.auth import access
from gateway.catalog.schema import QA, Variant
from gateway.clock import now_ms
from gateway.domain import (
    A,
    Asked,
    Decision,
    Question,
    Served,
    SetName,
    Slo,
    SloViolation,
)
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    BadInput,
    BertierError,
    DeadlineExceeded,
    Forbidden,
    Infeasible,
    ModelCrashed,
    Overloaded,
)
from gateway.monitoring.rollout_tests import Rate, RolloutTests, Verdict
from gateway.monitoring.sequential_tests import Comparison
from gateway.observability import logs
from gateway.observability.metrics import Metrics
from gateway.request.cascade import Job, Outcome
from gateway.request.shadow import DEADLINE_MS, MOST_WAITING, Shadow, is_shortened
from gateway.serving_set import ServingSet
from gateway.settings import Settings
from gateway.slo import SloClass

log = logging.getLogger(__name__)

# The current set is asked in place of a candidate that fails so; another failure is the input's, or the time is up.
FALLS_BACK = (BackendError, Infeasible, Overloaded, Forbidden)
AGREES = (Comparison.SAME, Comparison.BOTH_SILENT)
FLOOR = (SloViolation.BELOW_FLOOR, SloViolation.UNCERTIFIED)  # what no load brings about


@dataclass(slots=True)
class Running:
    """A candidate that is tried: another catalog, or other classes."""

    sha256: str  # of its file
    serving: ServingSet | None  # swapped when it is checked again; None: the current one
    share: float
    shadow: bool
    tests: RolloutTests
    sums_ms: dict[SetName, float]  # time of the answers that were counted, by set
    classes: Mapping[str, SloClass] = field(default_factory=dict)  # that differ from the current

    def place(self, unit: bytes) -> float:
        """Return where a caller or request stands in [0, 1): below the share it is the candidate's."""
        key = hashlib.blake2b(unit, digest_size=8, key=self.sha256[:64].encode()).digest()
        return int.from_bytes(key) / 2**64

    def beside(self, current: ServingSet) -> ServingSet:
        """Return the set that answers questions in place of the current one."""
        return current if self.serving is None else self.serving.of(QA)

    @property
    def worse(self) -> bool:
        return self.tests.verdict is Verdict.WORSE


Ask = Callable[[Running | None], Awaitable[Served[A]]]  # None: the current set
Again = Callable[[Job, Running], Awaitable[tuple[Decision, Outcome]]]


class Seen(NamedTuple):
    """One outcome of one set, to be tested."""

    rate: Rate
    name: SetName
    bad: bool
    took_ms: float = 0.0  # of a request that was answered


class Tests(Protocol):
    """Where outcomes are tested, in place of this process."""

    def tried(self, running: Running, seen: Seen) -> None: ...


@dataclass(frozen=True, slots=True)
class _Sample:
    """An answered request that is asked again for the comparison."""

    job: Job
    outcome: Outcome
    decision: Decision
    name: SetName  # that answered
    current: ServingSet
    again: Again


class Rollout:
    """Tries at most one candidate at a time; without one it costs a request nothing."""

    def __init__(
        self,
        shadow: Shadow,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = now_ms,
    ) -> None:
        """`shadow` asks variants in spare time."""
        self.running: Running | None = None
        self.elsewhere: Tests | None = None  # a worker: its parent tests what all observe
        self._shadow = shadow
        self._metrics = metrics
        self._clock = clock
        self._by_caller = settings.candidate_sticky == "caller"
        self._compared = settings.candidate_compared
        self._waiting: deque[tuple[Running, _Sample, float]] = deque()  # and when it is dropped, ms
        self._worker: asyncio.Task[None] | None = None

    async def answer(
        self, question: Asked[A], slo: Slo, current: ServingSet, arrived_ms: float, ask: Ask[A]
    ) -> Served[A]:
        """Return the answer of the set that the request falls to; of a classification the current set's.

        Where the candidate fails or refuses, the current set answers. Raises: what `ask` does.
        """
        running = self._of(slo)
        if running is None:
            if slo.variant is not None and slo.variant not in current.trust:
                raise BackendUnavailable(f"{slo.variant}: not served any more; see /readyz")
            return await ask(None)
        name = self._set_for(running, question, slo, current)
        try:
            answered = await ask(running if name is SetName.CANDIDATE else None)
        except BaseException as exc:
            if slo.variant is None:
                self._note_failure(running, name, slo, exc, arrived_ms)
            if name is SetName.CURRENT or slo.variant is not None:
                raise
            # Classes may end sooner than the current ones, under which there is still time.
            in_time = self._clock() - arrived_ms < slo.timeout_ms
            if not (_falls_back(exc) or (isinstance(exc, DeadlineExceeded) and in_time)):
                raise
            log.warning("the candidate did not answer; the current catalog does: %s", exc)
            return replace(await ask(None), served_by=SetName.CURRENT)
        if slo.variant is None and answered.age_ms is None:
            self._note_answer(running, name, answered)
        return replace(answered, served_by=name)

    def watch(
        self,
        job: Job,
        outcome: Outcome,
        decision: Decision,
        name: SetName,
        current: ServingSet,
        again: Again,
    ) -> None:
        """Draw answers that are compared in spare time; `again` asks the candidate for a job once more.

        Left out, as in shadow.py: pinned variants, partial answers, answers that are cut short.
        """
        running = self._of(job.slo)
        if running is None or running.worse or job.slo.variant is not None:
            return
        if (
            outcome.partial
            or not isinstance(job.question, Question)
            or is_shortened(job.question)
            or random.random() >= self._chance(running, name)
        ):
            return
        if len(self._waiting) >= MOST_WAITING:
            self._count(name, "dropped")
            return
        sample = _Sample(job, outcome, decision, name, current, again)
        self._waiting.append((running, sample, self._clock() + DEADLINE_MS))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="rollout", context=Context())

    @property
    def n_waiting(self) -> int:
        """Answers that wait for their comparison."""
        return len(self._waiting)

    async def idle(self) -> None:
        """Return when no answer waits for its comparison."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def close(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        if self._worker is not None:
            self._worker.cancel()
        await self.idle()

    def _of(self, slo: Slo) -> Running | None:
        """Return the candidate that applies to a request; it may be limited to some SLO classes.

        No candidate applies to a classification.
        """
        running = self.running if slo.task == QA else None
        other = running is not None and running.classes and slo.slo_class not in running.classes
        return None if other else running

    def _set_for(
        self, running: Running, question: Asked[Any], slo: Slo, current: ServingSet
    ) -> SetName:
        """Return the set that answers; one that a pin names, if it has the variant alone."""
        if slo.variant is not None:
            return SetName.CURRENT if slo.variant in current.trust else SetName.CANDIDATE
        if running.shadow or running.worse or not running.beside(current).served:
            return SetName.CURRENT
        mine = running.place(self._unit(question)) < running.share
        return SetName.CANDIDATE if mine else SetName.CURRENT

    def _unit(self, question: Asked[Any]) -> bytes:
        """Return what is sticky: the caller's key, or else the request; of a batch, each question by itself."""
        key = access.key_name() if self._by_caller else None
        parts = (
            ("key", key) if key else ("request", logs.request_id.get(), *question.texts.values())
        )
        return "\0".join(parts).encode("utf-8", "surrogatepass")

    def _note_answer(self, running: Running, name: SetName, answered: Served[Any]) -> None:
        violated, took_ms = bool(answered.violations), answered.timings.total
        self._metrics.note_rollout(name, "violated" if violated else "met", took_ms / 1e3)
        self._add(running, Seen(Rate.ERRORS, name, bad=False))
        self._add(running, Seen(Rate.SLO, name, violated, took_ms))

    def _note_failure(
        self, running: Running, name: SetName, slo: Slo, exc: BaseException, arrived_ms: float
    ) -> None:
        """Count a failure or refusal; a caller that left only where it had waited longer than its target."""
        took_ms = self._clock() - arrived_ms
        gone = isinstance(exc, asyncio.CancelledError)
        if isinstance(exc, BadInput) or (gone and took_ms <= slo.latency_ms):
            return
        failed = not gone and not isinstance(exc, Infeasible | Overloaded)
        self._metrics.note_rollout(name, "failed" if failed else "violated", took_ms / 1e3)
        self._add(running, Seen(Rate.ERRORS, name, failed))
        self._add(running, Seen(Rate.SLO, name, bad=True, took_ms=took_ms))

    def _add(self, running: Running, seen: Seen) -> None:
        """In shadow only what is compared counts: the candidate answers nothing else."""
        if not running.shadow:
            self._learn(running, seen)

    def _learn(self, running: Running, seen: Seen) -> None:
        """Take one outcome of the candidate that runs; it may have ended before its comparison did."""
        if running is not self.running:
            return
        if self.elsewhere is not None:
            self.elsewhere.tried(running, seen)
        else:
            self.test(running, seen)

    def test(self, running: Running, seen: Seen) -> bool:
        """Take one outcome; return whether the verdict falls with it."""
        running.sums_ms[seen.name] += seen.took_ms
        candidate = seen.name is SetName.CANDIDATE
        fell = running.tests.add(seen.rate, candidate=candidate, bad=seen.bad)
        if candidate:
            self._metrics.note_rollout_evidence(seen.rate, *running.tests.evidence_of(seen.rate))
        if fell:
            level = logging.WARNING if running.worse else logging.INFO
            verdict = running.tests.verdict.value
            log.log(level, "candidate: %s: %s", verdict, running.tests.reason)
        return fell

    def _chance(self, running: Running, name: SetName) -> float:
        """Return the chance of an answer to be compared: as many of the current set's as of the candidate's."""
        if running.shadow:
            return running.share
        if name is SetName.CANDIDATE or running.share >= 0.5:
            return self._compared
        return self._compared * running.share / (1 - running.share)

    async def _work(self) -> None:
        while self._waiting:
            running, sample, until_ms = self._waiting.popleft()
            if running is not self.running:  # it has ended meanwhile
                continue
            try:
                if running.shadow:
                    await self._shadowed(running, sample, until_ms)
                else:
                    await self._compare(running, sample.name, sample, sample.outcome, until_ms)
            except (BackendError, DeadlineExceeded) as exc:
                log.info("no comparison: %s", exc)
                self._count(sample.name, "failed")
            except Exception:  # the comparison of others goes on
                log.exception("a comparison broke")
                self._count(sample.name, "failed")

    async def _shadowed(self, running: Running, sample: _Sample, until_ms: float) -> None:
        """Let the candidate answer what the current set has answered, and compare both: a pair."""
        if not await self._shadow.room(sample.current, until_ms):
            self._count(SetName.CANDIDATE, "dropped")
            return
        try:
            decision, outcome = await sample.again(sample.job, running)
        except BertierError as exc:
            failed = not isinstance(exc, Infeasible | Overloaded)
            self._pair(running, Rate.ERRORS, current=False, candidate=failed)
            self._pair(running, Rate.SLO, current=_below(sample.decision), candidate=True)
            return
        self._pair(running, Rate.ERRORS, current=False, candidate=False)
        self._pair(running, Rate.SLO, current=_below(sample.decision), candidate=_below(decision))
        await self._compare(running, SetName.CURRENT, sample, sample.outcome, until_ms)
        await self._compare(running, SetName.CANDIDATE, sample, outcome, until_ms)

    def _pair(self, running: Running, rate: Rate, *, current: bool, candidate: bool) -> None:
        self._learn(running, Seen(rate, SetName.CURRENT, current))
        self._learn(running, Seen(rate, SetName.CANDIDATE, candidate))

    async def _compare(
        self, running: Running, name: SetName, sample: _Sample, outcome: Outcome, until_ms: float
    ) -> None:
        """Compare an answer with that of the largest current variant, which is not asked for its own.

        That too waits for room: else under load a set would be judged by the answers of that variant alone.
        """
        reference = sample.current.catalog.variant(sample.current.largest)
        of = running.beside(sample.current) if name is SetName.CANDIDATE else sample.current
        found: Comparison | None = None
        question = sample.job.question
        assert isinstance(question, Question)
        if not _answers_alike(of.catalog.variant(outcome.variant), reference):
            found = await self._shadow.compared(
                sample.current,
                reference,
                question,
                sample.job.windows,
                outcome.answer,
                until_ms,
            )
        elif await self._shadow.room(sample.current, until_ms):
            found = Comparison.SAME
        if found is None:
            self._count(name, "dropped")
            return
        self._count(name, "agreed" if found in AGREES else "disagreed")
        self._learn(running, Seen(Rate.DISAGREEMENT, name, bad=found not in AGREES))

    def _count(self, name: SetName, outcome: str) -> None:
        self._metrics.rollout_compared.labels(name, outcome).inc()


def _answers_alike(one: Variant, other: Variant) -> bool:
    """Say whether two variants give the same answers: the same model, whose logits are decoded alike."""
    return one.sha256 == other.sha256 and one.decoding == other.decoding


def _falls_back(exc: BaseException) -> bool:
    return isinstance(exc, FALLS_BACK) and not isinstance(exc, ModelCrashed)


def _below(decision: Decision) -> bool:
    return any(each in FLOOR for each in decision.violations)
