"""When to ask again. Pure: an error and how long it has been in, a wait out."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bertier.errors import ApiError, Overloaded, Unavailable, Unreachable

FIRST_MS = 50.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and for how long in all, to ask again what was refused for a passing reason."""

    attempts: int = 4  # the first one included; 1: never ask again
    patience_ms: float = 10_000.0  # from the first attempt on: no wait ends later than this

    def wait_ms(
        self, error: ApiError, attempt: int, spent_ms: float, jitter: float
    ) -> float | None:
        """Return how long to wait before attempt + 1; None: give the error to the caller.

        Where the gateway said when to come back, not before that. `jitter`, 0 to 1, spreads callers.
        """
        if attempt >= self.attempts or not isinstance(
            error, Overloaded | Unavailable | Unreachable
        ):
            return None
        backoff_ms = FIRST_MS * 2.0 ** (attempt - 1)
        told_ms = error.retry_after_ms or 0.0
        wait_ms = max(told_ms, backoff_ms) + backoff_ms * jitter
        return wait_ms if spent_ms + wait_ms <= self.patience_ms else None


def draw() -> float:
    """Return a jitter."""
    return random.random()
