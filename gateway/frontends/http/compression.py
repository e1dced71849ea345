"""Compressed bodies: those of requests are inflated while they come in, large replies are compressed when asked.

Knows no route. Limits of size stay where bodies are read: they see what was inflated, piece by piece.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import Malformed, UnsupportedEncoding
from gateway.frontends.http.zstd import MAX_EMPTY, ZstdInflater

PIECE_BYTES = 64 << 10  # so much is inflated at a time: what a bomb costs before the limit is seen
MIN_REPLY_BYTES = 1_400  # a smaller reply fits into one packet as it is
LEVEL = 5
IN_THREAD_BYTES = 32 << 10  # a larger reply is compressed beside the event loop
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's: 31 is gzip, 15 is zlib
COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {  # the first one that the caller takes
    "gzip": partial(gzip.compress, compresslevel=LEVEL, mtime=0),
    "deflate": partial(zlib.compress, level=LEVEL),
}
ZSTD = "zstd"
SUPPORTED = (*COMPRESS, ZSTD)  # of requests
COMPRESSIBLE = ("application/json", "application/problem+json", "application/octet-stream")


class InflatesRequests:
    """Pure ASGI: whoever is inside reads the body as if it had been sent without a coding."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        coding = _coding(scope) if scope["type"] == "http" else ""
        if not coding:
            await self._app(scope, receive, send)
            return
        if coding != ZSTD and coding not in WINDOW_BITS:
            raise UnsupportedEncoding(coding, SUPPORTED)
        headers = [each for each in scope["headers"] if each[0] != b"content-encoding"]
        inflating = InflatingReceive(receive, coding)
        await self._app({**scope, "headers": headers}, inflating, send)


def _coding(scope: Scope) -> str:
    """Return the coding of the body; none: an empty text."""
    found = [value for name, value in scope["headers"] if name == b"content-encoding"]
    said = b",".join(found).decode("latin-1").strip().lower()
    return "" if said == "identity" else said


class InflatingReceive:
    """An ASGI `receive` that gives the inflated body in pieces of at most PIECE_BYTES."""

    def __init__(self, receive: Receive, coding: str) -> None:
        self._receive = receive
        self._inflater = ZstdInflater(PIECE_BYTES) if coding == ZSTD else _Inflater(coding)
        self._pieces: Iterator[bytes] = iter(())
        self._is_last = False  # the message that the pieces are of
        self._done = False

    async def __call__(self) -> Message:
        """Raises: Malformed for what cannot be inflated, or ends too early."""
        try:
            while not self._done:
                if (message := await self._next()) is not None:
                    return message
        except Malformed:
            self._done = True
            raise
        return await self._receive()

    async def _next(self) -> Message | None:
        """Return a piece, or the end of the body; None: more is needed, and was received."""
        piece = next(self._pieces, None)
        if piece is not None:
            await asyncio.sleep(0)  # let others have their turn
            return {"type": "http.request", "body": piece, "more_body": True}
        if self._is_last:
            self._inflater.check_ended()
            self._done = True
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        self._is_last = not message.get("more_body", False)
        self._pieces = self._inflater.pieces(message.get("body", b""))
        return None


class _Inflater:
    """One body, which may be several compressed streams in a row, as `cat a.gz b.gz` makes them."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._stream = zlib.decompressobj(WINDOW_BITS[coding])
        self._began = False
        self._n_empty = 0

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` inflates to. Raises: Malformed."""
        while data:
            if self._stream.eof:
                self._stream = zlib.decompressobj(WINDOW_BITS[self._coding])
            self._began = True
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except zlib.error as exc:
                raise Malformed(f"body: not {self._coding}, as Content-Encoding says") from exc
            data = self._stream.unconsumed_tail or self._stream.unused_data
            self._n_empty = 0 if piece else self._n_empty + self._stream.eof
            if self._n_empty > MAX_EMPTY:
                raise Malformed(
                    f"body: more than {MAX_EMPTY} empty {self._coding} streams in a row"
                )
            if piece:
                yield piece

    def check_ended(self) -> None:
        """Raise Malformed where the end of a stream is missing."""
        if self._began and not self._stream.eof:
            raise Malformed(f"body: ends inside its {self._coding} stream; send all of it")


class CompressesReplies:
    """Pure ASGI: compresses a reply that is there whole, where that is worth it and the caller takes it.

    Answers of lines are sent as they come: a compressor would hold them back.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_http = scope["type"] == "http"  # else the lifespan, which has no headers
        coding = accepted(_value(scope, b"accept-encoding")) if is_http else None
        if coding is None:
            await self._app(scope, receive, send)
            return
        held: Message | None = None  # the head of a reply, until its body is known

        async def send_compressed(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and _is_compressible(message):
                held = message
                return
            if held is not None:
                message = await _compressed(held, message, coding)
                await send(held)
                held = None
            await send(message)

        await self._app(scope, receive, send_compressed)


def _value(scope: Scope, wanted: bytes) -> str:
    """Return the first header of a name; none: an empty text."""
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("latin-1"))
    return ""


@lru_cache(maxsize=128)
def accepted(header: str) -> str | None:
    """Return the coding to reply in by an Accept-Encoding header; None: none that we have."""
    taken = set()
    for part in header.lower().split(","):
        name, _, weight = (piece.strip() for piece in part.partition(";"))
        if weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            taken.add(name)
    return next((coding for coding in COMPRESS if coding in taken or "*" in taken), None)


def _is_compressible(start: Message) -> bool:
    headers = Headers(raw=list(start["headers"]))
    kind = headers.get("content-type", "").partition(";")[0]
    return kind in COMPRESSIBLE and "content-encoding" not in headers


async def _compressed(start: Message, message: Message, coding: str) -> Message:
    """Return the message of a reply's body, compressed if it is whole and large; the head then says so."""
    body = message.get("body", b"")
    if message.get("more_body", False) or len(body) < MIN_REPLY_BYTES:
        return message
    compress = COMPRESS[coding]
    large = len(body) >= IN_THREAD_BYTES
    packed = await asyncio.to_thread(compress, body) if large else compress(body)
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["content-encoding"] = coding
    headers["content-length"] = str(len(packed))
    headers.add_vary_header("Accept-Encoding")
    start["headers"] = headers.raw
    return {**message, "body": packed}
