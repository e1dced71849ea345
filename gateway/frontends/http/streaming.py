"""Streaming: bodies in, lines out, and callers who disconnect. Knows no route and no model.

While a request is answered nothing else may read its `receive`: `while_connected` does.
"""

from __future__ import annotations

import asyncio
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from gateway.errors import BadInput, BodyTooSlow, ClientGone, TextTooLong

BLANK = BOM_UTF8 + b" \t\r\n"  # bytes of a blank line
WATCH_AFTER_MS = 20.0  # a caller who leaves earlier may still be answered
LINE_OVERHEAD_BYTES = (
    64  # assumed for a buffered line: millions of empty lines must not fill the memory
)


class while_connected:  # noqa: N801 (used as a function)
    """Runs a block; cancels it when `leaving()` returns first. Raises: ClientGone.

    `after_ms`: `leaving` begins so late: most answers are sent by then, and a task costs more than they gain from it.
    A class: a generator would take some ten calls more.
    """

    def __init__(self, leaving: Callable[[], Awaitable[None]], after_ms: float = 0.0) -> None:
        self._leaving = leaving
        self._after_ms = after_ms
        self._watcher: asyncio.Task[None] | None = None
        self._left = False

    async def __aenter__(self) -> None:
        block = asyncio.current_task()
        assert block is not None
        self._block = block
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._after_ms / 1e3, self._begin)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._left and kind is not None and issubclass(kind, asyncio.CancelledError):
            self._block.uncancel()
            raise ClientGone from None

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        await self._leaving()
        self._left = True
        self._block.cancel()


async def disconnected(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limit_bytes: int, timeout_ms: float) -> bytes:
    """Return the body, never holding more than the limit.

    Raises: TextTooLong, BodyTooSlow when it does not arrive in time, ClientGone.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise TextTooLong("body", int(announced), limit_bytes, "bytes")
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(timeout_ms / 1e3):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > limit_bytes:
                    raise TextTooLong("body", len(body), limit_bytes, "bytes or more")
    except TimeoutError as exc:
        raise BodyTooSlow(timeout_ms) from exc
    return bytes(body)


class Inbox:
    """The lines of a body while it comes in.

    It reads ahead of the consumer, because many clients read no answer before they have sent everything, up
    to `ahead_bytes`. A line over its limit is yielded as its error.
    """

    def __init__(self, line_bytes: int, ahead_bytes: int) -> None:
        self._line_bytes = line_bytes
        self._ahead_bytes = ahead_bytes
        self._lines: asyncio.Queue[bytes | BadInput | None] = asyncio.Queue()
        self._held_bytes = 0
        self._taken = asyncio.Event()
        self._rest = bytearray()  # of the line that has not ended yet
        self._dropped_bytes = 0  # of a line that is too long, no longer held

    async def fill(self, request: Request) -> None:
        """Read the body to its end, then return when the caller has left."""
        try:
            async for chunk in request.stream():
                self._split(chunk)
                await self._wait_for_room()
        except ClientDisconnect:
            return
        except BadInput as exc:  # a compressed body that is broken: the last line says so
            self._lines.put_nowait(exc)
        else:
            self._end_line()
        self._lines.put_nowait(None)
        await disconnected(request.receive)

    async def lines(self) -> AsyncIterator[bytes | BadInput]:
        """Yield every line that is not blank."""
        while (line := await self._lines.get()) is not None:
            if isinstance(line, bytes):
                self._held_bytes -= len(line) + LINE_OVERHEAD_BYTES
            self._taken.set()
            yield line

    def _split(self, chunk: bytes) -> None:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._hold(piece)
            self._end_line()
        self._hold(rest)

    def _hold(self, piece: bytes) -> None:
        self._rest += piece
        if len(self._rest) > self._line_bytes:
            self._dropped_bytes += len(self._rest)
            self._rest.clear()

    def _end_line(self) -> None:
        line, dropped = bytes(self._rest), self._dropped_bytes
        self._rest.clear()
        self._dropped_bytes = 0
        if dropped:
            size = dropped + len(line)
            self._lines.put_nowait(TextTooLong("line", size, self._line_bytes, "bytes"))
        elif line.strip(BLANK):
            self._held_bytes += len(line) + LINE_OVERHEAD_BYTES
            self._lines.put_nowait(line)

    async def _wait_for_room(self) -> None:
        while self._held_bytes > self._ahead_bytes:
            self._taken.clear()
            await self._taken.wait()
