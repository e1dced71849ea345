"""Callers at a steady rate over HTTP, gRPC and the `bertier` client, until they are stopped."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import bertier
from gateway.domain import Slo
from loadtest.drive.load_clients import GrpcLoadClient, HttpLoadClient
from loadtest.drive.outcomes import Outcome, Reply, Result
from loadtest.drive.schedule import Request
from loadtest.faults.phases import CLIENT
from optimizer.data.question_sets import Example


class Asker(Protocol):
    """One way to ask."""

    async def ask(self, request: Request) -> Reply: ...

    async def close(self) -> None: ...


class BertierLoadClient:
    """`bertier.AsyncClient`, which asks again what failed for a passing reason."""

    def __init__(self, url: str) -> None:
        self._client = bertier.AsyncClient(url)

    async def ask(self, request: Request) -> Reply:
        example, slo = request.example, request.slo
        try:
            answer = await self._client.answer(
                example.question,
                example.context,
                latency_ms=slo.latency_ms,
                min_f1=slo.min_f1,
                policy=str(slo.policy),
                priority=slo.priority,
            )
        except bertier.Overloaded as exc:
            return Reply(Outcome.SHED, str(exc))
        except bertier.ApiError as exc:
            return Reply(Outcome.FAILED, f"{type(exc).__name__}: {exc}")
        return Reply(Outcome.ANSWERED, answer=answer.text, certified_f1=answer.slo.certified_f1)

    async def close(self) -> None:
        await self._client.close()


@dataclass
class Load:
    """Requests that are due at a rate, each by the next way; times are ms since its start.

    `results` grows in the thread of the callers, and is read by others.
    """

    http_url: str
    grpc_url: str
    rate: float
    slo: Slo
    examples: Sequence[Example]
    results: list[tuple[str, Result]] = field(default_factory=list)  # way, and what became of it
    under_way: set[int] = field(default_factory=set)
    _began_s: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def now_ms(self) -> float:
        return 1e3 * (time.monotonic() - self._began_s)

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Send requests until stopped, then wait for those in flight."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            ways: dict[str, Asker] = {
                "HTTP": HttpLoadClient(self.http_url),
                "gRPC": GrpcLoadClient(self.grpc_url.removeprefix("grpc://")),
                CLIENT: BertierLoadClient(self.grpc_url),
            }
            for load_client in ways.values():
                stack.push_async_callback(load_client.close)
            running: set[asyncio.Task[None]] = set()
            turns = itertools.cycle(ways.items())
            for request in self._requests():
                await asyncio.sleep(max(0.0, request.at_ms - self.now_ms) / 1e3)
                if self._stop.is_set():
                    break
                task = asyncio.create_task(self._ask(*next(turns), request))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)

    def _requests(self) -> Iterator[Request]:
        first_ms = self.now_ms
        for index, example in enumerate(itertools.cycle(self.examples)):
            yield Request(index, first_ms + 1e3 * index / self.rate, self.slo, example)

    async def _ask(self, way: str, load_client: Asker, request: Request) -> None:
        sent_ms = self.now_ms
        self.under_way.add(request.index)
        reply = await load_client.ask(request)
        self.under_way.discard(request.index)
        self.results.append((way, Result(request, sent_ms, self.now_ms, reply)))


@contextmanager
def running(load: Load) -> Iterator[Load]:
    """Ask in a thread beside the caller's."""
    thread = threading.Thread(target=load.run, name="load", daemon=True)
    thread.start()
    try:
        yield load
    finally:
        load.stop()
        thread.join()
