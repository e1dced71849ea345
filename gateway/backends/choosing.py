"""Which of several model servers gets a request. Pure: no clock, no I/O; a simulator runs this code unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Server(Protocol):
    """A model server, as far as choosing goes."""

    @property
    def work_ms(self) -> float:
        """Its work in flight that the chooser knows of."""


S = TypeVar("S", bound=Server)


def least_busy(able: Sequence[S], turn: int) -> S:
    """Return the server with the least work; ties round-robin. `turn`: number of the request."""
    first = turn % len(able)
    return min([*able[first:], *able[:first]], key=_work_ms)


def _work_ms(server: Server) -> float:
    return server.work_ms
