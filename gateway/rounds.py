"""Looks after several model servers beside the watcher: who is back, and what they can do together.

Runs off the request path and never answers a question.
"""

from __future__ import annotations

import asyncio
import logging

from gateway.host import usable_cores
from gateway.preparation import capacity, readmit
from gateway.replicas import Replicas
from gateway.service import AnswerService

log = logging.getLogger(__name__)

ROUND_MS = 1_000.0


class Rounds:
    """Keeps replicas and what predicts latency in step."""

    def __init__(self, service: AnswerService) -> None:
        self._service = service
        self._replicas = service.backend if isinstance(service.backend, Replicas) else None

    async def run(self) -> None:
        """Look for ever, where there is anything to look after."""
        while self._replicas is not None:
            try:
                await self.look()
            except Exception:  # the gateway goes on with what it knows
                log.exception("the rounds failed; they go on")
            await asyncio.sleep(ROUND_MS / 1e3)

    async def look(self) -> None:
        """Have servers that came back checked, and tell the predictor how many answer."""
        serving, replicas = self._service.serving, self._replicas
        if serving is None or replicas is None:
            return
        if any(replicas.unchecked(serving.catalog.variant(name)) for name in serving.trust):
            await readmit(serving, replicas)
        serving.latency.resize(*capacity(serving.catalog, replicas, usable_cores()))
