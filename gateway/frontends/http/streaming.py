"""Streaming: bodies in, lines out, and callers who disconnect. Knows no route and no model.

While a request is answered nothing else may read its `receive`: `while_connected` does.
"""

from __future__ import annotations

import asyncio
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from gateway.errors import (
    BadInput,
    BodyTooSlow,
    ClientGone,
    Malformed,
    Overloaded,
    TextTooLong,
)
from gateway.settings import Settings

BLANK = BOM_UTF8 + b" \t\r\n"  # bytes of a blank line
WATCH_AFTER_MS = 20.0  # a caller who leaves earlier may still be answered
LINE_OVERHEAD_BYTES = (
    64  # assumed for a buffered line: millions of empty lines must not fill the memory
)

BODIES_BYTES = 256 << 20  # of all bodies that are read at a time without an admission
RETRY_MS = 1e3  # the least that admission control says where it is full
MAX_LENGTH_DIGITS = 18  # far above every limit; `int` raises ValueError from 4,301 on


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


def to_length(text: str) -> int | None:
    """Return the number of bytes that a header states; None: it states none."""
    if text.isascii() and text.isdigit() and len(text) <= MAX_LENGTH_DIGITS:
        return int(text)
    return None


async def read_body(
    request: Request,
    limit_bytes: int,
    timeout_ms: float,
    take: Callable[[int], None] = lambda _: None,
) -> bytes:
    """Return the body, never holding more than the limit.

    `take` is called with the size of each piece, and may raise.
    Raises: TextTooLong, BodyTooSlow when it does not arrive in time, ClientGone, Malformed.
    """
    announced = to_length(stated := request.headers.get("content-length", "0"))
    if announced is None:
        raise Malformed(f"Content-Length: {stated[:20]!r} is no number of bytes")
    if announced > limit_bytes:
        raise TextTooLong("body", announced, limit_bytes, "bytes")
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(timeout_ms / 1e3):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece = message.get("body", b"")
                body += piece
                more = message.get("more_body", False)
                if len(body) > limit_bytes:
                    raise TextTooLong("body", len(body), limit_bytes, "bytes or more")
                take(len(piece))
    except TimeoutError as exc:
        raise BodyTooSlow(timeout_ms) from exc
    return bytes(body)


class BodyBudget:
    """Reads the bodies of requests that are not admitted yet, and bounds the memory of all together.

    What was inflated counts, not what was sent. A body up to its own limit fits while no other one is read.
    """

    def __init__(self, settings: Settings, on_refused: Callable[[], None]) -> None:
        """`on_refused` is called when a body does not fit."""
        largest_bytes = max(settings.max_batch_bytes, settings.max_body_bytes)
        self.limit_bytes = max(int(settings.part_of(BODIES_BYTES)), largest_bytes)
        self.held_bytes = 0
        self._timeout_ms = settings.body_timeout_ms
        self._on_refused = on_refused

    async def read(self, request: Request, limit_bytes: int) -> bytes:
        """Return the body. Raises: Overloaded, and what `read_body` raises."""
        taken_bytes = 0

        def take(size_bytes: int) -> None:
            nonlocal taken_bytes
            if self.held_bytes + size_bytes > self.limit_bytes:
                self._on_refused()
                raise self._full()
            taken_bytes += size_bytes
            self.held_bytes += size_bytes

        try:
            return await read_body(request, limit_bytes, self._timeout_ms, take)
        finally:
            self.held_bytes -= taken_bytes

    def _full(self) -> Overloaded:
        return Overloaded(
            f"busy: {self.held_bytes} bytes of bodies are being read, and the limit is"
            f" {self.limit_bytes}; try again later",
            RETRY_MS,
        )


def bodies_of(request: Request) -> BodyBudget:
    """Return the budget of the application that answers the request."""
    budget = request.app.state.bodies
    assert isinstance(budget, BodyBudget)
    return budget


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
