"""`bertier-loadtest emulator`: how far the lab's virtual host is from this real one."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from gateway import catalog as catalogs
from gateway.host import usable_cores
from loadtest import emulated
from loadtest.drive import doors, open_loop, schedule
from loadtest.drive.open_loop import MAX_LAG_MS, Client
from loadtest.drive.outcomes import Result as Served
from loadtest.emulated import Difference, Spent
from loadtest.lab import mixes, recording, traces
from loadtest.lab.arrivals import PROCESSES
from loadtest.lab.engine import Fate
from loadtest.lab.traces import Trace
from loadtest.lab.world import Times, World
from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack, hardware
from optimizer.data import Example

CALIBRATION = ("poisson", 0.4, 20.0, 70_001)  # a trace of its own: process, load, seconds, seed
Result = dict[str, Any]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "the same traces on the lab's engine and on a fresh gateway with Triton, compared"
    command = commands.add_parser("emulator", help=text, description=text)
    add = command.add_argument
    add("--arrivals", nargs="+", choices=PROCESSES, default=["poisson", "mmpp"])
    add("--loads", nargs="+", type=float, default=[0.5, 0.8, 1.2])
    add("--mix", choices=mixes.MIXES, default="mixed")
    add("--seconds", type=float, default=60.0, help="of each trace")
    add("--seed", type=int, default=1)
    add("--questions", type=int, help="of the shipped sample; default: all")
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--folder", type=Path, default=Path("runs/emulator"), help="what is measured; kept")
    add("--max-send-lag-ms", type=float, default=MAX_LAG_MS, help="p99; above, a run is not valid")
    command.set_defaults(run=_emulator)


def _emulator(args: argparse.Namespace) -> tuple[bool, Result]:
    examples = questions(None, args.questions)
    catalog = catalogs.read(args.model_repository)
    recorded = recording.of_catalog(
        args.model_repository, None, args.questions, args.folder / "recorded"
    )
    world = World(catalog, recorded, usable_cores(), Times.RECORDED)
    with fresh_stack(args.model_repository) as stack:
        runs = _Runs(args, stack, examples, world)
        world = runs.calibrated()
        found = {
            f"{process}, load {load:g}": runs.compare(world, process, load)
            for process in args.arrivals
            for load in args.loads
        }
    return _show(world, found, runs.complaints)


class _Runs:
    """Real runs, each played once and kept: a killed command goes on with those that are missing."""

    def __init__(
        self, args: argparse.Namespace, stack: Stack, examples: Sequence[Example], world: World
    ) -> None:
        self._args, self._stack, self._examples, self._world = args, stack, examples, world
        self.complaints: dict[str, str] = {}

    def calibrated(self) -> World:
        """Return the world with what this host takes beside the models."""
        process, load, seconds, seed = CALIBRATION
        trace = self._trace(process, load, seconds, seed)
        fates, spent = self._play("calibration", trace)
        models_ms, windows = emulated.model_ms(self._world, trace, fates)
        spent = replace(spent, models=models_ms)
        dearer = emulated.dearer(self._world.recording, spent.triton_cpu_ms(windows))
        return replace(self._world, recording=dearer, gateway_cpu_ms=spent.gateway_cpu_ms)

    def compare(self, world: World, process: str, load: float) -> list[Difference]:
        args = self._args
        trace = self._trace(process, load, args.seconds, args.seed)
        fates, _ = self._play(f"{process}-{load:g}", trace)
        return emulated.compare(world, trace, fates, args.seed)

    def _trace(self, process: str, load: float, seconds: float, seed: int) -> Trace:
        world = self._world
        mix = mixes.MIXES[self._args.mix](world.catalog)
        rate = load * world.capacity_per_s
        return traces.make(process, rate, seconds, mix, world.recording, seed)

    def _play(self, name: str, trace: Trace) -> tuple[list[Fate], Spent]:
        path = self._args.folder / f"{name}.json"
        key = [len(trace), trace[-1].arrival_ms, self._world.recording.digest]
        if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
            return emulated.from_json(kept["fates"]), Spent(**kept["spent"])
        print(f"{name}: {len(trace)} requests", file=sys.stderr, flush=True)
        results, spent, client = asyncio.run(_drive(self._stack, trace, self._examples))
        complaint = client.complaint(self._args.max_send_lag_ms)
        fates = [emulated.fate_of(r) for r in results]
        if complaint:
            self.complaints[name] = complaint
            return fates, spent
        told = {"key": key, "fates": emulated.as_json(fates), "spent": asdict(spent)}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(told))
        os.replace(part, path)
        return fates, spent


async def _drive(
    stack: Stack, trace: Trace, examples: Sequence[Example]
) -> tuple[tuple[Served, ...], Spent, Client]:
    gateway, client_s = psutil.Process(stack.pid), time.process_time()
    before = _cpu_ms(gateway)
    async with doors.HttpDoor(stack.http_url) as door:
        run = await open_loop.play(schedule.of_trace(trace, examples), door)
    own_ms, others_ms = (b - a for a, b in zip(before, _cpu_ms(gateway), strict=True))
    client_ms = (time.process_time() - client_s) * 1e3
    spent = Spent(len(trace), own_ms, client_ms, others_ms, 0.0)
    return run.results, spent, run.client


def _cpu_ms(gateway: psutil.Process) -> tuple[float, float]:
    """Return the CPU time of the gateway, and of Triton with all its model processes."""
    others = [child.cpu_times() for child in gateway.children(recursive=True)]
    own = gateway.cpu_times()
    return (own.user + own.system) * 1e3, sum((t.user + t.system) * 1e3 for t in others)


def _show(
    world: World, found: dict[str, list[Difference]], complaints: dict[str, str]
) -> tuple[bool, Result]:
    table = Table("trace", "measure", "served", "emulated", "difference", "within aim")
    for name, differences in found.items():
        for difference in differences:
            table.add_row(name, *emulated.table_row(difference))
    Console(width=120).print(table)
    overhead = f"gateway and client {world.gateway_cpu_ms:.2f} ms of CPU a request"
    print(f"{overhead}; capacity {world.capacity_per_s:.1f} requests/s; {hardware()}")
    for name, complaint in complaints.items():
        print(f"NOT VALID: {name}: {complaint}")
    every = [d for differences in found.values() for d in differences]
    good = all(d.within for d in every) and not complaints
    return good, {
        "traces": {name: [emulated.plain(d) for d in ds] for name, ds in found.items()},
        "within": sum(d.within for d in every),
        "of": len(every),
        "gateway_cpu_ms": world.gateway_cpu_ms,
        "complaints": complaints,
    }
