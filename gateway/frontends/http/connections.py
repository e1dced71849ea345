"""The open HTTP connections: their limit, and which one is closed when a new one arrives at the limit.

Decides and counts; knows neither sockets nor HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from gateway.observability.metrics import Metrics
from gateway.settings import Settings
from gateway.shared_memory import Slot

log = logging.getLogger(__name__)

LOG_EVERY_S = (
    10.0  # per reason: the first closed connections are logged one by one, the others as a sum
)
LOGGED = 10  # closed connections that are logged one by one
PACE_S = (
    0.002  # between two timeouts: closing a thousand connections at once would delay the others
)


class Closed(StrEnum):
    """Why the gateway closed a connection, or did not accept it."""

    SLOW_HEAD = "slow_head"
    LARGE_HEAD = "large_head"
    MALFORMED = "malformed"
    IDLE = "idle"
    STALLED = "stalled"
    FULL = "full"


EXPLANATIONS = {
    Closed.SLOW_HEAD: "no complete request head arrived in time",
    Closed.LARGE_HEAD: "the head of a request was too large",
    Closed.MALFORMED: "the data is not an HTTP request",
    Closed.IDLE: "no request arrived for a long time",
    Closed.STALLED: "the peer did not read its answer for a long time",
    Closed.FULL: "the limit of open connections is reached",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take before, between and after requests."""

    head_timeout_s: float = 10.0  # TLS handshake and head of a request, each
    idle_timeout_s: float = (
        75.0  # between requests; longer than the idle time of common load balancers
    )
    max_head_bytes: int = 64 << 10  # request line and headers
    max_connections: int = 4_096
    probe_connections: int = 32  # additional connections, for probes only

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            settings.head_timeout_ms / 1e3,
            settings.idle_timeout_ms / 1e3,
            settings.max_head_bytes,
            settings.max_connections,
            settings.probe_connections,
        )


@dataclass(eq=False, slots=True)
class Connection:
    """A connection that is open: `close` ends it at once."""

    address: str
    close: Callable[[], None]
    probes_only: bool = False


class Connections:
    """All open connections of one HTTP server.

    At the limit, the connection that has waited longest for its first request is closed, then the one that has
    been idle longest. So a client that sends its request at once is served however many slow ones there are. While
    all connections are being answered, some more are accepted for probes only.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self._metrics = metrics
        self._open: set[Connection] = set()
        self._unused: dict[Connection, None] = {}  # no request yet, oldest first
        self._idle: dict[Connection, None] = {}  # no request now, oldest first
        self._recent: Counter[Closed] = Counter()
        self.own: Slot | None = None  # where other workers see how many there are
        self._next_s = 0.0  # when the next connection may be closed for its time

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, address: str, close: Callable[[], None]) -> Connection | None:
        """Return the connection, which waits for its first request; None: there is no room for it."""
        over = len(self._open) + 1 - self.limits.max_connections
        if over > 0 and self._evict():
            over -= 1
        if over > self.limits.probe_connections:
            self.closed(Closed.FULL, address)
            return None
        connection = Connection(address, close, probes_only=over > 0)
        self._open.add(connection)
        self._unused[connection] = None
        self._metrics.connections.inc()
        self._show()
        return connection

    def works(self, connection: Connection) -> None:
        """Note that a request of this connection is being answered."""
        self._unused.pop(connection, None)
        self._idle.pop(connection, None)

    def idles(self, connection: Connection) -> None:
        """Note that all requests of this connection are answered."""
        if connection in self._open:
            self._idle[connection] = None

    def ended(self, connection: Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._metrics.connections.dec()
            self._show()
        self.works(connection)

    def soon(self, close: Callable[[], None]) -> None:
        """Schedule the callback of a timed-out connection, PACE_S after the previous one."""
        loop = asyncio.get_running_loop()
        at_s = max(loop.time(), self._next_s)
        self._next_s = at_s + PACE_S
        loop.call_at(at_s, close)

    def closed(self, reason: Closed, address: str, detail: str = "") -> None:
        """Count and log a connection that is closed; many in a short time are logged as a sum."""
        self._metrics.connections_closed.labels(reason).inc()
        self._recent[reason] += 1
        if self._recent[reason] == 1:
            asyncio.get_running_loop().call_later(LOG_EVERY_S, self._log_rest, reason)
        if self._recent[reason] <= LOGGED:
            what = detail or EXPLANATIONS[reason]
            log.log(_level(reason), "closed the connection of %s: %s", address, what)

    def _log_rest(self, reason: Closed) -> None:
        """Log how many more were closed than were logged."""
        n = self._recent.pop(reason) - LOGGED
        if n > 0:
            what = EXPLANATIONS[reason]
            log.log(_level(reason), "closed %d more connections in %g s: %s", n, LOG_EVERY_S, what)

    def _show(self) -> None:
        if self.own is not None:
            self.own.connections = len(self._open)

    def _evict(self) -> bool:
        for waiting in (self._unused, self._idle):
            for oldest in waiting:
                self.ended(oldest)
                oldest.close()
                self.closed(Closed.FULL, oldest.address)
                return True
        return False


def _level(reason: Closed) -> int:
    return (
        logging.INFO if reason is Closed.IDLE else logging.WARNING
    )  # clients keep connections open
