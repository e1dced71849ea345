"""Hedged requests: a second call when the first one is late; the first answer counts.

With several model servers the second call goes to another one (pool.py), else to the variant's next instance.
Source: Dean & Barroso 2013, "The Tail at Scale" (hedged requests).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.backends.breaker import RetryBudget
from gateway.domain import Inference
from gateway.observability.metrics import Metrics

BURST = 5.0  # hedges that the budget holds at most


class Hedging:
    """Hedges late requests; at most a share of them."""

    def __init__(self, share: float, metrics: Metrics) -> None:
        """`share`: largest share of hedged requests; 0: none."""
        self.on = share > 0
        self._budget = RetryBudget(share, BURST)
        self._metrics = metrics

    async def infer(self, ask: Callable[[], Awaitable[Inference]], late_ms: float) -> Inference:
        """Return the first answer and cancel the other call. Raises: the error of the first call."""
        self._budget.pay_in()
        first = asyncio.ensure_future(ask())
        asked: list[asyncio.Future[Inference]] = [first]
        try:
            await asyncio.wait(asked, timeout=late_ms / 1e3)
            if first.done():
                return first.result()
            if not self._budget.take():
                self._metrics.hedges.labels("no_budget").inc()
                return await first
            asked.append(asyncio.ensure_future(ask()))
            return await self._first_of(asked)
        finally:
            for question in asked:
                question.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _first_of(self, asked: list[asyncio.Future[Inference]]) -> Inference:
        first, second = asked
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        if second.done() and second.exception() is None and not first.done():
            self._metrics.hedges.labels("won").inc()
            return second.result()
        self._metrics.hedges.labels("lost").inc()
        return await first
