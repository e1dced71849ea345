"""The machine that is emulated: cores shared by all that runs, queues by variant. Times are virtual.

Triton runs one process an instance, one thread each, and takes windows first come first served.
Instances of all variants together are more than the cores, and the kernel gives each runnable
thread a share by its weight, at most a core: processor sharing among what runs. Models weigh 1, the
gateway's thread what `weights` says. Two busy processes were measured at 98 % of twice the throughput
of one (two cores, INT8, 93 requests/s against 2/21 ms), so `contention`, the stretch of work when
several run at once, is 1 by default.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf


@dataclass(slots=True)
class HostJob:
    """Work of one request that one instance does in one go: one window, or the gateway's part."""

    request: int
    place: str  # the queue it waits in: a variant, or the gateway
    work_ms: float  # of one core, alone
    with_it: list[HostJob] = field(default_factory=list)  # of the same batch


def _never(_: HostJob) -> bool:
    return False


def _nothing(_: HostJob, __: float) -> None:
    return


def _one(_: str) -> int:
    return 1


class _Crowd:
    """What runs with the same weight: each job ends when the work done per job reaches its own."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.running: list[tuple[float, int, HostJob]] = []  # heap by end, in work done per job
        self.done_ms = 0.0  # work done per job since the start
        self.rate = 1.0  # of a core, each job

    def next_in_ms(self) -> float:
        if not self.running:
            return inf
        return max(0.0, self.running[0][0] - self.done_ms) / self.rate


class EmulatedHost:
    """Processor sharing by virtual clocks, one a weight.

    Source: the virtual time of fair queueing (Parekh and Gallager 1993), with a core as the most that
    one job gets.
    """

    def __init__(
        self,
        cores: int,
        slots: Mapping[str, int],
        *,
        contention: float = 1.0,
        weights: Mapping[str, float] | None = None,
        begins: Callable[[HostJob, float], None] = _nothing,
        dead: Callable[[HostJob], bool] = _never,
        batch: Callable[[str], int] = _one,
    ) -> None:
        """`weights`: of places whose jobs do not weigh 1."""
        self._cores = cores
        self._free = dict(slots)
        self._queues: dict[str, deque[HostJob]] = {place: deque() for place in slots}
        self._contention = contention
        self._begins = begins  # called with a job and the time before it runs
        self._dead = dead  # nobody waits for it: dropped from the queue, as Triton's `timeout` does
        self._batch = batch  # windows that one instance may take at once
        given = weights or {}
        crowds = {w: _Crowd(w) for w in {given.get(place, 1.0) for place in slots}}
        self._crowd_of = {place: crowds[given.get(place, 1.0)] for place in slots}
        self._crowds = sorted(crowds.values(), key=lambda c: -c.weight)
        self._at_ms = 0.0
        self._serial = 0

    def submit(self, job: HostJob, now_ms: float) -> None:
        if self._free[job.place]:
            self._start(job, now_ms)
        else:
            self._queues[job.place].append(job)

    def next_ms(self) -> float:
        """Return when the next job ends if nothing else happens."""
        soonest_ms = inf
        for crowd in self._crowds:
            if crowd.running:
                in_ms = (crowd.running[0][0] - crowd.done_ms) / crowd.rate
                soonest_ms = min(soonest_ms, in_ms)
        return self._at_ms + max(0.0, soonest_ms)

    def finish(self, now_ms: float) -> HostJob:
        """End the job that is due, let the next of its queue begin, and return it."""
        due = min(self._crowds, key=_Crowd.next_in_ms)
        self._advance(now_ms)
        _, _, job = heappop(due.running)
        self._free[job.place] += 1
        self._reckon()
        queue = self._queues[job.place]
        while queue and self._free[job.place]:
            waiting = queue.popleft()
            if not self._dead(waiting):
                self._start(self._joined(waiting, queue), now_ms)
        return job

    def _joined(self, first: HostJob, queue: deque[HostJob]) -> HostJob:
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

    def _start(self, job: HostJob, now_ms: float) -> None:
        self._advance(now_ms)
        self._begins(job, now_ms)
        self._free[job.place] -= 1
        self._serial += 1
        crowd = self._crowd_of[job.place]
        heappush(crowd.running, (crowd.done_ms + job.work_ms, self._serial, job))
        self._reckon()

    def _advance(self, now_ms: float) -> None:
        passed_ms = now_ms - self._at_ms
        for crowd in self._crowds:
            crowd.done_ms += passed_ms * crowd.rate
        self._at_ms = now_ms

    def _reckon(self) -> None:
        """Give each job its share; what one cannot use, a core being the most, is the others'."""
        left, weights, running = float(self._cores), 0.0, 0
        for crowd in self._crowds:
            weights += crowd.weight * len(crowd.running)
            running += len(crowd.running)
        for crowd in self._crowds:  # the heaviest first: who is capped frees the most
            n = len(crowd.running)
            if not n:
                continue
            share = min(1.0, left * crowd.weight / weights)
            crowd.rate = share / self._contention if running > 1 else share
            left -= share * n
            weights -= crowd.weight * n
