"""The work in flight of the other workers of this gateway, as jobs of this worker's queue.

Every worker shows its jobs in shared memory; a prediction looks there first. So all workers predict from the
same work, as one would.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.clock import now_ms as clock
from gateway.latency.queueing import Queue, QueuedWork
from gateway.shared_memory import Slot, Workers, number_of


class OtherWorkers:
    """Shows own jobs to the others, and keeps theirs in one queue."""

    def __init__(self, workers: Workers, clock: Callable[[], float] = clock) -> None:
        self._own = workers.own
        self._clock = clock
        self._mirrors = [_Mirror(slot) for slot in workers.others]
        self._numbers: dict[str, int] = {}

    def show(self, job: QueuedWork, variant: str, now_ms: float) -> None:
        """Show a job of ours that begins now."""
        if self._own is None:
            return
        number = self._numbers.get(variant)
        if number is None:
            number = self._numbers[variant] = number_of(variant)
        job.place = self._own.add_job(number, job.windows, job.window_ms, now_ms)

    def hide(self, job: QueuedWork) -> None:
        """Show a job of ours no longer."""
        if self._own is not None:
            self._own.remove_job(job.place)

    def follow(self, queue: Queue, now_ms: float | None = None) -> bool:
        """Bring the jobs of the others in the queue up to date; return whether any came or went."""
        changed = False
        for mirror in self._mirrors:
            if mirror.is_stale():
                mirror.follow(queue, self._clock() if now_ms is None else now_ms)
                changed = True
        return changed


class _Mirror:
    """The jobs of one other worker."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._seen = b""
        self._jobs: dict[
            int, QueuedWork | None
        ] = {}  # by id; None: of a variant that is unknown here

    def is_stale(self) -> bool:
        return self._slot.job_ids() != memoryview(self._seen).cast("q")

    def follow(self, queue: Queue, now_ms: float) -> None:
        self._seen = self._slot.job_ids().tobytes()
        found = {each: place for place, each in enumerate(memoryview(self._seen).cast("q")) if each}
        for gone in self._jobs.keys() - found.keys():
            job = self._jobs.pop(gone)
            if job is not None:
                queue.remove(now_ms, job)
        for new in sorted(found.keys() - self._jobs.keys()):  # in the order in which they began
            self._jobs[new] = self._add(queue, found[new], now_ms)

    def _add(self, queue: Queue, place: int, now_ms: float) -> QueuedWork | None:
        number, windows, window_ms, began_ms = self._slot.job(place)
        names = {number_of(name): name for name in queue.lines}
        if number not in names or windows < 1:
            return None
        job = queue.add(now_ms, names[number], windows, window_ms)
        if job.lanes:  # it began before we looked
            job.began -= max(0.0, now_ms - began_ms) / queue.slowness
        return job
