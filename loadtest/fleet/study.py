"""What is simulated: a day, every way to choose, views of every age, a lost zone, a rollout, for fleets of any size.

Runs are listed before the first begins, so that progress is known. Fleets of more than LEARNING_HOSTS begin with
what the gateways of a smaller fleet have learned under the same load. Events of many seconds are simulated with at
most EVENT_HOSTS.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.errors import BertierError
from gateway.triton_server.guard import end_with_parent
from loadtest.fleet import day, measures
from loadtest.fleet.choices import OURS, Choice, View
from loadtest.fleet.day import Segment, Slice
from loadtest.fleet.engine import POLL_MS, Event, Rollout, Setup, ZoneLost, simulate
from loadtest.fleet.kinds import Kind
from loadtest.fleet.layout import Layout
from loadtest.fleet.measures import ClassFound, Cost, Found
from loadtest.lab.mixes import Mix
from loadtest.lab.prediction import Prediction

BUSY = 1.75  # of the peak's load: where choosing well matters most
POLLS_MS = (50.0, 200.0, 1_000.0, 5_000.0)
LEARNING_HOSTS, EVENT_HOSTS = 10, 9
MANY_HOSTS, FEW_SLICES_H = 100, 8  # more hosts than that: fewer slices of the day
MOST_HOSTS = 10_000
BESIDE_MANY = (Choice.TURNS, Choice.LEAST_OWN, Choice.TWO_OWN, Choice.LEAST_ALL)  # compared there
# CPU time of loading all shipped variants into one Triton, and of the golden answers that each gateway asks there.
LOAD_MS, CHECK_MS = 3_000.0, 500.0
WINDOW_MS = 500.0  # of what is shown over time
CALM_MS, LOST_MS, AFTER_MS = 3_000.0, 10_000.0, 7_000.0
ROLL_AT_MS, ROLL_WAVES = 3_000.0, 5


class BadFleet(BertierError):
    """A fleet that cannot be simulated; the message says what to change."""


@dataclass(frozen=True)
class Options:
    """What the caller of a study may choose, beside hosts and SLOs. Raises: BadFleet."""

    hosts: tuple[int, ...] = (1, 10, 100, 1000)
    tritons_each: int = 10
    peak_load: float = 2.0
    crowds: int = 3  # a day
    requests: int = 2_000  # of a slice, at least
    per_host: int = 10  # of a slice, for each host, at least
    poll_ms: float = POLL_MS
    seed: int = 17

    def __post_init__(self) -> None:
        if not self.hosts or min(self.hosts) < 1 or max(self.hosts) > MOST_HOSTS:
            raise BadFleet(f"--hosts: each must be between 1 and {MOST_HOSTS:,}")
        if self.tritons_each < 1:
            raise BadFleet("--tritons-per-gateway: it must be at least 1")
        if not 0 < self.peak_load <= 10:
            raise BadFleet("--peak-load: it must be above 0 and at most 10")
        if self.crowds < 0 or self.crowds * day.CROWD_S > 86_400:
            raise BadFleet(
                f"--crowds: between 0 and {86_400 / day.CROWD_S:g} of them fit into a day"
            )
        if self.requests < 100:
            raise BadFleet("--requests: a slice needs at least 100")
        if self.per_host < 1:
            raise BadFleet("--requests-per-host: it must be at least 1")
        if self.poll_ms < 0:
            raise BadFleet("--poll-ms: it must be 0 (never) or more")

    def requests_of(self, hosts: int) -> int:
        """Return how many requests a slice has: some for each host, at least."""
        return max(self.requests, self.per_host * hosts)


@dataclass(frozen=True)
class Run:
    """One simulation."""

    part: str  # of the page
    kind: Kind
    hosts: int
    piece: Slice
    choice: Choice = OURS
    tritons_each: int = 10
    poll_ms: float = POLL_MS
    events: tuple[Event, ...] = ()
    name: str = ""

    @property
    def n_expected(self) -> float:
        return sum(s.seconds * s.rate for s in self.piece.segments)

    @property
    def layout(self) -> Layout:
        return Layout.of(self.hosts, self.tritons_each)

    def setup(self) -> Setup:
        return Setup(self.kind, self.layout, self.choice, self.poll_ms, self.events)


@dataclass(frozen=True)
class Result:
    """A run and what became of it; `points`: attainment over time, of runs with an event."""

    run: Run
    found: Found
    points: Sequence[tuple[float, float]] = ()

    def as_json(self) -> dict[str, Any]:
        run, found = self.run, self.found
        return {
            "part": run.part,
            "kind": run.kind.name,
            "hosts": run.hosts,
            "slice": run.piece.name,
            "load": round(run.piece.load, 3),
            "seconds": round(run.piece.seconds, 2),
            "choice": str(run.choice),
            "tritons_per_gateway": run.layout.tritons_each,
            "poll_ms": run.poll_ms,
            "name": run.name,
            "requests": found.n,
            "attained": round(found.attained, 4),
            "refused": round(found.refused, 4),
            "lost": round(found.lost, 4),
            "p50_ms": round(found.p50_ms, 1),
            "p99_ms": round(found.p99_ms, 1),
        }


@dataclass(frozen=True, slots=True)
class Played:
    """What one run found, and how many requests were simulated for it."""

    found: Found
    points: Sequence[tuple[float, float]]
    n_requests: int


@dataclass
class Study:
    """The runs of a study and, once they are played, their results."""

    options: Options
    kinds: tuple[Kind, ...]
    mix: Mix
    results: list[Result] = field(default_factory=list)
    n_requests: int = 0
    _learned: dict[tuple[Any, ...], Prediction] = field(default_factory=dict)

    def runs(self) -> list[Run]:
        """Return everything that is simulated."""
        return [*self._days(), *self._choices(), *self._ages(), *self._zones(), *self._rollouts()]

    def play(self, say: Callable[[str], None], workers: int = 1) -> None:
        """Simulate everything in `workers` processes; `say` reports the progress."""
        runs = self.runs()
        total, done = sum(r.n_expected for r in runs), 0.0
        say(f"{len(runs)} runs of {total:,.0f} requests in all")
        began = said = time.monotonic()
        for number, played in enumerate(self._played(len(runs), workers), start=1):
            run = runs[number - 1]
            self.results.append(Result(run, played.found, played.points))
            self.n_requests += played.n_requests
            done += run.n_expected
            if time.monotonic() - said > 10 and done > 0.02 * total:  # before, nothing is known
                said = time.monotonic()
                left_s = (said - began) / done * (total - done)
                say(f"{number} of {len(runs)} runs, {left_s:.0f} s left")

    def _played(self, n: int, workers: int) -> Iterator[Played]:
        """Yield what became of each run, in their order."""
        if workers == 1:
            yield from map(self.result, self.runs())
            return
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, _begin, (self,)) as pool:
            yield from pool.imap(_play, range(n))

    def result(self, run: Run) -> Played:
        """Simulate one run."""
        options, world = self.options, run.kind.world
        trace = run.piece.trace(self.mix, world.recording, options.seed)
        learns = run.hosts > LEARNING_HOSTS or bool(run.events)
        learned, n_learned = self._learn(run) if learns else (None, 0)
        fates, _ = simulate(run.setup(), trace, options.seed, learned)
        beside_ms = world.gateway_cpu_ms if run.kind.gateway_cores else 0.0
        found = measures.measure(world, trace, fates, run.piece.counted_ms, beside_ms)
        points = measures.over_time(world, trace, fates, WINDOW_MS) if run.events else []
        return Played(found, points, len(trace) + n_learned)

    def _learn(self, run: Run) -> tuple[Prediction, int]:
        """Return what a gateway of a small fleet learns under the run's first load, and the requests simulated.

        No request is simulated if the result is already known.
        """
        hosts = min(run.hosts, LEARNING_HOSTS)
        rate = run.piece.segments[0].rate / run.hosts
        key = (run.kind.name, run.choice, run.poll_ms, hosts, run.tritons_each, round(rate, 6))
        if key in self._learned:
            return self._learned[key], 0
        options = self.options
        seconds = min(30.0, options.requests / (rate * hosts))
        piece = replace(run.piece, segments=(Segment(seconds, rate * hosts),))
        trace = piece.trace(self.mix, run.kind.world.recording, options.seed + 1)
        smaller = replace(run, hosts=hosts, events=())
        _, self._learned[key] = simulate(smaller.setup(), trace, options.seed + 1)
        return self._learned[key], len(trace)

    # What is run.

    def _run(self, part: str, kind: Kind, hosts: int, piece: Slice, **more: Any) -> Run:
        more = {"tritons_each": self.options.tritons_each, "poll_ms": self.options.poll_ms} | more
        return Run(part, kind, hosts, piece, **more)

    def _steady(self, kind: Kind, hosts: int, load: float) -> Slice:
        name, capacity = f"load {load:g}", hosts * kind.capacity_per_s
        return day.steady(name, load, capacity, self.options.requests_of(hosts))

    def _days(self) -> Iterator[Run]:
        options = self.options
        for kind in self.kinds:
            for hosts in options.hosts:
                capacity, n = hosts * kind.capacity_per_s, options.requests_of(hosts)
                every_h = day.EVERY_H if hosts <= MANY_HOSTS else FEW_SLICES_H
                for piece in day.hours(options.peak_load, capacity, n, every_h):
                    yield self._run("day", kind, hosts, piece)
            for hosts in sorted({min(h, LEARNING_HOSTS) for h in options.hosts}):
                if options.crowds:
                    capacity = hosts * kind.capacity_per_s
                    n = 4 * options.requests_of(hosts)  # a crowd needs time to be felt
                    piece = day.crowd(options.peak_load, capacity, n, options.crowds)
                    yield self._run("crowd", kind, hosts, piece)

    def _choices(self) -> Iterator[Run]:
        """Every way to choose: on all fleets of the first kind, on a small one of the others."""
        peak = self.options.peak_load
        several = [h for h in self.options.hosts if h > 1]
        for kind in self.kinds:
            for hosts in several if kind is self.kinds[0] else several[:1]:
                for load in (peak, BUSY * peak) if hosts <= MANY_HOSTS else (BUSY * peak,):
                    piece = self._steady(kind, hosts, load)
                    yield from self._chosen(kind, hosts, piece)

    def _chosen(self, kind: Kind, hosts: int, piece: Slice) -> Iterator[Run]:
        for choice in Choice if hosts <= MANY_HOSTS else BESIDE_MANY:
            if self._may_see(choice, piece):
                yield self._run("choice", kind, hosts, piece, choice=choice)
        if self.options.tritons_each < hosts <= MANY_HOSTS:
            for choice in (Choice.TURNS, Choice.LEAST_OWN, Choice.TWO_OWN):
                yield self._run("all", kind, hosts, piece, choice=choice, tritons_each=hosts)

    def _may_see(self, choice: Choice, piece: Slice) -> bool:
        """Return whether there are polls in the slice, where the choice is by what they saw."""
        poll_ms = self.options.poll_ms
        return choice.view is not View.POLLED or 0 < 3 * poll_ms <= piece.seconds * 1e3

    def _ages(self) -> Iterator[Run]:
        """Views of every age on few hosts, where the slice is long enough for the oldest."""
        hosts = min(max(self.options.hosts), LEARNING_HOSTS)
        if hosts == 1:
            return
        kind = self.kinds[0]
        load, n = BUSY * self.options.peak_load, 2 * self.options.requests_of(hosts)
        piece = day.steady(f"load {load:g}", load, hosts * kind.capacity_per_s, n)
        for choice in (Choice.LEAST_POLLED, Choice.TWO_POLLED):
            for poll_ms in POLLS_MS:
                yield self._run("age", kind, hosts, piece, choice=choice, poll_ms=poll_ms)
        for choice in (Choice.TURNS, Choice.LEAST_OWN, Choice.TWO_OWN):
            yield self._run("age", kind, hosts, piece, choice=choice)
        for choice in (Choice.LEAST_ALL, Choice.TWO_ALL):
            yield self._run("age", kind, hosts, piece, choice=choice)

    def _zones(self) -> Iterator[Run]:
        hosts = min(max(self.options.hosts), EVENT_HOSTS)
        if hosts < 3:
            return
        kind, load = self.kinds[0], self.options.peak_load
        seconds = (CALM_MS + LOST_MS + AFTER_MS) / 1e3
        piece = self._long("zone", kind, hosts, load, seconds)
        for silent in (False, True):
            event = ZoneLost(CALM_MS, CALM_MS + LOST_MS, silent)
            name = "silent" if silent else "refused"
            for choice in (Choice.TURNS, Choice.LEAST_OWN, Choice.TWO_OWN):
                yield self._run(
                    "zone", kind, hosts, piece, choice=choice, events=(event,), name=name
                )

    def _rollouts(self) -> Iterator[Run]:
        hosts = min(max(self.options.hosts), EVENT_HOSTS)
        if hosts < 2:
            return
        kind, load = self.kinds[0], self.options.peak_load
        work_ms = LOAD_MS + CHECK_MS * min(self.options.tritons_each, hosts)
        for waves in (1, ROLL_WAVES):
            gap_ms = 1.2 * work_ms
            event = Rollout(ROLL_AT_MS, waves, gap_ms, work_ms)
            seconds = (ROLL_AT_MS + waves * gap_ms + gap_ms) / 1e3
            piece = self._long("rollout", kind, hosts, load, seconds)
            name = "all at once" if waves == 1 else f"in {waves} waves"
            yield self._run("rollout", kind, hosts, piece, events=(event,), name=name)

    def _long(self, name: str, kind: Kind, hosts: int, load: float, seconds: float) -> Slice:
        rate = load * hosts * kind.capacity_per_s
        counted_ms = (1_000.0, 1e3 * seconds)
        segments = (Segment(seconds, rate),)
        return Slice(name, day.PEAK_HOUR, load, 0.0, segments, counted_ms)

    # What came of it.

    def of(self, part: str) -> list[Result]:
        return [r for r in self.results if r.run.part == part]

    def day(self, kind: Kind, hosts: int) -> dict[str, ClassFound]:
        """Return the classes of a whole day: steady hours and crowds by the seconds that they stand for."""
        small = min(hosts, LEARNING_HOSTS)
        slices = []
        for result in self.results:
            run = result.run
            same = run.kind is kind and (
                (run.part == "day" and run.hosts == hosts)
                or (run.part == "crowd" and run.hosts == small)
            )
            if same:
                first, last = run.piece.counted_ms
                weight = run.piece.stands_for_s * 1e3 / (last - first) * hosts / run.hosts
                slices.append((result.found.classes, weight))
        return measures.day_of(slices)

    def costs(self, kind: Kind, hosts: int) -> Mapping[str, Cost]:
        """Return what a million requests of each class cost on a fleet."""
        return measures.costs(self.day(kind, hosts), 24 * hosts * kind.price_per_hour)


_study: Study | None = None  # of a worker's process


def _begin(study: Study) -> None:
    global _study
    _study = study
    end_with_parent()


def _play(number: int) -> Played:
    assert _study is not None
    return _study.result(_study.runs()[number])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
