"""A closed loop: each of some callers sends its next request when it has what became of its last.

As hey, wrk, ab, Locust's users and thread pools do. How many requests a second are sent is up to the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from loadtest.drive.load_clients import LoadClient
from loadtest.drive.outcomes import UNREACHED, Outcome, Result, TargetLost
from loadtest.drive.schedule import Request


@dataclass(frozen=True, slots=True)
class Loop:
    """How many callers ask, for how long, and whether who is refused waits for `Retry-After`."""

    callers: int
    seconds: float
    honour: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What callers got; shares are of all requests."""

    sent: int
    answered: float
    answered_per_s: float
    in_time: float
    f1: float  # of the answers
    met: float  # answers with SLO-Met: true
    p95_ms: float  # of the answers

    def as_json(self) -> dict[str, Any]:
        return {name: round(getattr(self, name), 4) for name in self.__slots__}


async def play(load_client: LoadClient, requests: Iterator[Request], loop: Loop) -> Found:
    """Run the loop and return what the callers got; requests under way at its end count, too.

    Raises: TargetLost, when a request gets no reply and the server is gone.
    """
    began = time.perf_counter()
    seen: list[Result] = []

    def now_ms() -> float:
        return (time.perf_counter() - began) * 1e3

    async def call() -> None:
        while now_ms() < loop.seconds * 1e3:
            sent_ms = now_ms()
            request = replace(next(requests), at_ms=sent_ms)
            reply = await load_client.ask(request)
            seen.append(Result(request, sent_ms, now_ms(), reply))
            if reply.outcome in UNREACHED:
                await load_client.probe()
            if loop.honour and reply.outcome is Outcome.SHED:
                await asyncio.sleep(reply.retry_after_s)

    await load_client.ready()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(loop.callers):
                group.create_task(call())
    except* TargetLost as lost:
        raise lost.exceptions[0] from None
    return measure(seen, now_ms() / 1e3)


def measure(seen: list[Result], seconds: float) -> Found:
    """Return what was seen in so many seconds as numbers."""
    answers = [r for r in seen if r.answered]
    latencies = sorted(r.latency_ms for r in answers)
    n = max(1, len(seen))
    return Found(
        sent=len(seen),
        answered=len(answers) / n,
        answered_per_s=len(answers) / seconds,
        in_time=sum(r.in_time for r in seen) / n,
        f1=fmean(r.f1 for r in answers) if answers else 0.0,
        met=sum(r.reply.met == "true" for r in answers) / n,
        p95_ms=latencies[int(0.95 * (len(latencies) - 1))] if latencies else 0.0,
    )
