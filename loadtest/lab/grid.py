"""The grid of cells: each one policy on one trace, a file of its own, so that a killed run goes on.

Cells lie in a folder named by all that decides them: catalog, answers, host, length, the code of
policy, predictor and lab. What is changed is run anew; what is not, is not.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gateway.triton_server.guard import end_with_parent
from loadtest.lab import contenders, mixes, oracle, traces
from loadtest.lab.contenders import Tuned
from loadtest.lab.engine import simulate
from loadtest.lab.measures import measure
from loadtest.lab.traces import Trace
from loadtest.lab.world import World

Say = Callable[[str], None]
Measured = dict[str, Any]
_DECIDING = (
    "gateway.catalog.schema",
    "gateway.domain",
    "gateway.latency.correction",
    "gateway.latency.model",
    "gateway.latency.queueing",
    "gateway.request.cascade",
    "gateway.routing.admission_queue",
    "gateway.routing.policy",
)
_SHOWING = (
    "capacity",
    "commands",
    "frontier",
    "grid",
    "page",
    "recording",  # what it found decides, and is counted as such
    "replay",
    "tables",
    "verdicts",
)


@dataclass(frozen=True, slots=True)
class Grid:
    """What to run; loads are shares of the capacity of the dearest variant answering everything."""

    arrivals: tuple[str, ...] = ("poisson", "gamma4", "mmpp", "flash")
    loads: tuple[float, ...] = (0.3, 0.6, 0.9, 1.2, 2.0, 5.0)
    mixes: tuple[str, ...] = ("mixed",)
    seeds: int = 3
    seconds: float = 60.0
    policies: tuple[str, ...] = ()  # empty: everyone

    @classmethod
    def full(cls) -> Grid:
        """Return the grid of `make prove`: hours on one core."""
        arrivals = ("poisson", "gamma2", "gamma4", "gamma8", "mmpp", "ramp", "flash")
        return cls(arrivals, mixes=("mixed", "standard"), seeds=10)

    def places(self) -> Iterator[Place]:
        for mix, arrival, load, seed in product(
            self.mixes, self.arrivals, self.loads, range(self.seeds)
        ):
            yield Place(mix, arrival, load, seed)


@dataclass(frozen=True, slots=True)
class Place:
    """One trace of the grid."""

    mix: str
    arrival: str
    load: float
    seed: int

    def trace(self, world: World, seconds: float) -> Trace:
        rate = self.load * world.capacity_per_s
        mix = mixes.MIXES[self.mix](world.catalog)
        return traces.make(self.arrival, rate, seconds, mix, world.recording, self.seed)

    @property
    def file_stem(self) -> str:
        return f"{self.mix}-{self.arrival}-{self.load:g}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Cell:
    """What one policy did with one trace."""

    place: Place
    policy: str
    found: Measured

    def value(self, measure_name: str) -> float:
        measured = self.found["all"].get(measure_name)
        return float("nan") if measured is None else float(measured)


def run(
    world: World, grid: Grid, root: Path, say: Say, workers: int = 1
) -> tuple[list[Cell], Path]:
    """Return every cell, played now or read from its file, and the folder they lie in."""
    folder = root / _digest(world, grid.seconds)
    folder.mkdir(parents=True, exist_ok=True)
    policies = grid.policies or (*contenders.names(world), oracle.NAME)
    tuned = {m: _tuned(world, m, folder, policies, say) for m in grid.mixes}
    stage = _Stage(world, grid.seconds, policies, tuned, folder)
    _play_all(stage, list(grid.places()), say, workers)
    cells = [_read(folder, place, p) for place in grid.places() for p in policies]
    return cells, folder


@dataclass(frozen=True, slots=True)
class _Stage:
    """What is the same for all places of a grid."""

    world: World
    seconds: float
    policies: Sequence[str]
    tuned: Mapping[str, Tuned]
    folder: Path

    def play(self, place: Place) -> None:
        """Play what is not there yet, one policy after the other."""
        trace: Trace | None = None
        for policy in self.policies:
            path = _path(self.folder, place, policy)
            if not path.exists():
                trace = trace if trace is not None else place.trace(self.world, self.seconds)
                tuned = self.tuned[place.mix]
                _write(path, _measured(self.world, place, policy, tuned, trace))


def _play_all(stage: _Stage, places: Sequence[Place], say: Say, workers: int) -> None:
    """Play every place, the longest first; each worker is a process of its own."""
    began = said = time.monotonic()
    todo = sorted(places, key=lambda p: -p.load)
    total_load, done_load = sum(p.load for p in todo), 0.0
    with _Workers(stage, workers) as pool:
        for done, place in enumerate(pool.play(todo), start=1):
            done_load += place.load
            if time.monotonic() - said > 10:
                said = time.monotonic()
                left_s = (said - began) / done_load * (total_load - done_load)
                say(f"{done} of {len(todo)} traces, {left_s:.0f} s left")


class _Workers:
    """Processes that play places; none beside this one where one is enough."""

    def __init__(self, stage: _Stage, workers: int) -> None:
        self._stage = stage
        self._pool = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = context.Pool(workers, _begin, (stage,))

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()

    def play(self, places: Iterable[Place]) -> Iterator[Place]:
        """Yield each place once it is played, in any order."""
        if self._pool is not None:
            yield from self._pool.imap_unordered(_play, places)
            return
        for place in places:
            self._stage.play(place)
            yield place


_stage: _Stage | None = None  # of a worker's process


def _begin(stage: _Stage) -> None:
    global _stage
    _stage = stage
    end_with_parent()


def _play(place: Place) -> Place:
    assert _stage is not None
    _stage.play(place)
    return place


def _path(folder: Path, place: Place, policy: str) -> Path:
    return folder / "cells" / f"{place.file_stem}-{policy.replace(' ', '_')}.json"


def _read(folder: Path, place: Place, policy: str) -> Cell:
    return Cell(place, policy, json.loads(_path(folder, place, policy).read_text()))


def _measured(world: World, place: Place, policy: str, tuned: Tuned, trace: Trace) -> Measured:
    began = time.process_time()
    if policy == oracle.NAME:
        bound = asdict(oracle.bound(world, trace, place.seed))
        found: Measured = {"all": {"n": len(trace), "in_time": bound["joint"], **bound}}
        return found | {"classes": {}, "plans": {}, "cpu_s": time.process_time() - began}
    contender = contenders.make(policy, world, tuned, place.seed)
    fates = simulate(world, trace, contender, place.seed)
    cpu_s = time.process_time() - began
    return measure(world, trace, fates) | {"cpu_s": cpu_s}


def _tuned(world: World, mix: str, folder: Path, policies: Iterable[str], say: Say) -> Tuned:
    path = folder / f"tuned-{mix}.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in contenders.tunable(policies) if name not in known]
    if missing:
        known |= contenders.tune(world, mixes.MIXES[mix](world.catalog), missing, say)
        _write(path, known)
    return known


def _write(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    part.write_text(json.dumps(value))
    os.replace(part, path)


def _digest(world: World, seconds: float) -> str:
    decides = [
        repr(world.catalog.plans),
        repr([(v.name, v.profile) for v in world.catalog.variants]),
    ]
    decides += [world.recording.digest, str(world.cores), world.times, str(world.gateway_cpu_ms)]
    decides += [str(world.escalation_cpu_ms), str(world.refusal_cpu_ms), str(world.gateway_weight)]
    decides += [str(world.contention), str(world.replicas), str(seconds)]
    if world.times == "recorded":
        decides.append(repr(world.base_ms))
    return hashlib.sha256("\n".join([*decides, *_code()]).encode()).hexdigest()[:16]


def _code() -> Iterator[str]:
    """Return the source of every module whose change may change a cell."""
    for name, module in sorted(sys.modules.items()):
        in_lab = name.startswith("loadtest.lab.") and name.rpartition(".")[2] not in _SHOWING
        if (in_lab or name in _DECIDING) and module.__file__ is not None:
            yield Path(module.__file__).read_text()
