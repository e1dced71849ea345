"""Who is let in next of the requests that wait unread, and who waits in vain.

A request that cannot begin at once waits before its body is read: there it costs a few kilobytes and no work,
and the order is ours. The queue inside, for the event loop and the models, is kept short; nobody is refused
for the length of either. Pure: times and predictions are given, ms; so a simulator runs it as it is.

Order: who can still be answered within the target first, earliest target first (Liu & Layland 1973); among
equals in number of requests inside, so that no caller takes the queue. Who is late already waits for what
is left over, and gets every so many turns (adaptive LIFO: Maurer 2015, "Fail at Scale"), until no plan is
predicted to answer by the deadline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from math import exp, inf

from gateway.domain import Option, Size, Slo, SloPolicy
from gateway.routing.policy import meets_f1

SMALLEST = Size(64, 1)  # the request that an unread one is taken for
ROOM_MS = 10.0  # the wait inside, as expected, up to which one more is let in
IN_TIME = 0.6  # of its target may be gone when a request is let in: the rest is for its answer
AGING_INTERVAL = 12  # requests that are let in for each that will be late anyway, while both wait
# Of the time to its deadline: who has no more left goes first, unless that has not been enough of late.
LAST_CHANCE = 0.5
VAIN = 0.05  # refused, of those let in: then last chances are not enough, and cost those who are in time
MEMORY_MS = 1_000.0  # over which both are counted
FAR_ABOVE = 0.6  # the same: so far above what can be answered it is not even tried again
HOLD_MS, MAX_HOLD_MS = 4_000.0, 60_000.0  # then it is tried again, ever later
# By urgency (RFC 9218, 0 the most urgent): a request is ordered as if its target were so many times as far off.
STRETCH = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)

BEHIND = (
    16  # at most so many of those who wait make plans cheaper: more of them would be late anyway
)
LOOK_MS = 5.0  # how often it is looked for who waits in vain


class Waiting:
    """A request that is not read yet, with the times by which it is ordered."""

    __slots__ = ("arrived_ms", "caller", "deadline_ms", "due_ms", "ends_ms", "late_ms", "slo")

    def __init__(self, slo: Slo, arrived_ms: float, caller: Hashable) -> None:
        stretch = STRETCH[slo.priority]
        self.slo = slo
        self.arrived_ms = arrived_ms
        self.caller = caller
        self.late_ms = arrived_ms + IN_TIME * slo.latency_ms
        self.deadline_ms = arrived_ms + slo.timeout_ms
        self.due_ms = arrived_ms + stretch * slo.latency_ms  # the order of who is in time
        self.ends_ms = arrived_ms + stretch * slo.timeout_ms  # the order of who is late


def soonest_ms(slo: Slo, options: Sequence[Option]) -> float:
    """Return the least time predicted for a plan that may answer this; inf: no plan may.

    `strict` takes only what keeps the floor; a pinned variant is the only one that may answer.
    """
    able = options
    if slo.variant is not None:
        able = [o for o in able if o.plan.variants == (slo.variant,)]
    if slo.policy is SloPolicy.STRICT:
        able = [o for o in able if meets_f1(o, slo)]
    return min((o.predicted_ms for o in able), default=inf)


class Soonest:
    """The same for many requests at one moment; what is alike is predicted once."""

    def __init__(self, options: Callable[[Slo], Sequence[Option]], late_ms: float = 0.0) -> None:
        """`options`: those for the smallest request; `late_ms`: that it waits for the event loop."""
        self._options = options
        self._late_ms = late_ms
        self._found: dict[Hashable, float] = {}

    def __call__(self, slo: Slo) -> float:
        strict = slo.policy is SloPolicy.STRICT
        key = (slo.variant, (slo.min_f1, slo.max_f1_loss) if strict else None)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._late_ms + soonest_ms(slo, self._options(slo))
        return found


class AdmissionQueue:
    """The requests that wait, and how many of each caller are inside."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._inside: Counter[Hashable] = Counter()
        self._since_late = 0  # requests let in since one that was late
        self._let_in = self._refused = 0.0  # of late
        self._counted_ms = 0.0
        self._in_vain_until_ms = 0.0
        self._hold_ms = HOLD_MS

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def n_behind(self) -> int:
        """Return how many of those who wait a plan is chosen in view of."""
        return min(len(self._waiting), BEHIND)

    def add(self, request: Waiting) -> None:
        self._waiting.append(request)

    def remove(self, request: Waiting) -> None:
        """Take out a request that waits no longer: its caller left."""
        self._waiting.remove(request)

    def enter(self, caller: Hashable) -> None:
        """Count a request of this caller as inside."""
        self._inside[caller] += 1

    def leave(self, caller: Hashable) -> None:
        self._inside[caller] -= 1
        if self._inside[caller] <= 0:
            del self._inside[caller]

    def n_ahead(self, slo: Slo, now_ms: float) -> int:
        """Return how many of those who wait would be let in before a request that came now."""
        due_ms = now_ms + STRETCH[slo.priority] * slo.latency_ms
        return sum(now_ms <= r.late_ms and r.due_ms <= due_ms for r in self._waiting)

    def take(self, now_ms: float) -> Waiting | None:
        """Take out the request that is let in next; None: nobody waits."""
        if not self._waiting:
            return None
        in_time, late = _First(), _First()
        for request in self._waiting:
            inside = self._inside[request.caller]
            if now_ms <= request.late_ms:
                in_time.offer(request, (inside, request.due_ms))
            else:
                late.offer(request, (inside, request.ends_ms))
        chosen = in_time.request
        if late.request is not None and (chosen is None or self._may_pass(late.request, now_ms)):
            chosen, self._since_late = late.request, 0
        else:
            self._since_late += 1
        assert chosen is not None
        self._waiting.remove(chosen)
        self._count(now_ms, let_in=1.0)
        return chosen

    def take_hopeless(self, now_ms: float, soonest: Soonest) -> list[Waiting]:
        """Take out all that no plan is predicted to answer by their deadline, were they let in now."""
        found = [r for r in self._waiting if now_ms + soonest(r.slo) > r.deadline_ms]
        if found:
            gone = set(found)
            self._waiting = [r for r in self._waiting if r not in gone]
            self._count(now_ms, refused=float(len(found)))
            self._judge_last_chances(now_ms)
        return found

    def _may_pass(self, late: Waiting, now_ms: float) -> bool:
        """Say whether a request that will be late passes one that can be in time."""
        if self._since_late >= AGING_INTERVAL:
            return True
        if late.deadline_ms - now_ms >= LAST_CHANCE * late.slo.timeout_ms:
            return False
        if now_ms < self._in_vain_until_ms:
            return False
        self._count(now_ms)
        return self._refused <= FAR_ABOVE * self._let_in

    def _judge_last_chances(self, now_ms: float) -> None:
        """Where so many are refused all the same, let nobody pass for a while.

        A bounded number of callers can all be answered, if late; a stream of more than can be answered cannot.
        """
        if now_ms < self._in_vain_until_ms or self._refused <= max(2.0, VAIN * self._let_in):
            return
        if now_ms - self._in_vain_until_ms > MAX_HOLD_MS:
            self._hold_ms = HOLD_MS
        self._in_vain_until_ms = now_ms + self._hold_ms
        self._hold_ms = min(2 * self._hold_ms, MAX_HOLD_MS)

    def _count(self, now_ms: float, let_in: float = 0.0, refused: float = 0.0) -> None:
        kept = exp(-max(0.0, now_ms - self._counted_ms) / MEMORY_MS)
        self._counted_ms = now_ms
        self._let_in = kept * self._let_in + let_in
        self._refused = kept * self._refused + refused


class _First:
    """The request with the least key."""

    def __init__(self) -> None:
        self.request: Waiting | None = None
        self._key: tuple[int, float] = (0, inf)

    def offer(self, request: Waiting, key: tuple[int, float]) -> None:
        if self.request is None or key < self._key:
            self.request, self._key = request, key
