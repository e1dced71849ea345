"""Memory that the workers of one gateway share: their states, their work in flight, and quotas.

Each worker writes its own slot only, without locks; a reader may see a job a moment late. Quotas are read and
written under a lock that the kernel releases when its owner dies. Knows no prediction and no protocol.
"""

from __future__ import annotations

import fcntl
import heapq
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from hashlib import blake2b

MAX_JOBS = 2_048  # of one worker; more are not seen by the others
MAX_QUOTAS = 4_096
_STATE, _IN_FLIGHT, _CONNECTIONS, _JOBS = range(4)  # words of a slot's head
_HEAD = 8  # words
_IDS, _VARIANTS, _WINDOWS, _WINDOW_MS, _BEGAN_MS = range(5)  # columns of jobs
_SLOT = _HEAD + 5 * MAX_JOBS  # words
_WORD = 8  # bytes


class State(IntEnum):
    """What a worker does."""

    ABSENT = 0
    STARTING = 1  # it listens, and has no models yet
    JOINING = 2  # it does not listen yet: others answer
    READY = 3
    LEAVING = 4


class SharedMemory:
    """The slots of all workers, then the quotas; mapped by the parent and by every worker."""

    def __init__(self, n_workers: int, number: int | None = None) -> None:
        """`number`: the file descriptor of a memory that exists; None: make one."""
        size = (n_workers * _SLOT + 2 * MAX_QUOTAS) * _WORD
        self.n_workers = n_workers
        self.number = _new_file(size) if number is None else number
        memory = memoryview(mmap.mmap(self.number, size))
        self.words = memory.cast("q")
        self.numbers = memory.cast("d")  # the same memory

    def slot(self, worker: int) -> Slot:
        return Slot(self, worker)

    def slots(self) -> list[Slot]:
        return [Slot(self, worker) for worker in range(self.n_workers)]

    @property
    def quotas(self) -> Quotas:
        return Quotas(self, self.n_workers * _SLOT)


class Slot:
    """What one worker shows to the others."""

    def __init__(self, memory: SharedMemory, worker: int) -> None:
        self.worker = worker
        self._words = memory.words
        self._numbers = memory.numbers
        self._at = worker * _SLOT
        self._next_id = time.time_ns()  # a worker in the place of another does not repeat its ids
        self._free: list[int] = []
        self._high = 0

    @property
    def state(self) -> State:
        return State(self._words[self._at + _STATE])

    @state.setter
    def state(self, state: State) -> None:
        self._words[self._at + _STATE] = state

    @property
    def in_flight(self) -> int:
        """Requests that wait or are admitted."""
        return self._words[self._at + _IN_FLIGHT]

    @in_flight.setter
    def in_flight(self, n: int) -> None:
        self._words[self._at + _IN_FLIGHT] = n

    @property
    def connections(self) -> int:
        """Open HTTP connections."""
        return self._words[self._at + _CONNECTIONS]

    @connections.setter
    def connections(self, n: int) -> None:
        self._words[self._at + _CONNECTIONS] = n

    def clear(self) -> None:
        """Forget a worker that is gone."""
        for word in range(_HEAD):
            self._words[self._at + word] = 0
        for place in range(MAX_JOBS):
            self._words[self._column(_IDS) + place] = 0

    def add_job(self, variant: int, windows: int, window_ms: float, began_ms: float) -> int:
        """Show a job; return its place, or -1 where there is none left."""
        if self._free:
            place = heapq.heappop(self._free)
        elif self._high < MAX_JOBS:
            place, self._high = self._high, self._high + 1
        else:
            return -1
        self._words[self._column(_VARIANTS) + place] = variant
        self._words[self._column(_WINDOWS) + place] = windows
        self._numbers[self._column(_WINDOW_MS) + place] = window_ms
        self._numbers[self._column(_BEGAN_MS) + place] = began_ms
        self._next_id += 1
        self._words[self._column(_IDS) + place] = self._next_id  # last: now it counts
        self._words[self._at + _JOBS] = self._high
        return place

    def remove_job(self, place: int) -> None:
        if place < 0:
            return
        self._words[self._column(_IDS) + place] = 0
        heapq.heappush(self._free, place)
        if len(self._free) == self._high:  # nothing is in flight: readers need not look
            self._free, self._high = [], 0
            self._words[self._at + _JOBS] = 0

    def job_ids(self) -> memoryview:
        """Return the ids of the jobs by place, 0 where there is none."""
        first = self._column(_IDS)
        return self._words[first : first + self._words[self._at + _JOBS]]

    def job(self, place: int) -> tuple[int, int, float, float]:
        """Return variant, windows, ms of a window, and when it began."""
        return (
            self._words[self._column(_VARIANTS) + place],
            self._words[self._column(_WINDOWS) + place],
            self._numbers[self._column(_WINDOW_MS) + place],
            self._numbers[self._column(_BEGAN_MS) + place],
        )

    def _column(self, column: int) -> int:
        return self._at + _HEAD + column * MAX_JOBS


