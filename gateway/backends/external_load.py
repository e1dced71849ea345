"""The load that other gateways put on a shared model server, from its statistics. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counted:
    """The statistics of a server and its answers to us, up to a time."""

    at_s: float
    spent_s: Mapping[str, float]  # by model: on requests it answered, their queue included
    answered: Mapping[str, int]
    ours: Mapping[str, int]

    @classmethod
    def of(
        cls, at_s: float, counts: Iterable[tuple[str, float, int]], ours: Mapping[str, int]
    ) -> Counted:
        """`counts`: model, time and number of its requests, once for each version."""
        spent_s: dict[str, float] = {}
        answered: Counter[str] = Counter()
        for name, s, n in counts:
            spent_s[name] = spent_s.get(name, 0.0) + s
            answered[name] += n
        return cls(at_s, spent_s, answered, dict(ours))

    def external_since(self, before: Counted) -> dict[str, float]:
        """Return the mean number of requests of other gateways, by model; none after a restart of the server.

        By Little's law (1961) the time that requests spent there, per second, is their mean number; the share
        of answers that were not ours is the external part.
        """
        found = {}
        passed_s = max(1e-3, self.at_s - before.at_s)
        for name, answered in self.answered.items():
            n = answered - before.answered.get(name, 0)
            ours = self.ours.get(name, 0) - before.ours.get(name, 0)
            spent_s = self.spent_s[name] - before.spent_s.get(name, 0.0)
            if n > ours and spent_s > 0:
                found[name] = spent_s / passed_s * (n - ours) / n
        return found


class IdleTimer:
    """How long a model has been idle, from the time of its last request as the server reports it.

    Measured by our own clock: the clock of another host may be wrong.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is in ms."""
        self._clock = clock
        self._seen: dict[
            str, tuple[int, float]
        ] = {}  # last request, and since when it is unchanged

    def for_ms(self, model: str, asked_last: int) -> float:
        """Return the idle time, ms; 0 at the first look and after every change."""
        now = self._clock()
        last, since = self._seen.get(model, (None, now))
        if last != asked_last:
            since = now
        self._seen[model] = asked_last, since
        return now - since
