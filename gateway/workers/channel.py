"""Messages between the parent and one worker, over a pair of sockets that nobody else can reach.

Both ends are this program, one started by the other: messages are pickles.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

log = logging.getLogger(__name__)

LENGTH = struct.Struct("!I")
Handler = Callable[[Any], Awaitable[Any]]


class ChannelClosed(ConnectionError):
    """The other end is gone, or did not answer in time."""


class Channel:
    """One end: sends messages and asks questions, and handles those of the other end."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        """`handlers`: by the kind of message; what they return answers a question."""
        self._handlers = handlers
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def open(self, end: socket.socket) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=end)

    async def run(self) -> None:
        """Handle messages until the other end is gone."""
        assert self._reader is not None
        assert self._writer is not None
        reader = self._reader
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                    message = pickle.loads(await reader.readexactly(size))  # noqa: S301 (our own)
                    await self._take(*message)
        finally:
            self._closed = True
            self._writer.close()
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_exception(ChannelClosed("the other process is gone"))
            for task in self._tasks:
                task.cancel()

    def send(self, kind: str, payload: Any = None, number: int = 0) -> None:
        """Send a message; nothing comes of it where the other end is gone."""
        if self._writer is None or self._closed:
            return
        raw = pickle.dumps((kind, number, payload), pickle.HIGHEST_PROTOCOL)
        self._writer.write(LENGTH.pack(len(raw)) + raw)

    @property
    def unsent_bytes(self) -> int:
        """What waits until the other end reads."""
        return 0 if self._writer is None else self._writer.transport.get_write_buffer_size()

    async def flush(self) -> None:
        """Return when all that was sent is on its way."""
        if self._writer is not None and not self._closed:
            with suppress(ConnectionError):
                await self._writer.drain()

    async def ask(self, kind: str, payload: Any = None, *, timeout_ms: float) -> Any:
        """Return what the other end answers. Raises: ChannelClosed."""
        if self._writer is None or self._closed:
            raise ChannelClosed("the other process is gone")
        number = next(self._numbers)
        waiting = self._asked[number] = asyncio.get_running_loop().create_future()
        self.send(kind, payload, number)
        try:
            async with asyncio.timeout(timeout_ms / 1e3):
                return await waiting
        except TimeoutError as exc:
            raise ChannelClosed(f"no answer to {kind!r} within {timeout_ms:g} ms") from exc
        finally:
            del self._asked[number]

    async def _take(self, kind: str, number: int, payload: Any) -> None:
        if kind == "":  # an answer
            waiting = self._asked.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_result(payload)
        elif number:  # a question: the next messages do not wait for its answer
            task = asyncio.create_task(self._answer(kind, number, payload))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            await self._handle(kind, payload)

    async def _answer(self, kind: str, number: int, payload: Any) -> None:
        self.send("", await self._handle(kind, payload), number)

    async def _handle(self, kind: str, payload: Any) -> Any:
        try:
            return await self._handlers[kind](payload)
        except Exception:  # one message must not end the channel
            log.exception("a message of kind %r could not be handled", kind)
            return None
