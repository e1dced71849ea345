"""The HTTP server: accepts connections within limits, and loses none that it accepted.

uvicorn's server with its own accept loop: asyncio's has no limit, and does not report a TLS handshake that never
ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from gateway.frontends.http.connection import HttpConnection
from gateway.frontends.http.connections import Closed, Connection, Connections, Limits
from gateway.observability.metrics import Metrics
from gateway.shared_memory import Workers

log = logging.getLogger(__name__)

ACCEPT_AT_ONCE = 8  # then other tasks run
NEXT_TURN_S = 0.003  # until this worker looks again whether a connection is still there
MOST_PASSED = 10  # turns in a row that are left to a worker with fewer connections
RETRY_S = 0.2  # until the next attempt after the process ran out of sockets
MakeProtocol = Callable[[Connection], HttpConnection]


class Listener:
    """Accepts connections of one socket. Stands in for asyncio's server in uvicorn's."""

    def __init__(
        self,
        listening: socket.socket,
        connections: Connections,
        make: MakeProtocol,
        tls: ssl.SSLContext | None,
        workers: Workers | None = None,
    ) -> None:
        self._workers = workers
        self.socket = listening
        self.socket.settimeout(0)
        self._connections = connections
        self._make = make
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._n_passed = 0  # turns in a row
        self.opening: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._retry = None
        self._loop.add_reader(self.socket.fileno(), self._accept)

    def drain(self) -> None:
        """Accept all that the system has taken for us: closing would reset it."""
        while self.socket.fileno() >= 0 and self._accept_one():
            pass

    def close(self) -> None:
        if self.socket.fileno() < 0:
            return
        self._loop.remove_reader(self.socket.fileno())
        if self._retry is not None:
            self._retry.cancel()
        self.socket.close()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            if not self._is_our_turn():
                self._loop.remove_reader(self.socket.fileno())
                self._retry = self._loop.call_later(NEXT_TURN_S, self.start)
                return
            if not self._accept_one():
                return

    def _is_our_turn(self) -> bool:
        """Whether to accept now: always after MOST_PASSED turns, as the worker whose turn it is may hang."""
        if self._workers is None or self._workers.may_accept() or self._n_passed >= MOST_PASSED:
            self._n_passed = 0
            return True
        self._n_passed += 1
        return False

    def _accept_one(self) -> bool:
        """Accept a connection; False: there is none, or there can be none now."""
        try:
            accepted, address = self.socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return False
        except OSError as exc:  # no more files, sockets or memory
            self._connections.closed(Closed.FULL, "others", f"cannot accept: {exc.strerror}")
            self._loop.remove_reader(self.socket.fileno())
            self._retry = self._loop.call_later(RETRY_S, self.start)
            return False
        task: asyncio.Task[None] | None = None

        def give_way() -> None:
            if task is not None:
                task.cancel()

        own = self._connections.admit(_text(address), give_way)
        if own is None:
            accepted.close()
            return True
        task = self._loop.create_task(self._open(accepted, own))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)
        return True

    async def _open(self, accepted: socket.socket, own: Connection) -> None:
        """Shake hands and hand over to the protocol."""
        with suppress(OSError):  # no TCP
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit_s = self._connections.limits.head_timeout_s
        make = partial(self._make, own)
        how: dict[str, Any] = (
            {} if self._tls is None else {"ssl": self._tls, "ssl_handshake_timeout": limit_s}
        )
        try:
            await self._loop.connect_accepted_socket(make, accepted, **how)
        except ConnectionAbortedError:  # how asyncio reports a handshake that timed out
            self._connections.closed(Closed.SLOW_HEAD, own.address)
            self._connections.ended(own)
        except (OSError, asyncio.CancelledError):  # reported by auth.tls
            self._connections.ended(own)


class Server(uvicorn.Server):
    """uvicorn's server, with limits."""

    def __init__(self, config: uvicorn.Config, limits: Limits, metrics: Metrics) -> None:
        super().__init__(config)
        self.connections = Connections(limits, metrics)
        self._closing = False
        self._listeners: list[Listener] = []
        self.workers: Workers | None = None  # that share the sockets, where there are several

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on `sockets`."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        tls = self.config.ssl
        self._listeners = [
            Listener(each, self.connections, self._protocol, tls, self.workers)
            for each in sockets or ()
        ]
        for listener in self._listeners:
            listener.start()
        self.servers = cast(list[asyncio.base_events.Server], self._listeners)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, then close."""
        self._closing = True
        opening: set[asyncio.Task[None]] = set()
        for listener in self._listeners:
            listener.drain()
            listener.close()  # at once: what comes between the two is reset
            opening |= listener.opening
        if opening:
            _, unopened = await asyncio.wait(opening, timeout=1.0)
            for task in unopened:
                task.cancel()
        await super().shutdown(None)  # our listeners own the sockets
        self._listeners = []

    def _protocol(self, own: Connection) -> HttpConnection:
        return HttpConnection(
            own,
            self.connections,
            closing=self._closing,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )


def _text(address: Any) -> str:
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{host}:{address[1]}"
    return str(address) or "a Unix socket"
