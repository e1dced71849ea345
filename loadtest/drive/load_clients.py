"""Load clients: send a request with its SLO over HTTP or gRPC. Create one in the loop that uses it."""

from __future__ import annotations

import asyncio
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import inf
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc
from loadtest.drive.outcomes import Outcome, Reply, TargetLost
from loadtest.drive.schedule import Request, headers

PROBE_TIMEOUT_S = 5.0
CHANNELS = 4  # a single channel is a bottleneck at high rates
GRACE_MS = 2_000.0  # the client waits this long past the deadline for a reply


class LoadClient(Protocol):
    """A client of one server over one protocol."""

    where: str

    async def ask(self, request: Request) -> Reply:
        """Send one request and return the reply; never raises for server or network faults."""

    async def probe(self) -> None:
        """Return if the server is alive. Raises: TargetLost."""

    async def ready(self) -> None:
        """Return if the server can answer questions. Raises: TargetLost."""

    async def close(self) -> None: ...


class _Closing(ABC):
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    @abstractmethod
    async def close(self) -> None: ...


def _patience_s(request: Request) -> float:
    return (request.slo.timeout_ms + GRACE_MS) / 1e3


class HttpLoadClient(_Closing):
    """POST /v1/answer of a gateway."""

    def __init__(self, url: str) -> None:
        self.where = url.rstrip("/")
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        self._client = aiohttp.ClientSession(connector=connector)

    async def ask(self, request: Request) -> Reply:
        example = request.example
        body = json.dumps({"question": example.question, "context": example.context}).encode()
        said = headers(request.slo) | {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(_patience_s(request))
        try:
            async with self._client.post(
                f"{self.where}/v1/answer", data=body, headers=said, timeout=timeout
            ) as reply:
                return _from_http(reply.status, reply.headers, await reply.read())
        except TimeoutError:
            return Reply(Outcome.SILENT, f"no answer within {timeout.total:g} s")
        except aiohttp.ClientError as exc:
            return Reply(Outcome.LOST, f"{type(exc).__name__}: {exc}")

    async def probe(self) -> None:
        await self._get("/healthz")

    async def ready(self) -> None:
        await self._get("/readyz")

    async def _get(self, path: str) -> None:
        timeout = aiohttp.ClientTimeout(PROBE_TIMEOUT_S)
        try:
            async with self._client.get(f"{self.where}{path}", timeout=timeout) as reply:
                said = (await reply.text())[:300]
                if reply.status != 200:
                    raise TargetLost(f"{self.where}{path} says {reply.status}: {said}")
        except TimeoutError as exc:
            raise TargetLost(f"{self.where}{path}: no answer in {PROBE_TIMEOUT_S:g} s") from exc
        except (aiohttp.ClientError, ValueError) as exc:
            raise TargetLost(f"{self.where}: {exc}") from exc

    async def close(self) -> None:
        await self._client.close()


_OF_HTTP = {429: Outcome.SHED, 504: Outcome.EXPIRED}
_INFEASIBLE = "infeasible"


def _from_http(status: int, said: Mapping[str, str], body: bytes) -> Reply:
    reply_body = _object(body)
    if status == 200 and "answer" in reply_body:
        slo_body = reply_body.get("slo")  # unrounded, where the headers round
        exact = slo_body if isinstance(slo_body, dict) else {}
        return Reply(
            Outcome.ANSWERED,
            answer=str(reply_body["answer"]),
            plan=said.get("SLO-Plan", ""),
            variant=said.get("SLO-Variant", ""),
            met=said.get("SLO-Met", ""),
            certified_f1=float(exact.get("certified_f1", 0.0)),
            predicted_ms=float(exact.get("predicted_ms", inf)),
        )
    outcome = _OF_HTTP.get(status, Outcome.FAILED)
    if str(reply_body.get("type", "")).endswith(f":{_INFEASIBLE}"):
        outcome = Outcome.REFUSED
    words = reply_body.get("detail") or body[:200].decode(errors="replace")
    retry_after = said.get("Retry-After", "")
    wait_s = float(retry_after) if retry_after.isdecimal() else 0.0
    return Reply(outcome, f"{status}: {words}", retry_after_s=wait_s)


def _object(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class GrpcLoadClient(_Closing):
    """bertier.v1.QuestionAnswering/Answer of a gateway."""

    def __init__(self, target: str) -> None:
        self.where = target
        self._channels = [
            # Channels with the same options share one connection.
            grpc.aio.insecure_channel(target, options=[("bertier.channel", i)])
            for i in range(CHANNELS)
        ]
        stubs = [
            qa_pb2_grpc.QuestionAnsweringStub(c)  # type: ignore[no-untyped-call]
            for c in self._channels
        ]
        self._stubs = itertools.cycle(stubs)

    async def ask(self, request: Request) -> Reply:
        example = request.example
        message = qa_pb2.AnswerRequest(question=example.question, context=example.context)
        metadata = [(name.lower(), value) for name, value in headers(request.slo).items()]
        call = next(self._stubs).Answer(message, metadata=metadata)
        try:
            async with asyncio.timeout(_patience_s(request)):
                reply = await call
        except TimeoutError:
            return Reply(Outcome.SILENT, f"no answer within {_patience_s(request):g} s")
        except grpc.aio.AioRpcError as exc:
            return _from_grpc(exc)
        return Reply(
            Outcome.ANSWERED,
            answer=reply.answer,
            plan=reply.plan,
            variant=reply.variant,
            met=reply.slo.met,
            certified_f1=reply.slo.certified_f1,
            predicted_ms=reply.slo.predicted_ms,
        )

    async def probe(self) -> None:
        await self._health()

    async def ready(self) -> None:
        status = await self._health()
        if status != health_pb2.HealthCheckResponse.SERVING:
            raise TargetLost(f"{self.where}: gRPC health says it is not serving; see its /readyz")

    async def _health(self) -> int:
        stub: Any = health_pb2_grpc.HealthStub(self._channels[0])  # its types know no method
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError as exc:
            raise TargetLost(f"{self.where}: {exc.code().name}: {exc.details()}") from exc
        return int(reply.status)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


_OF_GRPC = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Outcome.SHED,
    grpc.StatusCode.FAILED_PRECONDITION: Outcome.REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.EXPIRED,
}


def _from_grpc(exc: grpc.aio.AioRpcError) -> Reply:
    code = exc.code()
    # The gateway names every failure of its own; what has no name never reached it.
    said = {key: str(value) for key, value in exc.trailing_metadata() or ()}
    outcome = _OF_GRPC.get(code, Outcome.FAILED) if "error-type" in said else Outcome.LOST
    wait_s = float(said.get("grpc-retry-pushback-ms", 0.0)) / 1e3
    return Reply(outcome, f"{code.name}: {exc.details()}", retry_after_s=wait_s)


def of(url: str) -> HttpLoadClient | GrpcLoadClient:
    """Return the client for http://host:port or grpc://host:port. Raises: TargetLost."""
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.netloc:
        return HttpLoadClient(url)
    if parts.scheme == "grpc" and parts.netloc:
        return GrpcLoadClient(parts.netloc)
    raise TargetLost(f"{url!r}: give http://HOST:PORT or grpc://HOST:PORT")
