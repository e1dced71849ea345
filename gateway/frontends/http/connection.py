"""One HTTP connection: what its peer may send and keep waiting before anybody is asked for a key.

uvicorn's protocol with limits of time and size around it, and problem documents (RFC 9457) where it writes plain
text. It does not judge requests that can be parsed, except that HTTP/1.1 needs one Host.
"""

from __future__ import annotations

import asyncio
import contextvars
from functools import partial
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.errors import BertierError, HeadTooLarge, HeadTooSlow, Malformed, TooManyConnections
from gateway.frontends import slo_headers
from gateway.frontends.http.auth import OPEN
from gateway.frontends.http.connections import Closed, Connection, Connections
from gateway.frontends.http.middleware import RequestFrame, problem_response
from gateway.observability import logs

LINGER_S = 1.0  # keep reading for so long after a refusal: closing at once would discard the answer
LAST_CALL_S = 0.2  # at a stop: wait so long for a request that is on its way


class HttpConnection(HttpToolsProtocol):
    """uvicorn's protocol, with limits. `closing` ends it after the request at hand."""

    def __init__(
        self, own: Connection, all_: Connections, *, closing: bool, **uvicorn: Any
    ) -> None:
        super().__init__(**uvicorn)
        self._own = own
        self._all = all_
        self._limits = all_.limits
        self._closing = closing
        self.timeout_keep_alive = self._limits.idle_timeout_s  # type: ignore[assignment]  # any number does
        self._timer: asyncio.TimerHandle | None = None  # runs while waiting for a request head
        self._stall: asyncio.TimerHandle | None = None  # runs while the peer reads no answer
        self._in_body = False
        self._head_bytes = 0  # of the head that is being read
        self._field_bytes = 0  # the same, of whole fields; trailers included
        self._refused = False

    @property
    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._own.close = transport.abort
        self._wait_for_head()
        if self._closing:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._stall is not None:
            self._stall.cancel()
        self._unset_keepalive_if_required()
        self._all.ended(self._own)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade:
            pass  # it is answered in the protocol that it came in
        except httptools.HttpParserError as exc:
            self._refuse(_as_ours(exc))
        except HeadTooLarge as exc:
            self._refuse(exc)
        self._expect_more()

    def _expect_more(self) -> None:
        """Set a time limit for what has to come next, unless there is one."""
        waits = self._timer is not None or self.timeout_keep_alive_task is not None
        if not (waits or self._is_answering or self._refused):
            self._wait_for_head()

    def _feed(self, data: bytes) -> None:
        """Parse what came, but no more of a head than there may be. Raises: HeadTooLarge."""
        limit = self._limits.max_head_bytes
        while data:
            part = data if self._in_body else data[: limit + 1 - self._head_bytes]
            self._head_bytes += len(part)
            self.parser.feed_data(part)
            if not self._in_body and self._head_bytes > limit:
                raise HeadTooLarge(limit)
            data = data[len(part) :]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._field_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._field_bytes += len(name) + len(value) + 4
        if self._field_bytes > self._limits.max_head_bytes:
            raise HeadTooLarge(self._limits.max_head_bytes)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_body = True
        self._head_bytes = 0
        self._stop_waiting()
        self._all.works(self._own)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._head_bytes = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body = False
        self._head_bytes = 0
        if not self._is_answering:  # the rest of a body that was answered before it was read
            self._stop_waiting()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            if self.transport.get_write_buffer_size():
                self._expect_taken()
        elif not self._is_answering:
            self._all.idles(self._own)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        error = self._reason_to_refuse(cycle.scope)
        if error is not None:
            app = RequestFrame(_raising(error), lambda: False)
        if error is not None or self._closing or self._own.probes_only:
            cycle.keep_alive = False
        if cycle.scope["http_version"] == "1.0":
            app = _until_closed(app, cycle)
        if cycle.waiting_for_100_continue:
            app = _closing_unless_continued(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _reason_to_refuse(self, scope: Any) -> BertierError | None:
        hosts = [name for name, _ in scope["headers"]].count(b"host")
        if hosts > 1 or (hosts == 0 and scope["http_version"] == "1.1"):
            error = Malformed(f"Host: sent {hosts} times; HTTP/1.1 needs it once")
            self._all.closed(Closed.MALFORMED, self._own.address, str(error))
            return error
        if self._own.probes_only and scope["path"] not in OPEN:
            self._all.closed(Closed.FULL, self._own.address)
            return TooManyConnections(self._limits.max_connections)
        return None

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.is_closing():
            return
        self._all.closed(Closed.IDLE, self._own.address)
        self._close()

    def shutdown(self) -> None:
        """Close after the request at hand, and after one that is on its way."""
        self._closing = True
        if self._is_answering:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LAST_CALL_S, self._close_unless_asked)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _close_unless_asked(self) -> None:
        if not self._is_answering and not self._head_bytes:
            self._close()

    def _close(self) -> None:
        """Close once all that was written is taken, and without that some time later."""
        self.transport.close()
        self._expect_taken()

    def _expect_taken(self) -> None:
        """Cut the peer off if it does not take what was written."""
        if self._stall is None:
            self._stall = self.loop.call_later(self._limits.idle_timeout_s, self._on_stall)

    def _on_stall(self) -> None:
        self._all.closed(Closed.STALLED, self._own.address)
        self.transport.abort()

    def _wait_for_head(self) -> None:
        late = partial(self._all.soon, self._on_slow_head)
        self._timer = self.loop.call_later(self._limits.head_timeout_s, late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_slow_head(self) -> None:
        if self._timer is None:  # it arrived in time after all
            return
        if self._head_bytes and not self._in_body:
            self._refuse(HeadTooSlow(self._limits.head_timeout_s * 1e3))
        else:
            self._all.closed(Closed.SLOW_HEAD, self._own.address)
            self.transport.abort()

    def _refuse(self, error: BertierError) -> None:
        """End the connection because of what came; what came before it is answered."""
        self._refused = True
        self._stop_waiting()
        context = contextvars.copy_context()
        context.run(self._report, error)
        if self._is_answering and not self._in_body:  # the head of a request behind the one at hand
            self.cycle.keep_alive = False
            return
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started or self.pipeline:
                self.transport.abort()
                return
        context.run(self._write_problem, error)
        self._linger()

    def _report(self, error: BertierError) -> None:
        """Log and count a refusal, under the request's id where that has come."""
        headers: list[tuple[bytes, bytes]] | None = self.headers  # None before the first request
        given = dict(headers or ()).get(b"x-request-id", b"").decode("latin-1")
        logs.request_id.set(slo_headers.request_id(given))
        self._all.closed(_closed(error), self._own.address, str(error))

    def _write_problem(self, error: BertierError) -> None:
        response = problem_response(getattr(self, "url", b"").decode("latin-1"), error)
        fields = [
            *self.server_state.default_headers,
            *response.raw_headers,
            (b"x-request-id", logs.request_id.get().encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % field for field in fields)
        head = STATUS_LINE[response.status_code] + lines + b"\r\n"
        self.transport.write(head + bytes(response.body))

    def _linger(self) -> None:
        if not self.transport.can_write_eof():  # TLS reads on by itself
            self._close()
            return
        self.transport.write_eof()
        self._stall = self.loop.call_later(LINGER_S, self.transport.abort)


def _as_ours(error: httptools.HttpParserError) -> BertierError:
    if isinstance(error.__context__, HeadTooLarge):  # raised in a callback of the parser
        return error.__context__
    return Malformed(f"the request is not valid HTTP/1.1 ({error}); send plain HTTP/1.1")


def _closed(error: BertierError) -> Closed:
    if isinstance(error, HeadTooLarge):
        return Closed.LARGE_HEAD
    return Closed.SLOW_HEAD if isinstance(error, HeadTooSlow) else Closed.MALFORMED


def _raising(error: BertierError) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    return app


def _closing_unless_continued(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """Return the app for `Expect: 100-continue`: an answer before `100` ends the connection.

    Whether the body still comes is the client's choice; read on, the next request could be taken for it.
    """

    async def framed(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and cycle.waiting_for_100_continue:
                cycle.keep_alive = False
            await send(message)

        await app(scope, receive, send_closing)

    return framed


def _until_closed(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """Return the app for HTTP/1.0: a body of unknown length ends with the connection, it has no chunks."""

    async def framed(scope: Scope, receive: Receive, send: Send) -> None:
        unknown = False

        async def send_plain(message: Message) -> None:
            nonlocal unknown
            if message["type"] == "http.response.start":
                names = [name.lower() for name, _ in message["headers"]]
                unknown = b"content-length" not in names
                if unknown:
                    cycle.chunked_encoding = False
            elif unknown:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return framed
