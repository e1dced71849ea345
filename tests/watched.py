"""A model server that a test can wait for, and set to say that there is no answer."""

from __future__ import annotations

import asyncio

from gateway.catalog.schema import Variant
from gateway.domain import Inference, Windows
from tests.fakes import FakeBackend

PATIENCE_S = 20


class WatchedBackend(FakeBackend):
    """FakeBackend that can be waited for; `answerable` False: [CLS] wins."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        super().__init__(gate)
        self.answerable = True
        self._ended = asyncio.Event()

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        try:
            inference = await super().infer(variant, windows, budget_ms)
        finally:
            self._ended.set()
        if not self.answerable:
            for logits in (inference.spans.start, inference.spans.end):
                logits[:, 0] = 20.0
        return inference

    async def until_cancelled(self, n: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.cancelled < n:
                self._ended.clear()
                await self._ended.wait()
