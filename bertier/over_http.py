"""The HTTP transport: JSON, NDJSON for many questions, problems as errors. The only user of httpx2."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import httpx2

from bertier import answers
from bertier.answers import Answer
from bertier.errors import TIMEOUT, UNREACHABLE, ApiError, Failure, error_of, unreachable
from bertier.questions import Batch, Operation
from bertier.security import Security

T = TypeVar("T")
MANY = "/v1/answers"
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}
NETWORK = (httpx2.TransportError, httpx2.InvalidURL, httpx2.UnsupportedProtocol)


class HttpTransport:
    """One gateway over HTTP, asked from threads."""

    def __init__(
        self,
        url: str,
        security: Security,
        own: Mapping[str, str],
        timeout_s: float,
        *,
        trust_env: bool = True,
    ) -> None:
        """`own`: headers of every request; `trust_env`: use the proxies that the environment names. Raises: OSError for a PEM file."""
        self._url = url
        self._http = httpx2.Client(**_options(url, security, own, timeout_s), trust_env=trust_env)

    def call(self, operation: Operation[T], headers: Mapping[str, str]) -> T:
        reply = self._send("POST", operation.path, operation.body, headers)
        return answers.with_request_id(operation.of_json(_checked(reply)), _id_of(reply))

    def fetch(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return the JSON object that a route replies with. Raises: ApiError."""
        return _checked(self._send(method, path, body, headers))

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> httpx2.Response:
        sent = None if body is None else dict(body)
        with _foreign(self._url):
            return self._http.request(method, path, json=sent, headers=headers)

    def many(self, batch: Batch, headers: Mapping[str, str]) -> Iterator[Answer | ApiError]:
        with _foreign(self._url):
            body, kind = _body(batch)
            with self._http.stream(
                "POST", MANY, content=body, headers={**headers, **kind}
            ) as reply:
                if not reply.is_success:
                    reply.read()
                    _checked(reply)
                for line in filter(str.strip, reply.iter_lines()):
                    yield answers.with_request_id(_item(line), _id_of(reply))

    def ready(self) -> bool:
        with _foreign(self._url):
            return bool(self._http.get("/readyz").is_success)

    def close(self) -> None:
        self._http.close()


class AsyncHttpTransport:
    """One gateway over HTTP, asked from an event loop."""

    def __init__(
        self, url: str, security: Security, own: Mapping[str, str], timeout_s: float
    ) -> None:
        """`own`: headers of every request."""
        self._url = url
        self._http = httpx2.AsyncClient(**_options(url, security, own, timeout_s))

    async def call(self, operation: Operation[T], headers: Mapping[str, str]) -> T:
        async with _foreign_async(self._url):
            reply = await self._http.post(
                operation.path, json=dict(operation.body), headers=headers
            )
        return answers.with_request_id(operation.of_json(_checked(reply)), _id_of(reply))

    async def many(
        self, batch: Batch, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer | ApiError]:
        async with _foreign_async(self._url):
            body, kind = _body(batch)
            async with self._http.stream(
                "POST", MANY, content=body, headers={**headers, **kind}
            ) as reply:
                if not reply.is_success:
                    await reply.aread()
                    _checked(reply)
                async for line in reply.aiter_lines():
                    if line.strip():
                        yield answers.with_request_id(_item(line), _id_of(reply))

    async def ready(self) -> bool:
        async with _foreign_async(self._url):
            return bool((await self._http.get("/readyz")).is_success)

    async def close(self) -> None:
        await self._http.aclose()


def _options(
    url: str, security: Security, own: Mapping[str, str], timeout_s: float
) -> dict[str, Any]:
    secure = {"verify": security.context()} if url.startswith("https:") else {}
    return {"base_url": url, "headers": dict(own), "timeout": timeout_s, **secure}


def _body(batch: Batch) -> tuple[bytes, dict[str, str]]:
    """Return the body and the header of its type: lines, or an object that holds the texts once."""
    if batch.shared is not None:
        return json.dumps(batch.shared_json()).encode(), JSON
    return b"".join(json.dumps(ask.json()).encode() + b"\n" for ask in batch.asks), NDJSON


def _checked(reply: httpx2.Response) -> dict[str, Any]:
    """Return the body of a success. Raises: ApiError."""
    try:
        body = reply.json()
    except ValueError:
        body = None
    if reply.is_success and isinstance(body, dict):
        return body
    problem = body if isinstance(body, dict) and "detail" in body else {}
    header = reply.headers.get("retry-after", "")
    if "retry_after_ms" not in problem and header.isdecimal():
        problem = {**problem, "retry_after_ms": 1e3 * int(header)}
    why = "not a bertier gateway (no JSON)" if reply.is_success else "and no reason given"
    problem.setdefault("detail", f"HTTP {reply.status_code} from {reply.url}, {why}")
    raise _error(reply.status_code, problem)


def _id_of(reply: httpx2.Response) -> str | None:
    return reply.headers.get("x-request-id")


def _item(line: str) -> Answer | ApiError:
    body = json.loads(line)
    if "error" in body:
        return _error(int(body["error"]["status"]), body["error"])
    return answers.answer_of_json(body)


def _error(status: int, problem: Mapping[str, Any]) -> ApiError:
    failure = Failure(
        kind=str(problem.get("type", "http")).rpartition(":")[2],
        detail=problem["detail"],
        request_id=problem.get("request_id", ""),
        retry_after_ms=problem.get("retry_after_ms"),
        nearest=problem.get("nearest") or (),
    )
    return error_of(status, failure)


@contextmanager
def _foreign(url: str) -> Iterator[None]:
    """Turn httpx2's errors into ours."""
    try:
        yield
    except NETWORK as exc:
        raise _unreachable(url, exc) from exc


@asynccontextmanager
async def _foreign_async(url: str) -> AsyncIterator[None]:
    with _foreign(url):
        yield


def _unreachable(url: str, exc: Exception) -> ApiError:
    why = str(exc) or type(exc).__name__
    if isinstance(exc, httpx2.RemoteProtocolError) and url.startswith("http:"):
        why += "; if it speaks TLS, use https://"
    if isinstance(exc, httpx2.TimeoutException) and not isinstance(exc, httpx2.ConnectTimeout):
        return error_of(
            504, Failure(TIMEOUT, f"{url}: no answer within the client's timeout ({why})")
        )
    return error_of(0, Failure(UNREACHABLE, unreachable(url, why)))
