"""Searches the highest rate at which a latency bound holds, robust to a noisy host. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import inf, sqrt

STEP = 1.6
RESOLUTION = 0.08
LOWEST = 1.0  # requests/s: what does not hold there does not hold
VOTES = 2  # of the same kind decide about a rate


@dataclass
class RateSearch:
    """Steps up until a rate does not hold, then halves the gap, as ratios; each rate is tried until two agree."""

    first: float
    best: float = 0.0  # the highest rate that held
    worst: float = inf  # the lowest that did not
    _votes: dict[float, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def next_rate(self) -> float | None:
        """Return what to try next; None: the search is over."""
        if self.worst == inf:
            return round(self.best * STEP, 2) if self.best else self.first
        if not self.best:
            return max(LOWEST, round(self.worst / STEP, 2)) if self.worst > LOWEST else None
        if self.worst / self.best <= 1 + RESOLUTION:
            return None
        return round(sqrt(self.best * self.worst), 2)

    def note(self, rate: float, *, held: bool) -> None:
        """Learn what one try at a rate showed."""
        votes = self._votes[rate]
        votes.append(held)
        if votes.count(held) < VOTES:
            return
        if held:
            self.best = max(self.best, rate)
        else:
            self.worst = min(self.worst, rate)
