"""A fluid model of the queues on one host: the time until new work would be done behind the work in flight.

Each variant is a line: first come, first served by its instances. All running windows share the
cores alike (processor sharing), so a line delays the others. Pure: times are arguments, ms.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

# A window that ran longer than expected is expected to go on for this share of its work, and of
# the time by which it is late: a server that stalls empties no queue.
_LAST = 0.1
_LATE = 0.5
_AHEAD = (
    2  # windows of one request that are before a new one's: they enter the queue a few at a time
)
_DOCUMENT = 8  # windows of a request: one with more runs beside the others, in their gaps
_HUNG = 4.0  # times its work: an answer that takes longer waits for something else than a core
_LONG = float("inf")


@dataclass(slots=True, eq=False)
class QueuedWork:
    """The windows of one request at one variant."""

    line: Line
    windows: int
    window_ms: float  # of one core
    lanes: int = 0  # instances it occupies; 0: it waits
    began: float = 0.0  # when it left the queue, in work done by one lane (`Queue.served_ms`)
    gone: bool = False
    place: int = -1  # where other workers of this gateway see it

    @property
    def work_ms(self) -> float:
        return self.windows * self.window_ms

    @property
    def is_document(self) -> bool:
        return self.windows > _DOCUMENT

    @property
    def ahead_ms(self) -> float:
        """What of the work is done before that of a request that comes now."""
        return min(self.windows, _AHEAD) * self.window_ms


class Line:
    """The queue of one variant."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.lanes = 0  # wanted by what runs: more than `slots` where several long contexts do
        self.waiting: deque[QueuedWork] = deque()
        self.waiting_ms = 0.0
        self.waiting_ahead_ms = (
            0.0  # of it, what is done before the work of a request that comes now
        )
        self.running: list[QueuedWork] = []
        self.external = 0  # windows of other gateways
        self.window_ms = 0.0  # of the last job

    @property
    def busy(self) -> int:
        """Instances at work."""
        return min(self.slots, self.lanes + self.external)

    @property
    def windows(self) -> int:
        """Windows at work or waiting, those of other gateways included."""
        waiting = sum(job.windows for job in self.waiting if not job.gone)
        return waiting + sum(job.windows for job in self.running) + self.external

    def left_ms(self, served_ms: float) -> tuple[float, float, float]:
        """Return the work left, what of it is before a new request, and the least left of a running job.

        All ms of one core.
        """
        left_ms, ahead_ms, least_ms = 0.0, 0.0, _LONG
        for job, ms in self._running_left_ms(served_ms):
            left_ms += ms
            if job.windows > _AHEAD:  # its lanes are free for others after each window
                ahead_ms += min(ms, max(job.ahead_ms, ms - job.work_ms))
                least_ms = min(least_ms, ms / job.lanes, max(job.window_ms, ms - job.work_ms))
                continue
            ahead_ms += ms
            if ms < least_ms * job.lanes:
                least_ms = ms / job.lanes
        external_ms = self.external * self.window_ms
        return (
            left_ms + self.waiting_ms + external_ms,
            ahead_ms + self.waiting_ahead_ms + external_ms,
            least_ms,
        )

    def turns_ms(self, served_ms: float, cores: int) -> list[float]:
        """Return, for each core that this line wants, the work until it is free for others, ms of one core.

        A request of several windows gives its core away after each of them. A document takes none from the others,
        and a request whose instance hangs uses none.
        """
        found = [self.window_ms] * min(self.external, self.slots) if self.window_ms else []
        stuck = bool(self.running)  # nothing behind instances that all hang uses a core
        for job, ms in self._running_left_ms(served_ms):
            if (served_ms - job.began) * job.lanes > _HUNG * job.work_ms:
                continue
            stuck = False
            if not job.is_document:
                each_ms = ms / job.lanes
                turn_ms = each_ms if job.windows <= _AHEAD else min(each_ms, job.window_ms)
                found += [turn_ms] * job.lanes
        if not stuck:
            for job in self.waiting:
                if not job.gone and not job.is_document:
                    found += [job.window_ms] * min(job.windows, _AHEAD)
        # What waits for few instances leaves the other cores alone.
        return found if self.slots >= cores else sorted(found)[: self.slots]

    def documents_ms(self) -> Iterator[float]:
        """Yield the work of a window of each document, ms of one core."""
        for job in (*self.running, *self.waiting):
            if job.is_document and not job.gone:
                yield job.window_ms

    def _running_left_ms(self, served_ms: float) -> Iterator[tuple[QueuedWork, float]]:
        """Yield each running job with the work left of it, ms of one core."""
        share = self.slots / self.lanes if self.lanes > self.slots else 1.0
        for job in self.running:
            ms = job.windows * job.window_ms - (served_ms - job.began) * job.lanes * share
            last_ms = _LAST * job.window_ms
            if ms < last_ms:
                ms = last_ms - _LATE * ms if ms < 0.0 else last_ms
            yield job, ms

    def start(self, served_ms: float) -> None:
        """Let what waits run on the instances that are free."""
        while self.waiting and self.lanes < self.slots:
            job = self.waiting.popleft()
            if job.gone:
                continue
            self.waiting_ms -= job.work_ms
            self.waiting_ahead_ms -= job.ahead_ms
            job.lanes = min(job.windows, self.slots)
            job.began = served_ms
            self.lanes += job.lanes
            self.running.append(job)
        if not self.waiting:
            self.waiting_ms = self.waiting_ahead_ms = 0.0  # no rounding is left over

    def remove(self, job: QueuedWork) -> None:
        if job.lanes:
            self.lanes -= job.lanes
            self.running.remove(job)
        else:
            self.waiting_ms -= job.work_ms
            self.waiting_ahead_ms -= job.ahead_ms
            job.gone = True


