"""Sends each request when it is due, whatever became of those before it.

An answer's latency counts from when its request was due: a client that sends late, because the
server or it itself is slow, cannot leave that time out (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from loadtest.drive.load_clients import LoadClient
from loadtest.drive.outcomes import UNREACHED, Result, TargetLost
from loadtest.drive.schedule import Request, Schedule

LEAD_S = 0.2  # before the first request is due
NICE = -5  # of the client while it drives, where that is allowed: it sends on time on a busy host
MAX_LAG_MS = 10.0
MAX_CPU_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Client:
    """How well the client kept to the schedule."""

    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    cpu_share: float  # of one core

    def complaint(self, max_lag_ms: float = MAX_LAG_MS) -> str:
        """Return why the run says more of the client than of the server; empty: it does not."""
        if self.cpu_share > MAX_CPU_SHARE:
            return (
                f"the client used {self.cpu_share:.0%} of its one core and was the bottleneck:"
                " lower the rate, or drive from several processes"
            )
        if self.lag_p99_ms > max_lag_ms:
            return (
                f"one request in a hundred was sent {self.lag_p99_ms:.1f} ms late or more"
                f" (allowed: {max_lag_ms:g}; client CPU {self.cpu_share:.0%} of a core): the host"
                " is too busy to drive from; free a core, or raise --max-send-lag-ms"
            )
        return ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that reached its end; results in the order of their requests."""

    where: str
    results: tuple[Result, ...]
    client: Client


@dataclass
class Drive:
    """One run over one load client; `seen` holds the results so far, also when the run breaks."""

    load_client: LoadClient
    seen: list[Result] = field(default_factory=list)
    _lost: TargetLost | None = None
    _probing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def play(self, schedule: Schedule) -> Run:
        """Send everything and wait for all replies. Raises: TargetLost."""
        await self.load_client.ready()
        with _attentive():
            cpu_s, began = time.process_time(), time.perf_counter()
            await self._send(schedule, began + LEAD_S)
            wall_s = time.perf_counter() - began
        if self._lost is not None:
            raise self._lost
        self.seen.sort(key=lambda r: r.request.index)
        lags = np.array([r.lag_ms for r in self.seen] or [0.0])
        p50, p99 = np.quantile(lags, (0.5, 0.99))
        share = (time.process_time() - cpu_s) / wall_s
        client = Client(float(p50), float(p99), float(lags.max()), share)
        return Run(self.load_client.where, tuple(self.seen), client)

    async def _send(self, schedule: Schedule, began: float) -> None:
        running: set[asyncio.Task[None]] = set()
        for request in schedule:
            due_s = began + request.at_ms / 1e3
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            if self._lost is not None:
                break
            task = asyncio.create_task(self._one(request, began, len(schedule)))
            running.add(task)
            task.add_done_callback(running.discard)
        while running and self._lost is None:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _one(self, request: Request, began: float, total: int) -> None:
        sent_ms = (time.perf_counter() - began) * 1e3
        reply = await self.load_client.ask(request)
        ended_ms = (time.perf_counter() - began) * 1e3
        self.seen.append(Result(request, sent_ms, ended_ms, reply))
        if reply.outcome in UNREACHED:
            await self._check(self.seen[-1], total)

    async def _check(self, result: Result, total: int) -> None:
        """Is the server still there, after a request that got no reply?"""
        async with self._probing:
            if self._lost is not None:
                return
            try:
                await self.load_client.probe()
            except TargetLost as exc:
                answered = sum(r.answered for r in self.seen)
                self._lost = TargetLost(
                    f"{exc}. It was lost {result.ended_ms / 1e3:.1f} s into the run: request"
                    f" {result.request.index} of {total} got '{result.reply.detail}';"
                    f" {answered} had been answered. A broken run has no figures"
                )


async def play(
    schedule: Schedule, load_client: LoadClient, seen: Callable[[list[Result]], None] | None = None
) -> Run:
    """Play a schedule; `seen` gets the results, also of a run that breaks. Raises: TargetLost."""
    drive = Drive(load_client)
    try:
        return await drive.play(schedule)
    finally:
        if seen is not None:
            seen(drive.seen)


@contextmanager
def _attentive() -> Iterator[None]:
    """Keep the client on time: ahead of others where the system lets it, with short collections."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    gc.collect()
    gc.freeze()  # what is there already is not looked through again and again
    _renice(min(before, NICE))
    try:
        yield
    finally:
        _renice(before)
        gc.unfreeze()


def _renice(to: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, to)
    except PermissionError:
        return
