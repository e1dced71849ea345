"""How late this event loop is: what is ready waits for that long before it runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

LOOK_MS = 20.0  # how often it is measured


class LoopLag:
    """Measures the lag of the loop that `run` runs in."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due_ms = math.inf
        self._last_ms = 0.0

    @property
    def late_ms(self) -> float:
        """Return the last lag, or the present one where the loop is later by now."""
        return max(self._last_ms, self._clock() - self._due_ms, 0.0)

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            self._due_ms = self._clock() + LOOK_MS
            await asyncio.sleep(LOOK_MS / 1e3)
            self._last_ms = max(0.0, self._clock() - self._due_ms)
