"""Predicts latency quantiles of plans from profiles, work in flight and an online correction.

The predicted time runs from the decision to the answer. Pure: no clock and no I/O, times are arguments, ms; a
simulator runs this code unchanged. For one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, NamedTuple

from gateway.catalog.schema import Plan, Profile
from gateway.domain import Seen, Size
from gateway.latency.correction import Cell as Tracked
from gateway.latency.correction import LatencyCorrection, Observed
from gateway.latency.queueing import Backlog, Queue, QueuedWork

if TYPE_CHECKING:
    from gateway.latency.other_workers import OtherWorkers

GATEWAY_MS = 2.0  # route, decode and the way to the model server, of one window
WINDOW_MS = 0.5  # the same of each further window
HEAD_START = 0.5  # share that counts of the time by which a waiting request's target is later than the routed one's

# The profile knows an idle host only: until something was seen, its tails are taken this much wider.
_WIDER = (0.0, 0.20, 0.35)  # log, by level

# Loads under which latencies scatter alike: 0 and 1 without a wait, with a free core and with none;
# then by the share of the expected time that is no wait.
_NO_WAIT, _WAITS, _WAITS_LONG = 0.98, 0.7, 0.4
_REGIMES = 5


class Prediction(NamedTuple):
    """Of one plan for one request."""

    idle_ms: float  # on an idle system
    predicted_ms: float  # with the work in flight
    cost_ms: float  # expected compute, ms of one core: each stage by the share that reaches it
    wait_ms: float  # what of `predicted_ms` is a wait for work in flight


@dataclass(slots=True, eq=False)
class Work:
    """One request at one variant, from the decision to its end."""

    variant: str
    began_ms: float
    compute_ms: float  # of one core
    expected_ms: float
    p95_ms: float
    p99_ms: float
    job: QueuedWork | None
    cell: Tracked
    regime: int
    n_known: int  # answers that were known
    nth: int  # of all that began
    alone: bool  # nothing else was in flight when it began


class _Stage(NamedTuple):
    """What is known of one variant for one request."""

    idle_ms: float  # the quantile on an idle system
    predicted_ms: float  # the quantile now
    compute_ms: float  # of one core
    wait_ms: float
    expected_ms: float
    regime: int


_N_PREDICTED = len(Prediction._fields)  # of a stage: what is a prediction of its own


@dataclass(frozen=True, slots=True)
class _Known:
    """What is the same for all requests of one bucket at one variant."""

    p50_ms: float  # of one window
    tracked: Tracked
    slots: int


class LatencyModel:
    """Predicts quantiles; its caller reports when work begins, leaves the model server and ends.

    A variant answers as many windows at once as it has instances; all variants share the cores.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        cores: float,
        instances: Mapping[str, int],
        previous: LatencyModel | None = None,
    ) -> None:
        """`previous`: a model of the same host; its work in flight and what it learned are kept."""
        self._profiles = profiles
        self.queue: Queue = Queue(cores) if previous is None else previous.queue
        self.correction: LatencyCorrection = (
            LatencyCorrection(_REGIMES) if previous is None else previous.correction
        )
        # Of a gateway with one worker there are none.
        self.others: OtherWorkers | None = None if previous is None else previous.others
        self._known: dict[tuple[str, int], _Known] = {}
        self._backlog: Backlog | None = None  # of `_backlog_ms`; None: work came or went since
        self._backlog_ms = 0.0
        self.resize(cores, instances)

    @property
    def busy(self) -> bool:
        """Whether any of our work is in flight."""
        self._see_others()
        return self.queue.in_flight > 0

    @property
    def cores(self) -> int:
        """Cores of the model servers, at least one."""
        return int(self.queue.cores)

    @property
    def has_room(self) -> bool:
        """Whether one more window would leave half of the cores free."""
        self._see_others()
        return self.queue.lanes_at_work < max(1, self.queue.cores // 2)

    def wait_ms(self, now_ms: float) -> float:
        """Return the expected time until a core is free for a request, whatever its plan; 0: one is."""
        self._see_others(now_ms)
        return self.queue.core_wait_ms(now_ms)

    def behind_ms(self, head_starts_ms: Sequence[float], cost_ms: float) -> float:
        """Return how long before its target a plan must answer, so that waiting requests can take it in time, too.

        `head_starts_ms`: by how much later their targets are, in the order in which they are answered. Each takes
        this cost on the cores; half of its head start counts, since a queue that grows uses it up.
        """
        each_ms = (cost_ms + GATEWAY_MS) / self.queue.cores
        late_ms = (
            n * each_ms - (HEAD_START * ms if ms > 0.0 else ms)
            for n, ms in enumerate(head_starts_ms, start=1)
        )
        return max(0.0, max(late_ms, default=0.0))

    def predict(
        self, plans: Sequence[Plan], size: Size, quantile: float, now_ms: float
    ) -> list[Prediction]:
        """Return each plan's latency quantile (0.5, 0.95 or 0.99), every stage it may need counted."""
        return list(map(self.predictor(size, quantile, now_ms), plans))

    def predictor(self, size: Size, quantile: float, now_ms: float) -> Callable[[Plan], Prediction]:
        """Return what predicts one plan at a time; it holds at this moment only.

        A cascade's quantile is the sum of its stages': at least the quantile of the sum where stages are
        slow together, as they are on one host.
        """
        level = _level(quantile)
        known: dict[str, _Stage] = {}

        def stage_of(variant: str) -> _Stage:
            found = known.get(variant)
            if found is None:  # cascades share variants
                found = known[variant] = self._stage(variant, size, level, now_ms)
            return found

        def predict(plan: Plan) -> Prediction:
            if len(plan.variants) == 1:
                return Prediction(*stage_of(plan.variants[0])[:_N_PREDICTED])
            idle_ms = predicted_ms = wait_ms = 0.0
            for variant in plan.variants:
                stage = stage_of(variant)
                idle_ms += stage.idle_ms
                predicted_ms += stage.predicted_ms
                wait_ms += stage.wait_ms
            return Prediction(idle_ms, predicted_ms, self.cost_ms(plan, size), wait_ms)

        return predict

    def cost_ms(self, plan: Plan, size: Size) -> float:
        """Return the expected compute of a plan, ms of one core: the same under any load."""
        cost_ms = 0.0
        for i, variant in enumerate(plan.variants):
            compute_ms = self._of(variant, size.bucket).p50_ms * size.n_windows
            cost_ms += compute_ms * (plan.reach[i] if i and plan.reach else 1.0)
        return cost_ms

    def predict_stage(self, variant: str, size: Size, quantile: float, now_ms: float) -> Prediction:
        """Return the same of one variant that would be asked now."""
        found = self._stage(variant, size, _level(quantile), now_ms)
        return Prediction(*found[:_N_PREDICTED])

    def begin(self, variant: str, size: Size, now_ms: float) -> Work:
        """Count this work as in flight, and note what was predicted for it."""
        known = self._of(variant, size.bucket)
        p95 = self._stage(variant, size, 1, now_ms)
        p99_ms = self._stage(variant, size, 2, now_ms).predicted_ms
        alone = not self.busy
        job = self.queue.add(now_ms, variant, size.n_windows, known.p50_ms)
        if self.others is not None:
            self.others.show(job, variant, now_ms)
        self._backlog = None
        return Work(
            variant,
            now_ms,
            p95.compute_ms,
            p95.expected_ms,
            p95.predicted_ms,
            p99_ms,
            job,
            known.tracked,
            p95.regime,
            self.correction.n,
            self.queue.n_begun,
            alone and p95.regime == 0,
        )

    def leave(self, work: Work, now_ms: float) -> None:
        """Count this work as in flight no longer; twice is once."""
        if work.job is not None:
            self.queue.remove(now_ms, work.job)
            if self.others is not None:
                self.others.hide(work.job)
            work.job = self._backlog = None

    def finish(self, work: Work, now_ms: float) -> Seen:
        """Learn how long an answer took from `begin`."""
        self.leave(work, now_ms)
        self._see_others(now_ms)
        took_ms = now_ms - work.began_ms
        observed = _observed(work, took_ms)
        self.correction.add(now_ms, work.cell, work.regime, took_ms / work.expected_ms, observed)
        if work.alone and work.nth == self.queue.n_begun:  # and nothing else began meanwhile
            self.correction.add_unloaded(now_ms, work.cell, took_ms / work.expected_ms)
        self._follow()
        return _seen(work, took_ms)

    def give_up(self, work: Work, now_ms: float) -> Seen | None:
        """Learn from work that was cancelled, failed or timed out: its time is a lower bound.

        Returns the outcome of the prediction if it is known, that is if it did not hold; else None.
        """
        self.leave(work, now_ms)
        took_ms = now_ms - work.began_ms
        observed = _observed(work, took_ms)
        self.correction.add_censored(
            now_ms, work.cell, work.regime, took_ms / work.expected_ms, observed
        )
        self._follow()
        return _seen(work, took_ms) if took_ms > work.p95_ms else None

    def resize(self, cores: float, instances: Mapping[str, int]) -> None:
        """Set the cores of all model servers and the instances of each variant."""
        self.queue.cores = max(1.0, cores)
        for name in self._profiles:
            self.queue.open(name, instances[name])
        self._known.clear()
        self._backlog = None

    def set_external(self, windows: Mapping[str, int], now_ms: float) -> None:
        """Set the pending windows of other gateways at each variant of a shared server."""
        self.queue.set_external(now_ms, windows)
        self._backlog = None

    def _stage(self, variant: str, size: Size, level: int, now_ms: float) -> _Stage:
        """Return what is known of one variant that would be asked now."""
        known = self._known.get((variant, size.bucket)) or self._of(variant, size.bucket)
        backlog = self._backlog
        if backlog is None or self._backlog_ms != now_ms:
            backlog = self._look(now_ms)
        windows, p50_ms, slots, correction = (
            size.n_windows,
            known.p50_ms,
            known.slots,
            self.correction,
        )
        run_ms = p50_ms * -(-windows // slots)
        busy_ms = backlog.until_done_ms(variant, slots, windows, p50_ms)
        if run_ms >= _NO_WAIT * busy_ms:
            regime = 1 if backlog.crowded else 0
        else:
            regime = (
                2 if run_ms >= _WAITS * busy_ms else 3 if run_ms >= _WAITS_LONG * busy_ms else 4
            )
        overhead_ms = GATEWAY_MS + WINDOW_MS * (windows - 1)
        expected_ms, alone_ms = busy_ms + overhead_ms, run_ms + overhead_ms
        predicted_ms = expected_ms * correction.factor(known.tracked, regime, level)
        wait_ms = 0.0
        if regime:
            alone_now_ms = alone_ms * correction.factor(known.tracked, 0, level)
            wait_ms = max(0.0, predicted_ms - alone_now_ms)
        idle_ms = min(predicted_ms, alone_ms * known.tracked.at_rest(level).idle)
        return _Stage(idle_ms, predicted_ms, p50_ms * windows, wait_ms, expected_ms, regime)

    def _see_others(self, now_ms: float | None = None) -> None:
        """Count what other workers began and ended since the last look."""
        if self.others is not None and self.others.follow(self.queue, now_ms):
            self._backlog = None

    def learned(self) -> Iterator[tuple[str, int, Tracked]]:
        """Yield what was learned of each variant and length that was asked, by its length."""
        for (variant, bucket), known in sorted(self._known.items()):
            yield variant, bucket, known.tracked

    def _look(self, now_ms: float) -> Backlog:
        self._see_others(now_ms)
        backlog = self._backlog = self.queue.backlog(now_ms)
        self._backlog_ms = now_ms
        # Not `busy`: it looks at the others again, and drops the backlog where they began more.
        resting = not self.queue.in_flight
        self.correction.rest(now_ms - self.queue.idle_since_ms if resting else 0.0)
        self._follow()
        return backlog

    def _of(self, variant: str, bucket: int) -> _Known:
        known = self._known.get((variant, bucket))
        if known is None:
            known = self._known[variant, bucket] = self._learn_cell(variant, bucket)
        return known

    def _learn_cell(self, variant: str, bucket: int) -> _Known:
        cell = self._profiles[variant].cell(bucket)
        key = (variant, cell)  # a new profile starts a new correction
        tails = [ms / cell.p50_ms for ms in (cell.p50_ms, cell.p95_ms, cell.p99_ms)]
        tracked = self.correction.cells.get(key)
        if tracked is None:
            spreads = [log(tail) + wider for tail, wider in zip(tails, _WIDER, strict=True)]
            tracked = self.correction.cells[key] = Tracked(spreads, [log(tail) for tail in tails])
        return _Known(cell.p50_ms, tracked, self.queue.lines[variant].slots)

    def _follow(self) -> None:
        """Let work in flight progress as fast as observed."""
        self.queue.slowness = self.correction.slowness


def _observed(work: Work, took_ms: float) -> Observed:
    return Observed(work.n_known, (took_ms > work.p95_ms, took_ms > work.p99_ms))


def _seen(work: Work, took_ms: float) -> Seen:
    in_p95, in_p99 = took_ms <= work.p95_ms, took_ms <= work.p99_ms
    return Seen(work.variant, in_p95, in_p99, took_ms / work.p95_ms)


def _level(quantile: float) -> int:
    return 2 if quantile >= 0.99 else 1 if quantile >= 0.95 else 0
