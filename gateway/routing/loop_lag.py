"""The lag of the event loop: how long a ready callback waits before it runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

LOOK_MS = 20.0  # between measurements


class LoopLag:
    """Measures the lag of the event loop that `run` runs in."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due_ms = math.inf
        self._last_ms = 0.0

    @property
    def late_ms(self) -> float:
        """Return the last measured lag, or the current one if that is larger."""
        return max(self._last_ms, self._clock() - self._due_ms, 0.0)

    async def run(self) -> None:
        """Measure forever."""
        while True:
            self._due_ms = self._clock() + LOOK_MS
            await asyncio.sleep(LOOK_MS / 1e3)
            self._last_ms = max(0.0, self._clock() - self._due_ms)