class Workers:
    """The workers of a gateway as one of them sees them; the parent, which is none, has no `own`."""

    def __init__(self, memory: SharedMemory, worker: int | None) -> None:
        slots = memory.slots()
        self.own = None if worker is None else slots[worker]
        self.others = [slot for slot in slots if slot.worker != worker]
        self.quotas = memory.quotas

    @property
    def in_flight(self) -> int:
        """Requests in flight at the others."""
        return sum(slot.in_flight for slot in self.others)

    @property
    def others_ready(self) -> bool:
        return any(slot.state is State.READY for slot in self.others)

    def may_accept(self) -> bool:
        """Whether the next connection is this worker's: it is ready, and has no more than any other one.

        While none is ready, all may: the caller gets an error.
        """
        assert self.own is not None
        if self.own.state is not State.READY:
            return not self.others_ready
        ready = [slot.connections for slot in self.others if slot.state is State.READY]
        return self.own.connections <= min(ready, default=self.own.connections)


class Quotas:
    """When each quota is full again, ms, by a number that stands for its key."""

    def __init__(self, memory: SharedMemory, at: int) -> None:
        self._memory = memory
        self._at = at

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other worker read or write quotas in the block, which does not wait for anything."""
        fcntl.lockf(self._memory.number, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._memory.number, fcntl.LOCK_UN)

    def get(self, key: int) -> float:
        """Return when the quota is full; -inf: it is, as far as anybody knows."""
        place = self._find(key)
        return float("-inf") if place is None else self._memory.numbers[place + 1]

    def set(self, key: int, full_ms: float, now_ms: float) -> None:
        """Remember when the quota is full; one that is full by now needs no place."""
        place = self._find(key)
        if place is None:
            place = self._vacant(key, now_ms)
        self._memory.words[place] = key
        self._memory.numbers[place + 1] = full_ms

    def _places(self, key: int) -> Iterator[int]:
        for nth in range(MAX_QUOTAS):
            yield self._at + 2 * ((key + nth) % MAX_QUOTAS)

    def _find(self, key: int) -> int | None:
        for place in self._places(key):
            found = self._memory.words[place]
            if found == key:
                return place
            if not found:
                return None
        return None

    def _vacant(self, key: int, now_ms: float) -> int:
        """Return a place that is empty, or whose quota is full: forgetting it changes nothing."""
        for place in self._places(key):
            if not self._memory.words[place] or self._memory.numbers[place + 1] <= now_ms:
                return place
        return next(self._places(key))


def number_of(name: str) -> int:
    """Return a number that stands for a name in shared memory, never 0."""
    digest = blake2b(name.encode(), digest_size=_WORD).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


def _new_file(size: int) -> int:
    """Return a file of zeros without a name."""
    if sys.platform == "linux":
        number = os.memfd_create("bertier-workers", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.ftruncate(number, size)
    return number
