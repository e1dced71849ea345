"""Circuit breakers of failing variants, and a budget for retries.

A breaker is closed (requests pass), open (no requests for a while) or half-open: one request, the probe,
passes, and its outcome closes the breaker or opens it for twice as long. Pure: times are arguments, ms.
Sources: Nygard 2018, "Release It!", ch. 5 (circuit breaker); Finagle's RetryBudget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from enum import StrEnum

from gateway.backends.retry import backoff_ms

IN_A_ROW = 3  # failures that open a breaker
WINDOW, SHARE = 20, 0.5  # this share of failures among the last calls opens it, too
PATIENCE = (
    4.0  # a variant may hang after this multiple of its work, or of what its answers took lately
)
LATELY_MS = 5_000.0  # without any answer, however long they took before, it hangs
FIRST_OPEN_MS, LONGEST_OPEN_MS = 1_000.0, 30_000.0
PACE = 1 / 4  # weight of the last answer in that mean
RETRY_BURST = 20.0  # retries that may follow one another at once


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """The circuit breaker of one variant."""

    def __init__(self) -> None:
        self._last: deque[bool] = deque(maxlen=WINDOW)  # did they fail?
        self._in_a_row = 0
        self._until_ms: float | None = None  # None: closed
        self._times = 0  # opened without a success between
        self._probe: GuardedCall | None = None
        self._worked_ms = float("-inf")
        self._usual_ms = 0.0  # mean time of the last answers, under the load of that time

    @property
    def closed(self) -> bool:
        return self._until_ms is None

    def state(self, now_ms: float) -> State:
        if self._until_ms is None:
            return State.CLOSED
        return State.OPEN if now_ms < self._until_ms else State.HALF_OPEN

    def allows(self, now_ms: float) -> bool:
        """Return whether a request may ask the variant now."""
        state = self.state(now_ms)
        return state is State.CLOSED or (state is State.HALF_OPEN and self._probe is None)

    def begin(self, now_ms: float) -> GuardedCall:
        """Return the call of one request; in a half-open breaker it is the probe."""
        call = GuardedCall(self, now_ms)
        if self.state(now_ms) is State.HALF_OPEN and self._probe is None:
            self._probe = call
        return call

    def trip(self, now_ms: float) -> bool:
        """Open it for a while because the variant is known to be unable to answer.

        Returns whether it was closed.
        """
        was_closed = self.closed
        self._until_ms, self._probe = now_ms + FIRST_OPEN_MS, None
        return was_closed

    def describe(self, now_ms: float) -> str:
        """Return the state as text for the log."""
        if self._until_ms is None or now_ms >= self._until_ms:
            return f"breaker {self.state(now_ms)}"
        return f"it fails: circuit open for {(self._until_ms - now_ms) / 1e3:.0f} s"

    def _worked(self, call: GuardedCall, now_ms: float) -> bool:
        self._worked_ms = now_ms
        self._usual_ms += PACE * (now_ms - call.began_ms - self._usual_ms)
        if self._until_ms is not None and call is not self._probe:
            return False  # it began before the breaker opened: stale
        self._last.append(False)
        self._in_a_row = 0
        if call is not self._probe:
            return False
        self._last.clear()
        self._probe = self._until_ms = None
        self._times = 0
        return True

    def _failed(self, call: GuardedCall, now_ms: float) -> bool:
        if self._until_ms is not None and call is not self._probe:
            return False
        self._last.append(True)
        self._in_a_row += 1
        often = len(self._last) == WINDOW and sum(self._last) >= SHARE * WINDOW
        if not (call is self._probe or self._in_a_row >= IN_A_ROW or often):
            return False
        self._until_ms = now_ms + backoff_ms(self._times, FIRST_OPEN_MS, LONGEST_OPEN_MS)
        self._times += 1
        self._probe = None
        return True

    def _gave_up(self, call: GuardedCall, now_ms: float, work_ms: float) -> bool:
        lately = now_ms - self._worked_ms < LATELY_MS
        expected_ms = max(work_ms, self._usual_ms) if lately else work_ms
        if self._worked_ms < call.began_ms and now_ms - call.began_ms > PATIENCE * expected_ms:
            return self._failed(call, now_ms)
        self._release(call)
        return False

    def _release(self, call: GuardedCall) -> None:
        if call is self._probe:
            self._probe = None  # inconclusive: the next call is the probe


class GuardedCall:
    """One request to a variant, and how it ended; each end returns whether the breaker's state changed."""

    __slots__ = ("_breaker", "began_ms")

    def __init__(self, breaker: Breaker, began_ms: float) -> None:
        self.began_ms = began_ms
        self._breaker = breaker

    def worked(self, now_ms: float) -> bool:
        return self._breaker._worked(self, now_ms)  # noqa: SLF001 (a call is a part of its breaker)

    def failed(self, now_ms: float) -> bool:
        return self._breaker._failed(self, now_ms)  # noqa: SLF001 (the same)

    def gave_up(self, now_ms: float, work_ms: float) -> bool:
        """Record that the call was cancelled or ran out of time.

        It counts as a failure only if the variant hangs: the call took a multiple of `work_ms` (its work on an
        idle system) and of what answers took lately, and the variant answered no other request meanwhile. A busy
        variant does answer others, and takes long for all of them.
        """
        return self._breaker._gave_up(self, now_ms, work_ms)  # noqa: SLF001 (the same)

    def inconclusive(self) -> None:
        """Record an end that says nothing about the variant; the next call may be the probe."""
        self._breaker._release(self)  # noqa: SLF001 (the same)


class Breakers:
    """A breaker for each variant of one serving set."""

    def __init__(self) -> None:
        self._of: dict[str, Breaker] = {}

    def of(self, variant: str) -> Breaker:
        """Return the variant's breaker, closed at first."""
        return self._of.setdefault(variant, Breaker())

    def keeping(self, variants: Collection[str]) -> Breakers:
        """Return breakers that keep their state for these variants, and are closed for all others."""
        kept = Breakers()
        kept._of = {name: b for name, b in self._of.items() if name in variants}
        return kept

    def states(self, now_ms: float) -> dict[str, str]:
        """Return the state of every breaker that was needed so far, by variant."""
        return {name: b.state(now_ms).value for name, b in self._of.items()}

    def failing(self, now_ms: float) -> frozenset[str]:
        """Return the variants that may not be asked now."""
        # Nearly always all are closed: `allows` is asked of the others alone.
        found = [n for n, b in self._of.items() if not (b.closed or b.allows(now_ms))]
        return frozenset(found)


class RetryBudget:
    """Limits retries to a share of the requests, so that they do not make an outage worse.

    Every request adds `share`, every retry takes 1. The budget starts full, at `burst`.
    """

    def __init__(self, share: float, burst: float = RETRY_BURST) -> None:
        """`share`: retries per request; 0: none at all."""
        self._share = share
        self._burst = burst if share else 0.0
        self._saved = self._burst

    @property
    def left(self) -> tuple[float, float]:
        """How many retries are left, and how many may be saved up."""
        return self._saved, self._burst

    def pay_in(self) -> None:
        self._saved = min(self._burst, self._saved + self._share)

    def take(self) -> bool:
        """Take one retry; False: there is none left."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
