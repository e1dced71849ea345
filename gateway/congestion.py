"""Whether more is asked, for longer than a burst, than can be read or answered: then it is refused unread.

A request waits for its turn on the event loop, and then for the models. A queue that lasts makes everyone late
and nobody faster, and those with long deadlines would fill it before those with short ones: so it is kept
short, whatever the deadline. Pure: waits are given, ms.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.domain import Option, Size, Slo, SloPolicy
from gateway.policy import MAY_WAIT, keeps_f1

SMALLEST = Size(64, 1)  # the request whose wait for the models is judged by
QUEUE_SHARE = (
    0.5  # of the dearest plan's compute: so long may a request of urgency 0 wait for the models
)
QUEUE_PACE = 1 / 128  # of the models: a burst of some tenths of a second refuses nobody
TURN_MS = 15.0  # the same for the event loop
PACE = 1 / 16  # of the event loop: a single stall refuses nobody


class Congestion:
    """Remembers how long requests waited for their turn."""

    def __init__(self, limit_ms: float = TURN_MS, pace: float = PACE) -> None:
        """`limit_ms`: that a request of urgency 0 may wait, others a share; `pace`: weight of the last wait in the usual one."""
        self.usual_ms = 0.0
        self.limit_ms = limit_ms
        self._pace = pace

    @property
    def lasts(self) -> bool:
        """Have requests waited so long of late that somebody may be refused for it?"""
        return self.usual_ms > min(MAY_WAIT) * self.limit_ms / 2

    def note(self, waited_ms: float) -> None:
        """Learn how long a request waited for its turn."""
        self.usual_ms += self._pace * (min(waited_ms, 2 * self.limit_ms) - self.usual_ms)

    def refuses(self, slo: Slo, waited_ms: float, typical: Sequence[Option]) -> bool:
        """Say whether this request is refused unread.

        It is when it waited longer than its urgency may, and others did, too. Who needs a dearer plan
        may wait less, in proportion: in its place several others are answered. `typical`: every plan for
        a request of usual size.
        """
        limit_ms = MAY_WAIT[slo.priority] * self.limit_ms
        if self.usual_ms <= limit_ms / 2:
            return False
        return waited_ms > limit_ms * thrift(slo, typical)


def queue_ms(typical: Sequence[Option]) -> float:
    """Return the limit of a queue for the models; `typical`: every plan for a request of usual size."""
    return QUEUE_SHARE * max(o.cost_ms for o in typical)


def thrift(slo: Slo, typical: Sequence[Option]) -> float:
    """Return the cost of the cheapest plan over that of the cheapest accurate enough, 0 to 1.

    0: none is, and `strict` takes no other.
    """
    least_ms = min(o.cost_ms for o in typical)
    accurate = [o.cost_ms for o in typical if keeps_f1(o, slo)]
    if accurate:
        return least_ms / min(accurate)
    if slo.policy is SloPolicy.STRICT:
        return 0.0
    return least_ms / max(typical, key=lambda o: o.certified_f1).cost_ms
