"""Many questions in one HTTP request: a list or lines come in, a line for each goes out, in order.

Questions about one context may come as an object that holds it once.

A question that fails gets an error line; the others are answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.catalog.schema import QA
from gateway.clock import now_ms
from gateway.domain import SloRequest
from gateway.errors import BadInput, ClientGone, InvalidField
from gateway.frontends import replies, slo_headers
from gateway.frontends import schemas as models
from gateway.frontends.http.middleware import problem_response
from gateway.frontends.http.openapi import NDJSON
from gateway.frontends.http.streaming import Inbox, bodies_of, disconnected, while_connected
from gateway.request.service import AnswerService

NDJSON_TYPES = (NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines")

# In JSON these occur in strings only.
SEPARATORS = tuple((c.encode(), b"\\u%04x" % ord(c)) for c in "\x85\u2028\u2029")

Write = Callable[[bytes], Awaitable[None]]


class LinesResponse(Response):
    """An answer of lines, each sent when it is there."""

    def __init__(self, run: Callable[[Write], Awaitable[None]]) -> None:
        super().__init__(media_type=NDJSON)
        del self.headers["content-length"]
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)

        async def write(line: bytes) -> None:
            body = _one_line(line) + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            await self._run(write)
        except ClientGone:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Batch:
    """The questions of one request, under the SLO of its headers."""

    def __init__(self, service: AnswerService, slo: SloRequest) -> None:
        self._service = service
        self._settings = service.settings
        self._slo = slo

    async def answer(self, request: Request) -> Response:
        """Answer a list, or lines while they come in."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() in NDJSON_TYPES:
            inbox = Inbox(self._settings.max_body_bytes, self._settings.max_batch_bytes)
            return LinesResponse(partial(self._stream, inbox.lines(), partial(inbox.fill, request)))
        leaving = partial(disconnected, request.receive)
        return LinesResponse(partial(self._stream, _each(await self._list(request)), leaving))

    async def _list(self, request: Request) -> Iterable[Any]:
        raw = await bodies_of(request).read(request, self._settings.max_batch_bytes)
        values = models.read_json(raw)
        if isinstance(values, dict):
            shared = models.check(models.SharedQuestionsBody, values)
            return shared.items(self._settings)
        if not isinstance(values, list):
            raise InvalidField(
                f"body: send a list, or questions about one context, or lines with Content-Type: {NDJSON}"
            )
        return values

    async def _stream(
        self,
        items: AsyncIterator[Any],
        leaving: Callable[[], Awaitable[None]],
        write: Write,
    ) -> None:
        async with while_connected(leaving):
            await slo_headers.map_in_order(
                items, self._line, write, self._settings.max_concurrent_items
            )

    async def _line(self, item: Any) -> bytes:
        """Return the answer to one item, or its failure."""
        item_id = None
        try:
            value, wrong = _value(item)
            item_id = _string(value, "id")
            return await self._answer_item(value, wrong)
        except Exception as exc:  # noqa: BLE001 (a failure is one line; the others are answered)
            failure = problem_response("", exc).body
            return b'{"id":' + to_json(item_id) + b',"error":' + bytes(failure) + b"}"

    async def _answer_item(self, value: Any, wrong: BadInput | None) -> bytes:
        """Answer one item; its latency counts from now, not from the arrival of the request.

        `wrong`: why it cannot be answered; it counts as a question all the same.
        """
        arrived_ms = now_ms()
        own = _string(value.get("slo"), "class") if isinstance(value, dict) else None
        label = slo_headers.class_label(own or self._slo.slo_class, self._settings)
        with slo_headers.observed(self._service.observer, "http", label, QA):
            if wrong is not None:
                raise wrong
            item = models.check(models.ItemBody, value)
            parsed = item.to_parsed(self._settings)
            slo = item.slo.over(self._slo)
            answered = await self._service.answer(parsed.question, slo, arrived_ms)
            return replies.answer_body(answered, parsed)


def _one_line(json: bytes) -> bytes:
    """Return the same JSON without what many readers of lines take for the end of one (U+2028, ...)."""
    for separator, escaped in SEPARATORS:
        json = json.replace(separator, escaped)
    return json


async def _each(values: Iterable[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


def _value(item: Any) -> tuple[Any, BadInput | None]:
    """Return an item as a JSON value, and why it cannot be answered.

    A line comes as its bytes, one that cannot be read as its error. Raises: BadInput, for a line.
    """
    if isinstance(item, BadInput):
        raise item
    if isinstance(item, models.RefusedItem):
        return item.sent, item.error
    return models.read_json(item) if isinstance(item, bytes) else item, None


def _string(value: Any, name: str) -> str | None:
    """Return a string of a JSON object, if it is there."""
    found = value.get(name) if isinstance(value, dict) else None
    return found[: slo_headers.MAX_ID_CHARS] if isinstance(found, str) else None
