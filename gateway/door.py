"""Refuses, from its headers alone, a request that could no longer be answered in time.

Reading and tokenizing a request that is refused afterwards is what a gateway drowns in. So the door looks at
what is queued, here and at the models, before a body is read; the policy looks again once the size is known.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace

from gateway import policy, slo, spans
from gateway.congestion import QUEUE_PACE, SMALLEST, Congestion, queue_ms
from gateway.domain import Option, Size, Slo, SloRequest
from gateway.errors import BadInput, Overloaded
from gateway.serving import ServingSet
from gateway.settings import Settings

BEAT_MS = 20.0  # how often the event loop's own queue is felt
MEMORY_MS = 200.0  # over which the loop's own share of a core is averaged
BUSY = 0.6  # of a core: from there on the loop's lateness is its own doing
TURNS = 2.0  # a request waits for the loop again when the model has answered
TYPICAL = Size(spans.TYPICAL_TOKENS, 1)
REFRESH_MS = 10.0  # how old a prediction at the door may be
PATIENCE = 20  # refusals of one urgency, until one of its requests is judged as the most urgent
URGENCIES = 8


class Turns:
    """Sees to it that no urgency is refused for ever.

    Where the more urgent keep the queue full, every so many refusals of an urgency one of its requests is
    judged like theirs: it may wait as long as they.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        self._patience = patience
        self._refused = [0] * URGENCIES

    def urgency(self, priority: int) -> int:
        """Return the urgency to judge a request by."""
        return priority if self._refused[priority] < self._patience else 0

    def take(self, priority: int) -> int:
        """Return the same, and begin to count anew where it was the urgency's turn."""
        urgency = self.urgency(priority)
        if urgency != priority:
            self._refused[priority] = 0
        return urgency

    def refused(self, priority: int) -> None:
        self._refused[priority] += 1


class Beat:
    """How late this event loop is: what is ready waits for that long before it runs.

    And whether that is its own doing: a loop that is late because others took its core refuses nobody for it,
    as that would leave the core to them.
    """

    def __init__(
        self, clock: Callable[[], float], spent_s: Callable[[], float] = time.thread_time
    ) -> None:
        """`spent_s`: CPU time of the loop's thread."""
        self._clock = clock
        self._spent_s = spent_s
        self._due_ms = math.inf
        self._last_ms = 0.0
        self._share = 0.0  # of a core that the loop took of late

    @property
    def late_ms(self) -> float:
        return max(self._last_ms, self._clock() - self._due_ms, 0.0)

    @property
    def busy(self) -> bool:
        """Is most of a core taken by this loop itself?"""
        return self._share > BUSY

    async def run(self) -> None:
        """Feel for ever."""
        while True:
            began_ms, spent_s = self._clock(), self._spent_s()
            self._due_ms = began_ms + BEAT_MS
            await asyncio.sleep(BEAT_MS / 1e3)
            now_ms = self._clock()
            self._last_ms = max(0.0, now_ms - self._due_ms)
            self._learn(1e3 * (self._spent_s() - spent_s), now_ms - began_ms)

    def _learn(self, spent_ms: float, passed_ms: float) -> None:
        """Remember the share of a core that was taken, over some tenths of a second."""
        weight = passed_ms / (passed_ms + MEMORY_MS)
        self._share += weight * (min(1.0, spent_ms / max(passed_ms, 1e-3)) - self._share)


