"""The machine that is emulated: cores shared by all that runs, queues by variant. Times are virtual.

Triton runs one process an instance, one thread each, and takes windows first come first served.
Instances of all variants together are more than the cores, and the kernel gives each runnable
thread an equal share: processor sharing among what runs, at most a core each. Two busy processes
were measured at 98 % of twice the throughput of one (two cores, INT8, 93 requests/s against 2/21 ms),
so `contention`, the stretch of work when several run at once, is 1 unless told otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf


@dataclass(slots=True)
class Job:
    """Work of one request that one instance does in one go: one window, or the gateway's part."""

    request: int
    place: str  # the queue it waits in: a variant, or the gateway
    work_ms: float  # of one core, alone
    with_it: list[Job] = field(default_factory=list)  # of the same batch


def _never(_: Job) -> bool:
    return False


def _one(_: str) -> int:
    return 1


class Host:
    """Processor sharing by a virtual clock: each job ends when the work done per job reaches its own.

    Source: the virtual time of fair queueing (Parekh and Gallager 1993), with equal weights.
    """

    def __init__(
        self,
        cores: int,
        slots: Mapping[str, int],
        *,
        contention: float = 1.0,
        dead: Callable[[Job], bool] = _never,
        batch: Callable[[str], int] = _one,
    ) -> None:
        self._cores = cores
        self._free = dict(slots)
        self._queues: dict[str, deque[Job]] = {place: deque() for place in slots}
        self._contention = contention
        self._dead = dead  # nobody waits for it: dropped from the queue, as Triton's `timeout` does
        self._batch = batch  # windows that one instance may take at once
        self._running: list[tuple[float, int, Job]] = []  # heap by end, in work done per job
        self._done_ms = 0.0  # work done per job since the start
        self._at_ms = 0.0
        self._rate = 1.0
        self._serial = 0

    def submit(self, job: Job, now_ms: float) -> None:
        if self._free[job.place]:
            self._start(job, now_ms)
        else:
            self._queues[job.place].append(job)

    def next_ms(self) -> float:
        """Return when the next job ends if nothing else happens."""
        if not self._running:
            return inf
        return self._at_ms + max(0.0, self._running[0][0] - self._done_ms) / self._rate

    def finish(self, now_ms: float) -> Job:
        """End the job that is due, let the next of its queue begin, and return it."""
        self._advance(now_ms)
        _, _, job = heappop(self._running)
        self._free[job.place] += 1
        self._reckon()
        queue = self._queues[job.place]
        while queue and self._free[job.place]:
            waiting = queue.popleft()
            if not self._dead(waiting):
                self._start(self._joined(waiting, queue), now_ms)
        return job

    def _joined(self, first: Job, queue: deque[Job]) -> Job:
        """Return the job with those that its instance takes along, padded to the longest."""
        room = self._batch(first.place) - 1
        while room > 0 and queue:
            other = queue.popleft()
            if not self._dead(other):
                first.with_it.append(other)
                room -= 1
        if first.with_it:
            longest = max(first.work_ms, *(j.work_ms for j in first.with_it))
            first.work_ms = longest * (1 + len(first.with_it))  # a CPU gains nothing from batches
        return first

    def _start(self, job: Job, now_ms: float) -> None:
        self._advance(now_ms)
        self._free[job.place] -= 1
        self._serial += 1
        heappush(self._running, (self._done_ms + job.work_ms, self._serial, job))
        self._reckon()

    def _advance(self, now_ms: float) -> None:
        self._done_ms += (now_ms - self._at_ms) * self._rate
        self._at_ms = now_ms

    def _reckon(self) -> None:
        n = len(self._running)
        share = 1.0 if n <= self._cores else self._cores / n
        self._rate = share / self._contention if n > 1 else share
