"""The retry policy: an error and the elapsed time in, a wait out."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from bertier.errors import ApiError, Overloaded, Unavailable, Unreachable

FIRST_MS = 50.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and for how long in all, to retry after a temporary failure."""

    attempts: int = 4  # including the first; 1: no retries
    patience_ms: float = 10_000.0  # from the first attempt on: no wait ends later than this

    def wait_ms(
        self, error: ApiError, attempt: int, spent_ms: float, jitter: float
    ) -> float | None:
        """Return how long to wait before attempt + 1; None: raise the error.

        Never earlier than the gateway's retry-after. `jitter`, 0 to 1, spreads callers.
        """
        if attempt >= self.attempts or not isinstance(
            error, Overloaded | Unavailable | Unreachable
        ):
            return None
        backoff_ms = FIRST_MS * 2.0 ** (attempt - 1)
        at_least_ms = error.retry_after_ms or 0.0
        wait_ms = max(at_least_ms, backoff_ms) + backoff_ms * jitter
        return wait_ms if spent_ms + wait_ms <= self.patience_ms else None


class Attempts:
    """The attempts at one call; computes waits, but does not wait itself."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._began_s = time.monotonic()
        self._made = 0

    def wait_s(self, error: ApiError) -> float:
        """Return how long to wait before the next attempt. Raises: the error after the last one."""
        self._made += 1
        spent_ms = 1e3 * (time.monotonic() - self._began_s)
        wait_ms = self._retries.wait_ms(error, self._made, spent_ms, jitter=random.random())
        if wait_ms is None:
            raise error
        return wait_ms / 1e3
