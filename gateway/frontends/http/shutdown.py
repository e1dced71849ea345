"""A stop in two steps: report not ready and keep answering, so that load balancers move away; then drain."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from gateway.frontends.http import server
from gateway.frontends.http.connections import Limits
from gateway.observability.metrics import Metrics

log = logging.getLogger(__name__)


class Server(server.Server):
    """Stops some time after the first signal, and at once after the second."""

    def __init__(
        self,
        config: uvicorn.Config,
        limits: Limits,
        metrics: Metrics,
        delay_ms: float,
        leave: Callable[[], None],
    ) -> None:
        """`leave` is called at the first signal. Made in the event loop that runs it."""
        super().__init__(config, limits, metrics)
        self._delay_ms = delay_ms
        self._leave = leave
        self._leaving = False
        self.once = False  # a worker: what comes a second time, its parent relays
        self._signalled = False
        self.relayed = False
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's handler of SIGTERM and SIGINT."""
        if not (self.once and self._signalled):
            self.stop(sig)

    def relay(self, sig: int) -> None:
        """Stop, as the parent does; its first signal may have come to this process, too."""
        first, self.relayed = not self.relayed, True
        if not (first and self._signalled):
            self.stop(sig)

    def stop(self, sig: int) -> None:
        """Stop some time after the first call, and at once after the second."""
        self._signalled = True
        if self._leaving or not self._delay_ms:
            super().handle_exit(sig, None)
            return
        self._leaving = True
        self._loop.call_soon_threadsafe(self._say_so)  # a signal comes between any two steps

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, and say meanwhile that nothing more is taken."""
        self._leave()
        await super().shutdown(sockets)

    def _say_so(self) -> None:
        log.info("stopping in %g ms; until then callers are answered and sent away", self._delay_ms)
        self._leave()
        self._loop.call_later(self._delay_ms / 1e3, self._stop)

    def _stop(self) -> None:
        self.should_exit = True