@dataclass(frozen=True, slots=True)
class Backlog:
    """The work in flight at one moment; lines ordered by the end of their work."""

    cores: float
    wait_ms: Mapping[str, float]  # lane time until an instance of the variant is free, if not now
    ends: Sequence[float]  # (lines,) lane time at which each is empty
    done_ms: Sequence[float]  # (lines + 1,) work of the first lines
    lanes: Sequence[int]  # (lines + 1,) instances at work after the first lines ended
    crowded: bool  # are all cores at work?

    def until_done_ms(self, variant: str, slots: int, windows: int, window_ms: float) -> float:
        """Return the expected time until new windows of this variant are answered.

        While a lane does L of work, another line does at most L on each of its lanes (equal shares),
        and the cores do `cores` * t in a time t: t = max(L, work done by all meanwhile / cores).
        """
        lane_ms = -(-windows // slots) * window_ms
        if not self.ends:
            return lane_ms  # instances are no more than cores
        if variant in self.wait_ms:
            lane_ms += self.wait_ms[variant]
        first = bisect_right(self.ends, lane_ms)
        meanwhile_ms = self.done_ms[first] + self.lanes[first] * lane_ms
        shared_ms = (meanwhile_ms + windows * window_ms) / self.cores
        return shared_ms if shared_ms > lane_ms else lane_ms


class Queue:
    """All lines of one host."""

    def __init__(self, cores: float) -> None:
        """`cores`: CPU time per time, 1.5 where a quota says so."""
        self.cores = max(1.0, cores)
        self.slowness = 1.0  # time that a unit of profiled work takes
        self.lines: dict[str, Line] = {}
        self.in_flight = 0
        self.n_begun = 0
        self.idle_since_ms = float("-inf")  # when nothing was in flight any more
        self._served_ms = 0.0  # work that a lane which never rested has done
        self._at_ms = float("-inf")

    def open(self, variant: str, instances: int) -> None:
        """Add a line, or change how many instances an existing one has."""
        slots = max(1, min(ceil(self.cores), instances))
        self.lines.setdefault(variant, Line(slots)).slots = slots

    def add(self, now_ms: float, variant: str, windows: int, window_ms: float) -> QueuedWork:
        self._serve(now_ms)
        line = self.lines[variant]
        job = QueuedWork(line, windows, window_ms)
        line.window_ms = window_ms
        line.waiting.append(job)
        line.waiting_ms += job.work_ms
        line.waiting_ahead_ms += job.ahead_ms
        self.in_flight += 1
        self.n_begun += 1
        line.start(self._served_ms)
        return job

    def remove(self, now_ms: float, job: QueuedWork) -> None:
        self._serve(now_ms)
        job.line.remove(job)
        self.in_flight -= 1
        if not self.in_flight:
            self.idle_since_ms = now_ms
        job.line.start(self._served_ms)

    @property
    def lanes_at_work(self) -> int:
        """Instances at work, of all lines."""
        return sum(line.busy for line in self.lines.values())

    def set_external(self, now_ms: float, windows: Mapping[str, int]) -> None:
        """Set the windows of other gateways at each variant; 0 for one that is not named."""
        self._serve(now_ms)
        for name, line in self.lines.items():
            line.external = max(0, windows.get(name, 0))

    def core_wait_ms(self, now_ms: float) -> float:
        """Return the expected time until a core is free for new work of any variant; 0: one is.

        Documents run beside other work, as many as there are cores; further ones wait like any request.
        """
        if not self.in_flight:  # whatever others do
            return 0.0
        self._serve(now_ms)
        cores = ceil(self.cores)
        turns_ms, documents_ms = list[float](), list[float]()
        for line in self.lines.values():
            turns_ms += line.turns_ms(self._served_ms, cores)
            documents_ms += line.documents_ms()
        turns_ms += documents_ms[cores:]
        n_before = len(turns_ms) - cores + 1  # turns that end before a core is free
        if n_before <= 0:
            return 0.0
        before_ms = sorted(turns_ms)[:n_before]
        return self.slowness * max(before_ms[-1], sum(before_ms) / self.cores)

    def backlog(self, now_ms: float) -> Backlog:
        self._serve(now_ms)
        wait_ms, ends = {}, []
        for name, line in self.lines.items():
            if not line.lanes and not line.external:
                continue
            busy = line.busy
            left_ms, ahead_ms, least_ms = line.left_ms(self._served_ms)
            ends.append((left_ms / busy, left_ms, busy))
            if line.lanes + line.external >= line.slots:
                wait_ms[name] = _wait_ms(line, ahead_ms, least_ms)
        ends.sort()
        done_ms, lanes = [0.0], [sum(busy for _, _, busy in ends)]
        for _, left_ms, busy in ends:
            done_ms.append(done_ms[-1] + left_ms)
            lanes.append(lanes[-1] - busy)
        crowded = lanes[0] >= self.cores
        return Backlog(self.cores, wait_ms, [end for end, _, _ in ends], done_ms, lanes, crowded)

    def _serve(self, now_ms: float) -> None:
        """Let the running windows progress up to now."""
        passed_ms = now_ms - self._at_ms
        if passed_ms <= 0.0:
            return
        self._at_ms = now_ms
        if self.in_flight:
            busy = [line.busy for line in self.lines.values() if line.lanes or line.external]
            crowd = sum(busy) / self.cores
            self._served_ms += passed_ms / (self.slowness * max(1.0, crowd))


def _wait_ms(line: Line, ahead_ms: float, least_ms: float) -> float:
    """Return the lane time until the first instance is free for new work.

    The lanes of a queue end one after the other, on average a window apart: the first of k is free
    (k - 1) / 2 windows of work before all would be.
    """
    if not line.waiting_ms and not line.external:
        return least_ms
    early_ms = 0.5 * (line.slots - 1) * line.window_ms
    return max(0.0, ahead_ms - early_ms) / line.slots
