"""Backoff: when to retry, soon at first, then less and less often."""

from __future__ import annotations

from collections.abc import Callable


def backoff_ms(failures: int, first_ms: float, longest_ms: float) -> float:
    """Return the wait after so many failures; it doubles each time."""
    return float(min(longest_ms, first_ms * 2.0 ** min(failures, 32)))


class Retry:
    """One thing that is tried again until it works."""

    def __init__(self, first_ms: float, longest_ms: float, clock: Callable[[], float]) -> None:
        self._first_ms = first_ms
        self._longest_ms = longest_ms
        self._clock = clock
        self._failures = 0
        self._due_ms: float | None = None

    def failed(self) -> None:
        """Plan the next attempt."""
        wait_ms = backoff_ms(self._failures, self._first_ms, self._longest_ms)
        self._due_ms = self._clock() + wait_ms
        self._failures += 1

    def worked(self) -> None:
        """Plan none; the next failure is the first again."""
        self._failures = 0
        self._due_ms = None

    @property
    def left_ms(self) -> float | None:
        """How long until the next attempt; None: none is planned."""
        return None if self._due_ms is None else max(0.0, self._due_ms - self._clock())

    @property
    def due(self) -> bool:
        return self.left_ms == 0.0
