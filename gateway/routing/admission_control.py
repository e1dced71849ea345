"""Admission control: admits requests one by one, and refuses those that no plan can answer in time.

`admission_queue` has the queue and its order; this module has the event loop, the clock and the predictions. An
overloaded gateway wastes its time on reading and tokenizing requests that it then refuses. So requests wait, and
are refused, before their bodies are read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Sequence

from gateway.domain import Option, Reason, Slo, SloPolicy
from gateway.errors import Overloaded
from gateway.routing import admission_queue, policy
from gateway.routing.admission_queue import SMALLEST, AdmissionQueue, Soonest, Waiting
from gateway.routing.explain import refusal
from gateway.serving_set import ServingSet
from gateway.shared_memory import Workers

LOOP_PASSES = 2.0  # a request waits for the event loop before and after the model
MAX_HELD = 256  # refusals that are delayed at the same time
HELD = 0.9  # a refusal is delayed by at most this share of the time left
REFUSAL_GAP_MS = (
    20.0  # between refusals, while they can be delayed: each costs as much as a small answer
)
PACE = 1 / 32  # weight of the last gap between two admissions
MAX_GAP_MS = 1_000.0
LAG_EVERY_MS = 20.0  # between measurements of the event loop's lag


class Refused(Exception):
    """A request is not admitted: the error to raise, and the rule as a metric label."""

    def __init__(self, rule: str, error: Exception) -> None:
        super().__init__(str(error))
        self.rule = rule
        self.error = error


class LoopLag:
    """The lag of the event loop that `run` runs in: how long a ready callback waits before it runs.

    It concerns requests alone, so it is measured while some are in flight: an idle gateway sleeps.
    """

    def __init__(self, clock: Callable[[], float], is_idle: Callable[[], bool]) -> None:
        """`is_idle` returns whether no request is in flight."""
        self._clock = clock
        self._is_idle = is_idle
        self._wanted = asyncio.Event()
        self._due_ms = math.inf
        self._last_ms = 0.0

    @property
    def late_ms(self) -> float:
        """Return the last measured lag, or the current one if that is larger."""
        return max(self._last_ms, self._clock() - self._due_ms, 0.0)

    def wake(self) -> None:
        """Measure from now on: a request came."""
        self._wanted.set()

    async def run(self) -> None:
        """Measure forever, with rests while nothing is in flight."""
        while True:
            if self._is_idle():
                self._due_ms, self._last_ms = math.inf, 0.0
                self._wanted.clear()
                await self._wanted.wait()
            self._due_ms = self._clock() + LAG_EVERY_MS
            await asyncio.sleep(LAG_EVERY_MS / 1e3)
            self._last_ms = max(0.0, self._clock() - self._due_ms)


class AdmissionControl:
    """The admission of one service, in one event loop."""

    def __init__(
        self,
        max_in_flight: int,
        serving: Callable[[], ServingSet | None],
        clock: Callable[[], float],
    ) -> None:
        """`serving` returns the current serving set."""
        self.lag = LoopLag(clock, lambda: not self.in_flight)
        self.in_flight = 0  # requests that wait or are admitted
        self.workers: Workers | None = None  # of this gateway, where there are several
        self._max_in_flight = max_in_flight
        self._serving = serving
        self._clock = clock
        self._queue = AdmissionQueue()
        self._waiters: dict[Waiting, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._look_ms = -math.inf
        self._n_held = 0
        self._next_refusal_ms = -math.inf
        self._n_refused = 0  # requests that were not admitted, while their refusals are held back
        self._gap_ms = 0.0  # mean gap between two admissions while others wait
        self._last_ms = -math.inf  # time of the last admission

    @property
    def n_waiting(self) -> int:
        return len(self._queue)

    @property
    def n_held(self) -> int:
        """Refusals that are held back."""
        return self._n_held

    @property
    def n_open(self) -> int:
        """Requests in flight, and those whose refusal is held back."""
        return self.in_flight + self._n_refused

    def head_starts_ms(self, left_ms: float) -> Sequence[float]:
        """Return by how much later the targets of waiting requests are than one in `left_ms`, the least first."""
        return self._queue.head_starts_ms(left_ms, self._clock()) if len(self._queue) else ()

    def raise_if_full(self) -> None:
        """Raise Refused where `max_in_flight` is reached."""
        n = self.in_flight if self.workers is None else self.in_flight + self.workers.in_flight
        if n >= self._max_in_flight:
            raise self._full(n)

    def _full(self, n: int) -> Refused:
        return Refused(
            "full",
            Overloaded(
                f"busy: {n} requests are in flight, and max_in_flight is"
                f" {self._max_in_flight}; try again later",
                max(1e3, self.wait_ms),
            ),
        )

    def _count(self, change: int) -> None:
        self.in_flight += change
        if self.in_flight == change:  # the first one
            self.lag.wake()
        if self.workers is not None and self.workers.own is not None:
            self.workers.own.in_flight = self.in_flight

    def _take_place(self) -> None:
        """Count a request as in flight. Raises: Refused, where `max_in_flight` is reached."""
        self._count(1)  # first: of two workers that look at the same time, each sees the other
        n = self.in_flight if self.workers is None else self.in_flight + self.workers.in_flight
        if n > self._max_in_flight:
            self._count(-1)
            raise self._full(n - 1)

    @property
    def wait_ms(self) -> float:
        """Return the time until all waiting requests are admitted, at the current pace."""
        return len(self._queue) * self._gap_ms

    def expected_wait_ms(self, slo: Slo, cores: int, now_ms: float) -> float:
        """Return how long such a request would wait for admission if it arrived now."""
        if slo.policy is SloPolicy.STRICT or self._queue.may_preempt(slo, now_ms, cores):
            return 0.0
        return self._queue.n_ahead(slo, now_ms) * self._gap_ms

    async def admit(self, slo: Slo, serving: ServingSet, caller: Hashable) -> Waiting:
        """Wait for admission, and return the admitted request, which counts until `leave`.

        Raises: Refused; at once for `strict`, else delayed at most until the deadline.
        """
        began_ms = self._clock()
        request = Waiting(slo, began_ms, caller)
        try:
            self._take_place()
            try:
                await self._enter(request, serving)
            except BaseException:
                self._give_place()
                raise
        except Refused as refused:
            await self._hold_back(slo, self._clock() - began_ms, refused)
            raise
        return request

    def leave(self, request: Waiting) -> None:
        """Count an admitted request no longer."""
        self._queue.leave(request)
        self._give_place()

    def _give_place(self) -> None:
        self._count(-1)
        self._pump()

    async def _enter(self, waiting: Waiting, serving: ServingSet) -> None:
        """Return when the request is admitted. Raises: Refused."""
        now_ms = waiting.arrived_ms
        if not len(self._queue) and self._has_room(serving, now_ms):
            self._queue.enter(waiting)
            return
        if waiting.slo.policy is SloPolicy.STRICT:
            self._raise_if_unmeetable(waiting.slo, serving, now_ms)
            self._queue.enter(waiting)
            # A request that skips the queue also admits one from it.
            self._admit(self._queue.take(now_ms), now_ms)
            return
        self._queue.add(waiting)
        let_in = self._waiters[waiting] = asyncio.get_running_loop().create_future()
        self._pump()
        try:
            await let_in
        except asyncio.CancelledError:
            if self._waiters.pop(waiting, None) is not None:
                self._queue.remove(waiting)
            elif let_in.done() and not let_in.cancelled() and let_in.exception() is None:
                self._queue.leave(waiting)  # it was admitted in the same pass of the event loop
            raise

    def _has_room(self, serving: ServingSet, now_ms: float) -> bool:
        """Return whether a request admitted now would wait for almost nothing."""
        if self.lag.late_ms > admission_queue.ROOM_MS:
            return False
        return serving.latency.wait_ms(now_ms) <= admission_queue.ROOM_MS

    def _raise_if_unmeetable(self, slo: Slo, serving: ServingSet, now_ms: float) -> None:
        """Raise Refused where even the smallest request could not meet this strict SLO."""
        options = serving.options(SMALLEST, policy.quantile_for(slo.policy), now_ms)
        late_ms = LOOP_PASSES * self.lag.late_ms
        decision = policy.choose(slo, options, late_ms, serving.breakers.failing(now_ms))
        if decision.option is None and decision.reason in (Reason.BUSY, Reason.TOO_LATE):
            raise Refused("strict", refusal(decision, slo, tuple(options)))

    def _pump(self) -> None:
        """Admit the next request if there is room, and refuse those that cannot be answered in time."""
        serving, now_ms = self._serving(), self._clock()
        if not len(self._queue):
            return
        if serving is None:  # no predictions: the service raises the error
            self._admit(self._queue.take(now_ms), now_ms)
        else:
            if now_ms >= self._look_ms:
                self._look_ms = now_ms + admission_queue.LOOK_MS
                self._refuse_hopeless(serving, now_ms)
            if self._has_room(serving, now_ms):
                self._admit(self._queue.take(now_ms), now_ms)
            else:
                self._admit(self._queue.take_preempting(now_ms, serving.latency.cores), now_ms)
        if len(self._queue) and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(admission_queue.TICK_MS / 1e3, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._pump()

    def _admit(self, waiting: Waiting | None, now_ms: float) -> None:
        """Admit a request. It begins in the next pass of the event loop; only then is the next one considered."""
        if waiting is None:
            return
        gap_ms = min(now_ms - self._last_ms, MAX_GAP_MS)
        self._gap_ms += PACE * (gap_ms - self._gap_ms)
        self._last_ms = now_ms
        let_in = self._waiters.pop(waiting)
        if not let_in.done():
            self._queue.enter(waiting)
            let_in.set_result(None)
        asyncio.get_running_loop().call_soon(self._pump)

    def _refuse_hopeless(self, serving: ServingSet, now_ms: float) -> None:
        late_ms = LOOP_PASSES * self.lag.late_ms

        def options(slo: Slo) -> Sequence[Option]:
            part = serving.parts.get(slo.task, serving)
            return part.options(SMALLEST, policy.quantile_for(slo.policy), now_ms)

        soonest = Soonest(options, late_ms)
        for waiting in self._queue.take_hopeless(now_ms, soonest):
            let_in = self._waiters.pop(waiting)
            if not let_in.done():
                let_in.set_exception(self._unreachable(waiting, soonest(waiting.slo), now_ms))

    def _unreachable(self, waiting: Waiting, soonest_ms: float, now_ms: float) -> Refused:
        waited_ms = now_ms - waiting.arrived_ms
        error = Overloaded(
            f"busy: no plan is predicted to answer before the deadline of {waiting.slo.timeout_ms:g} ms:"
            f" {waited_ms:.0f} ms of it passed in the queue, where {len(self._queue)} others wait, and the"
            f" fastest plan takes {soonest_ms:.0f} ms now; try again later, or allow more time",
            max(self.wait_ms, soonest_ms),
        )
        return Refused("unreachable", error)

    async def hold_back(self, slo: Slo, spent_ms: float, error: Overloaded) -> None:
        """Delay a refusal, so that a caller who retries at once costs the others almost nothing.

        The delay ends when a retry makes sense and REFUSAL_GAP_MS after the refusal before, at the latest shortly
        before the deadline. `strict` requests and refusals above MAX_HELD are not delayed.
        """
        if slo.policy is SloPolicy.STRICT or self._n_held >= MAX_HELD:
            return
        now_ms = self._clock()
        paced_ms = max(error.retry_after_ms, self._next_refusal_ms - now_ms)
        held_ms = min(paced_ms, HELD * (slo.timeout_ms - spent_ms))
        if held_ms <= 0:
            return
        turn_ms = max(now_ms, min(self._next_refusal_ms, now_ms + held_ms))
        self._next_refusal_ms = turn_ms + REFUSAL_GAP_MS
        self._n_held += 1
        try:
            await asyncio.sleep(held_ms / 1e3)
        finally:
            self._n_held -= 1

    async def _hold_back(self, slo: Slo, spent_ms: float, refused: Refused) -> None:
        if not isinstance(refused.error, Overloaded):
            return
        self._n_refused += 1
        try:
            await self.hold_back(slo, spent_ms, refused.error)
        finally:
            self._n_refused -= 1
