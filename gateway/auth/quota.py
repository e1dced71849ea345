"""A quota of requests a second: a token bucket. Times are given, ms.

Source: the GCRA of ATM Forum UNI 4.0, as one number, the time at which the bucket is full again.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.shared_memory import Quotas

BURST_S = 1.0  # worth of requests that may arrive at once


@dataclass(slots=True)
class Quota:
    """At most `per_s` requests a second on average, at least one at once."""

    per_s: float
    full_ms: float = float("-inf")

    @property
    def burst(self) -> float:
        return max(1.0, self.per_s * BURST_S)

    @property
    def window_ms(self) -> float:
        """The time in which the whole burst is refilled."""
        return self.burst / self.per_s * 1e3

    def take(self, n: int, now_ms: float) -> float:
        """Take n requests and return 0, or take none and return the ms until they could be taken.

        A request for more than the burst takes the whole burst: it could never succeed otherwise.
        """
        each_ms = 1e3 / self.per_s
        full_ms = max(self.full_ms, now_ms) + min(n, self.burst) * each_ms
        over_ms = full_ms - now_ms - self.burst * each_ms
        if over_ms > 1e-6:
            return over_ms
        self.full_ms = full_ms
        return 0.0

    def left(self, now_ms: float) -> int:
        """Return how many requests could come now."""
        used_ms = max(0.0, self.full_ms - now_ms)
        return int(self.burst - used_ms * self.per_s / 1e3 + 1e-9)

    def reset_ms(self, now_ms: float) -> float:
        """Return the time until all may come again."""
        return max(0.0, self.full_ms - now_ms)


class SharedQuota:
    """A quota that holds for all workers of a gateway together."""

    def __init__(self, per_s: float, quotas: Quotas, number: int) -> None:
        """`number` stands for the key in `quotas`."""
        self._per_s = per_s
        self._quotas = quotas
        self._number = number

    @property
    def burst(self) -> float:
        return Quota(self._per_s).burst

    @property
    def window_ms(self) -> float:
        return Quota(self._per_s).window_ms

    def take(self, n: int, now_ms: float) -> float:
        with self._quotas.locked():
            quota = Quota(self._per_s, self._quotas.get(self._number))
            wait_ms = quota.take(n, now_ms)
            if not wait_ms:
                self._quotas.set(self._number, quota.full_ms, now_ms)
        return wait_ms

    def left(self, now_ms: float) -> int:
        return self._now().left(now_ms)

    def reset_ms(self, now_ms: float) -> float:
        return self._now().reset_ms(now_ms)

    def _now(self) -> Quota:
        with self._quotas.locked():
            return Quota(self._per_s, self._quotas.get(self._number))
