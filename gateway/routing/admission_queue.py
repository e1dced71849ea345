"""The admission queue: which waiting request is admitted next, and which ones cannot be answered in time.

A request that cannot begin at once waits before its body is read. There it costs a few kilobytes and no work, and
the gateway decides the order. The queue behind admission, for the event loop and the models, stays short. A few
requests begin beside admitted ones with longer targets. No request is refused because either queue is long. Pure:
times and predictions are arguments, ms; a simulator runs this code unchanged.

Order: requests that can still meet their target come first, earliest target first (Liu & Layland 1973). Callers
with fewer admitted requests go before others, so that no caller takes the whole queue. Late requests get the
capacity that is left and, by aging, one of every AGING_INTERVAL admissions (adaptive LIFO: Maurer 2015, "Fail at
Scale"). A request leaves the queue when no plan is predicted to answer it by its deadline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from heapq import nsmallest
from math import exp, inf

from gateway.domain import Option, Size, Slo, SloPolicy
from gateway.routing.policy import meets_f1

SMALLEST = Size(64, 1)  # the assumed size of a request that is still unread
ROOM_MS = 10.0  # admit another request while the expected wait behind admission is at most this
IN_TIME = 0.6  # share of its target that may pass before admission; the rest is for the answer
AGING_INTERVAL = (
    12  # admissions of requests in time for each admission of a late one, while both wait
)
# A late request goes first when at most this share of its time to the deadline is left, unless such
# last chances failed recently.
LAST_CHANCE = 0.5
VAIN = (
    0.05  # refused / admitted: above this, last chances do not suffice and delay requests in time
)
MEMORY_MS = 1_000.0  # time constant of both counts
FAR_ABOVE = 0.6  # the same ratio: above this, load is too high for last chances at all
HOLD_MS, MAX_HOLD_MS = 4_000.0, 60_000.0  # until last chances are tried again; doubles each time
# Times its target since its arrival: an admitted request this old uploads slowly, or hangs.
STUCK = 4.0
# By urgency (RFC 9218, 0 the most urgent): factor on the target, for the order only.
STRETCH = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)

BEHIND = 32  # limit on the waiting requests that the choice of a plan considers: later ones are late anyway
TICK_MS = 5.0  # between looks for room, while requests wait
LOOK_MS = (
    25.0  # between searches for requests that cannot be answered in time: each predicts all plans
)


class Waiting:
    """A waiting or admitted request, with the times that order it."""

    __slots__ = (
        "arrived_ms",
        "caller",
        "deadline_ms",
        "due_ms",
        "ends_ms",
        "late_ms",
        "preempts",
        "rank_ms",
        "slo",
    )

    def __init__(self, slo: Slo, arrived_ms: float, caller: Hashable) -> None:
        self.slo = slo
        self.arrived_ms = arrived_ms
        self.caller = caller
        self.late_ms = arrived_ms + IN_TIME * slo.latency_ms
        self.deadline_ms = arrived_ms + slo.timeout_ms
        stretch = STRETCH[slo.priority]
        self.due_ms = arrived_ms + stretch * slo.latency_ms  # orders the requests in time
        self.ends_ms = arrived_ms + stretch * slo.timeout_ms  # orders the late requests
        # With a shorter one it may begin beside a longer one.
        self.rank_ms = max(1.0, stretch) * slo.latency_ms
        self.preempts = False  # it was admitted although no core was free


def soonest_ms(slo: Slo, options: Sequence[Option]) -> float:
    """Return the lowest predicted latency of a plan that may answer this request; inf: there is none.

    While a core is free it is that of an idle system: see `Option.reach_ms`. Under `strict` only plans that meet
    the floors count; if a variant is pinned, only that one counts.
    """
    able = options
    if slo.variant is not None:
        able = [o for o in able if o.plan.variants == (slo.variant,)]
    if slo.policy is SloPolicy.STRICT:
        able = [o for o in able if meets_f1(o, slo)]
    return min((o.reach_ms for o in able), default=inf)


class Soonest:
    """`soonest_ms` for many requests at one moment; equal requests share a prediction."""

    def __init__(self, options: Callable[[Slo], Sequence[Option]], late_ms: float = 0.0) -> None:
        """`options`: for the smallest request; `late_ms`: its wait for the event loop."""
        self._options = options
        self._late_ms = late_ms
        self._found: dict[Hashable, float] = {}

    def __call__(self, slo: Slo) -> float:
        strict = slo.policy is SloPolicy.STRICT
        key = (slo.task, slo.variant, (slo.min_f1, slo.max_f1_loss) if strict else None)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._late_ms + soonest_ms(slo, self._options(slo))
        return found


class AdmissionQueue:
    """The waiting and the admitted requests."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._inside: Counter[Hashable] = Counter()  # admitted requests, by caller
        self._admitted: set[Waiting] = set()
        self._since_late = 0  # admissions since the last late request
        self._let_in = self._refused = 0.0  # recently
        self._counted_ms = 0.0
        self._in_vain_until_ms = 0.0
        self._hold_ms = HOLD_MS

    def __len__(self) -> int:
        return len(self._waiting)

    def head_starts_ms(self, left_ms: float, now_ms: float) -> Sequence[float]:
        """Return by how much later the targets of waiting requests are than one in `left_ms`, the least first.

        Of those that can still be in time; of many only the first.
        """
        in_time = (r for r in self._waiting if now_ms <= r.late_ms)
        target_ms = now_ms + left_ms
        return nsmallest(BEHIND, (r.arrived_ms + r.slo.latency_ms - target_ms for r in in_time))

    def add(self, request: Waiting) -> None:
        self._waiting.append(request)

    def remove(self, request: Waiting) -> None:
        """Remove a request whose caller left."""
        self._waiting.remove(request)

    def enter(self, request: Waiting) -> None:
        """Count a request as admitted."""
        self._inside[request.caller] += 1
        self._admitted.add(request)

    def leave(self, request: Waiting) -> None:
        """Count an admitted request no longer."""
        self._admitted.discard(request)
        self._inside[request.caller] -= 1
        if self._inside[request.caller] <= 0:
            del self._inside[request.caller]

    def n_ahead(self, slo: Slo, now_ms: float) -> int:
        """Return how many waiting requests would be admitted before one that arrives now."""
        due_ms = now_ms + STRETCH[slo.priority] * slo.latency_ms
        return sum(now_ms <= r.late_ms and r.due_ms <= due_ms for r in self._waiting)

    def take(self, now_ms: float) -> Waiting | None:
        """Remove and return the request to admit next; None: the queue is empty."""
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

    def may_preempt(self, slo: Slo, now_ms: float, cores: int) -> bool:
        """Return whether a request that arrives now would not wait for a core."""
        return Waiting(slo, now_ms, None).rank_ms < self._preempted_ms(now_ms, cores)

    def take_preempting(self, now_ms: float, cores: int) -> Waiting | None:
        """Remove and return a request in time that need not wait for a core; None: there is none."""
        first, below_ms = _First(), self._preempted_ms(now_ms, cores)
        if not below_ms:
            return None
        for request in self._waiting:
            if request.rank_ms < below_ms and now_ms <= request.late_ms:
                first.offer(request, (self._inside[request.caller], request.due_ms))
        chosen = first.request
        if chosen is not None:
            self._waiting.remove(chosen)
            self._count(now_ms, let_in=1.0)
            chosen.preempts = True
        return chosen

    def _preempted_ms(self, now_ms: float, cores: int) -> float:
        """Return the target below which a request begins although no core is free; 0: none does.

        At most as many do as there are cores, and none while that many admitted ones have equal or shorter targets;
        of these the stuck ones do not count.
        Source: deadline-monotonic priorities (Leung & Whitehead 1982); the operating system shares the cores.
        """
        if sum(r.preempts for r in self._admitted) >= cores:
            return 0.0
        longest_ms = max((r.rank_ms for r in self._admitted), default=0.0)
        at_work = [r for r in self._admitted if now_ms <= r.arrived_ms + STUCK * r.slo.latency_ms]
        shortest_ms = nsmallest(cores, (r.rank_ms for r in at_work))
        return min(longest_ms, shortest_ms[-1]) if len(shortest_ms) == cores else longest_ms

    def take_hopeless(self, now_ms: float, soonest: Soonest) -> list[Waiting]:
        """Remove and return all requests that no plan is predicted to answer by their deadline."""
        found = [r for r in self._waiting if now_ms + soonest(r.slo) > r.deadline_ms]
        if found:
            gone = set(found)
            self._waiting = [r for r in self._waiting if r not in gone]
            self._count(now_ms, refused=float(len(found)))
            self._judge_last_chances(now_ms)
        return found

    def _may_pass(self, late: Waiting, now_ms: float) -> bool:
        """Return whether a late request goes before one that can still be in time."""
        if self._since_late >= AGING_INTERVAL:
            return True
        if late.deadline_ms - now_ms >= LAST_CHANCE * late.slo.timeout_ms:
            return False
        if now_ms < self._in_vain_until_ms:
            return False
        self._count(now_ms)
        return self._refused <= FAR_ABOVE * self._let_in

    def _judge_last_chances(self, now_ms: float) -> None:
        """Stop giving last chances for a while where many requests are refused in spite of them.

        A bounded number of callers can all be answered, if late. A stream above the capacity cannot.
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
    """The request with the lowest key."""

    def __init__(self) -> None:
        self.request: Waiting | None = None
        self._key: tuple[int, float] = (0, inf)

    def offer(self, request: Waiting, key: tuple[int, float]) -> None:
        if self.request is None or key < self._key:
            self.request, self._key = request, key