class Door:
    """Judges requests by what their headers say; made for one service, in one event loop."""

    def __init__(self, settings: Settings, turns: Turns, clock: Callable[[], float]) -> None:
        self.beat = Beat(clock)
        self._settings = settings
        self._turns = turns
        self._congestion = Congestion()
        self._queueing = Congestion(pace=QUEUE_PACE)
        self._clock = clock
        known = settings.classes
        own = (slo.resolve(SloRequest(slo_class=c), known, c, 0.0).timeout_ms for c in known)
        self._longest_ms = max(own)
        self._options: list[Option] = []
        self._of: ServingSet | None = None
        self._limit_of: ServingSet | None = None
        self._looked_ms = -math.inf

    def reason_to_refuse(
        self, request: SloRequest, serving: ServingSet | None, in_flight: int, *, told: bool = True
    ) -> tuple[str, Overloaded] | None:
        """Return why this request is not let in, as a metric's label and as an error; None: it is.

        `told` False: its body may say more of its SLO, so it is judged by the longest deadline of a class.
        """
        if in_flight >= self._settings.max_in_flight:
            return "full", Overloaded(
                f"busy: {in_flight} requests are being answered, the most there may be", 1e3
            )
        late_ms, queued_ms = self._waits(serving)
        calm = late_ms < BEAT_MS and not self._congestion.lasts and not self._queueing.lasts
        if serving is None or not serving.served:
            return None  # nothing answers: whoever reads it says so
        if calm and not serving.latency.crowded:
            return None
        try:
            promise = self._promise(request, serving, told=told)
        except BadInput:
            return None  # whoever reads it says so
        if self._is_congested(promise, serving, late_ms, queued_ms):
            self._turns.refused(request.priority)
            return "congested", Overloaded(
                "busy: more is asked than can be answered; try again later, or with a lower u",
                late_ms + queued_ms,
            )
        excess_ms = self._excess_ms(promise, serving, late_ms)
        if excess_ms <= 0.0:
            return None
        self._turns.refused(request.priority)
        return "unreachable", Overloaded(
            f"busy: the deadline of {promise.timeout_ms:g} ms cannot be kept now; try again later, give more"
            " time or a lower u",
            excess_ms,
        )

    def _waits(self, serving: ServingSet | None) -> tuple[float, float]:
        """Return how long a request waits for its turn here, and the smallest for the models; learn both."""
        late_ms, queued_ms = self.beat.late_ms, 0.0
        if serving is not None:
            queued_ms = serving.latency.wait_ms(serving.plans(), SMALLEST, self._clock())
            if serving is not self._limit_of and serving.plans():
                self._queueing.limit_ms = queue_ms(serving.options(TYPICAL, 0.5, self._clock()))
                self._limit_of = serving
        self._congestion.note(late_ms if self.beat.busy else 0.0)
        self._queueing.note(queued_ms)
        return late_ms, queued_ms

    def _is_congested(
        self, promise: Slo, serving: ServingSet, late_ms: float, queued_ms: float
    ) -> bool:
        if promise.variant is not None or not (self._congestion.lasts or self._queueing.lasts):
            return False
        typical = serving.options(TYPICAL, 0.5, self._clock())
        if self.beat.busy and self._congestion.refuses(promise, late_ms, typical):
            return True
        return self._queueing.refuses(promise, queued_ms, typical)

    def _promise(self, request: SloRequest, serving: ServingSet, *, told: bool) -> Slo:
        promise = slo.resolve(
            request,
            self._settings.classes,
            self._settings.default_class,
            serving.catalog.best_floor,
        )
        if not told:
            return replace(promise, timeout_ms=self._longest_ms, min_f1=0.0, priority=0)
        return replace(promise, priority=self._turns.urgency(promise.priority))

    def _excess_ms(self, promise: Slo, serving: ServingSet, late_ms: float) -> float:
        """Return by how much the wait is longer than it may be, for the plan that has to wait least."""
        wait_ms = TURNS * late_ms
        if promise.variant is not None:  # it is answered whatever the models have to do
            return wait_ms - promise.timeout_ms
        share = policy.MAY_WAIT[promise.priority]
        able = (o for o in self._smallest(serving) if o.idle_ms < promise.timeout_ms)
        found = (
            wait_ms + o.predicted_ms - o.idle_ms - share * (promise.timeout_ms - o.idle_ms)
            for o in able
        )
        return min(found, default=0.0)  # what no idle system could do is not told here

    def _smallest(self, serving: ServingSet) -> list[Option]:
        """Return the options of the smallest request there is."""
        now = self._clock()
        if serving is not self._of or now - self._looked_ms > REFRESH_MS:
            self._options = serving.options(SMALLEST, 0.95, now)
            self._of, self._looked_ms = serving, now
        return self._options
