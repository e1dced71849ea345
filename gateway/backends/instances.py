"""Finds the calls that the instances of a model leave unanswered, seen from the client side.

A server starts the calls of a model in the order in which they come, each at the first instance that is
free. So a call is at an instance once fewer calls are ahead of it than there are instances, and one that
younger calls overtake there is at an instance that answers nothing. Pure: times are given, ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

SILENT_MS = 200.0  # minimum time at an instance before a call counts as silent
PATIENCE = 8.0  # factor on the recent time of calls: all instances may share the cores
PACE = 1 / 8  # weight of the last call in that time
MOST = 4.0  # a call counts at most this multiple of the known time: one stall is no trend
HASTE = 0.35  # share of the time a call has: an urgent call does not wait SILENT_MS
HUNG_MS = 800.0  # an instance hangs if a call is silent for so long
OVERTAKEN = 3  # while so many younger calls were answered
SUSPICIONS, SUSPICION_MS = 5, 10_000.0  # or after so many silent calls within this time


class InstanceCall:
    """One call in flight."""

    __slots__ = ("budget_ms", "overtaken", "running_ms", "work_ms")

    def __init__(self, work_ms: float, budget_ms: float) -> None:
        self.work_ms = work_ms
        self.budget_ms = budget_ms
        self.running_ms: float | None = None  # at an instance since; None: queued
        self.overtaken = 0  # younger calls that were answered

    def is_silent(self, now_ms: float, slowness: float) -> bool:
        """Say whether its instance should have answered long ago."""
        if self.running_ms is None:
            return False
        usual_ms, floor_ms = slowness * self.work_ms, min(SILENT_MS, HASTE * self.budget_ms)
        return now_ms - self.running_ms > max(PATIENCE * usual_ms, floor_ms)


class Instances:
    """The calls of one model at one server."""

    def __init__(self, count: int) -> None:
        self._count = max(1, count)
        self._calls: dict[InstanceCall, None] = {}  # in flight, the oldest first
        self._slowness = 1.0  # time that calls take / their work on an idle host
        self._suspicions: deque[float] = deque(maxlen=SUSPICIONS)

    def __contains__(self, call: InstanceCall) -> bool:
        return call in self._calls

    def begin(self, work_ms: float, budget_ms: float, now_ms: float) -> InstanceCall:
        call = InstanceCall(work_ms, budget_ms)
        self._calls[call] = None
        self._advance(now_ms)
        return call

    def end(self, call: InstanceCall, now_ms: float, *, answered: bool) -> bool:
        """Note that a call is over; return whether it shows that an instance hangs."""
        if answered:
            self._overtake(call)
            self._learn(call, now_ms)
        del self._calls[call]
        self._advance(now_ms)
        return not answered and self._hangs(call, now_ms)

    def silent(self, now_ms: float) -> Iterator[InstanceCall]:
        """Return the calls whose instance should have answered long ago."""
        slowness = self._slowness
        return (c for c in islice(self._calls, self._count) if c.is_silent(now_ms, slowness))

    def _learn(self, call: InstanceCall, now_ms: float) -> None:
        if call.running_ms is not None:
            known = self._slowness
            seen = min((now_ms - call.running_ms) / max(call.work_ms, 1e-3), MOST * known)
            self._slowness = max(1.0, known + PACE * (seen - known))

    def _overtake(self, call: InstanceCall) -> None:
        for older in self._calls:
            if older is call:
                return
            older.overtaken += 1

    def _advance(self, now_ms: float) -> None:
        for call in islice(self._calls, self._count):
            if call.running_ms is None:
                call.running_ms = now_ms

    def _hangs(self, call: InstanceCall, now_ms: float) -> bool:
        if not call.overtaken or not call.is_silent(now_ms, self._slowness):
            return False
        assert call.running_ms is not None
        if call.overtaken >= OVERTAKEN and now_ms - call.running_ms >= HUNG_MS:
            return True
        self._suspicions.append(now_ms)
        recent = now_ms - self._suspicions[0] < SUSPICION_MS
        return len(self._suspicions) == SUSPICIONS and recent
