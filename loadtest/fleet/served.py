"""The simulation beside the real thing: two gateways of two workers and two Tritons, all on this machine.

The simulation's inputs are measured on this machine: the CPU time of every recorded question on every variant,
and the CPU time of gateways, client and Tritons for a request beside the models. They are measured on separate
traces, not on the runs that the simulation is compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.host import usable_cores
from gateway.catalog.store import Catalog
from loadtest.drive import load_clients, open_loop, schedule
from loadtest.emulator import comparison
from loadtest.emulator.comparison import Calibration, Costs
from loadtest.emulator.served import Played, Spent, fate_of
from loadtest.faults import fleet as fleets
from loadtest.faults.fleet import Fleet
from loadtest.faults.processes import Program
from loadtest.fleet.engine import Setup, simulate
from loadtest.fleet.kinds import Kind
from loadtest.fleet.layout import Layout
from loadtest.fleet.measures import Found, measure
from loadtest.fleet.study import say
from loadtest.lab import mixes, recording, traces
from loadtest.lab.mixes import Mix
from loadtest.lab.traces import Trace
from loadtest.lab.world import Times, World
from loadtest.sample import questions
from loadtest.stack import hardware
from optimizer.data.question_sets import Example

GATEWAYS, WORKERS, TRITONS = 2, 2, 2
LAYOUT = Layout(TRITONS, GATEWAYS, TRITONS, together=True)
CALIBRATION_LOADS, CALIBRATION_SECONDS, SEED = (0.3, 0.7, 1.4), 8.0, 70_001
WARM_UP_MS = 2_000.0
BELOW_BEST = 0.02  # no floor is closer to the best one


@dataclass(frozen=True, slots=True)
class Compared:
    """One load, served and simulated; `complaint`: why the run says nothing of the server."""

    load: float
    rate: float
    served: Found
    simulated: Found
    complaint: str

    def rows(self) -> list[tuple[str, float, float]]:
        """Return measure, served, simulated."""
        names = ("attained", "answered", "p50_ms", "p99_ms")
        return [(n, getattr(self.served, n), getattr(self.simulated, n)) for n in names]


def run(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    """Compare the simulation with real gateways and Tritons on this machine."""
    examples = questions(args.data, args.questions)
    repository = args.model_repository.resolve()
    catalog = fleets.smallest(repository, args.variants)
    names = {v.name for v in catalog.variants}
    recorded = recording.of_catalog(
        repository, args.data, args.questions, args.folder / "recorded", names
    )
    world = World(catalog, recorded, usable_cores(), Times.RECORDED)
    mix = mix_of(mixes.mixed(store.read(repository)), catalog)
    with (
        tempfile.TemporaryDirectory(prefix="bertier-") as folder,
        fleets.running(Path(folder), repository, args.variants, WORKERS) as fleet,
    ):
        here = _Here(fleet, world, mix, examples)
        costs = here.costs()
        found = [here.compare(costs, load, args.seconds, args.seed) for load in args.loads]
    return _show(world, costs, found)


def mix_of(mix: Mix, catalog: Catalog) -> Mix:
    """Return the mix with floors that a smaller catalog can meet."""
    most = max(plan.certified_f1 for plan in catalog.plans) - BELOW_BEST
    return tuple(
        replace(kind, slo=replace(kind.slo, min_f1=min(kind.slo.min_f1, most)))
        if kind.feasible
        else kind
        for kind in mix
    )


class _Here:
    """Traces for the real fleet and for the simulated one alike."""

    def __init__(self, fleet: Fleet, world: World, mix: Mix, examples: Sequence[Example]) -> None:
        self._fleet, self._world, self._mix, self._examples = fleet, world, mix, examples

    def costs(self) -> Costs:
        """Return what this machine takes beside the models."""
        return comparison.costs(
            [self._calibrated(load, SEED + i) for i, load in enumerate(CALIBRATION_LOADS)]
        )

    def compare(self, costs: Costs, load: float, seconds: float, seed: int) -> Compared:
        trace = self._trace(load, seconds, seed)
        played = self._play(f"load {load:g}", trace)
        rate = len(trace) / seconds
        world = comparison.with_costs(self._world, costs, rate)
        kind = Kind("here", hardware(), world, 0.0, workers=WORKERS)
        simulated, _ = simulate(Setup(kind, LAYOUT), trace, seed)
        counted_ms = (WARM_UP_MS, 1e3 * seconds)
        return Compared(
            load,
            rate,
            measure(self._world, trace, played.fates, counted_ms),
            measure(self._world, trace, simulated, counted_ms),
            played.complaint,
        )

    def _calibrated(self, load: float, seed: int) -> Calibration:
        trace = self._trace(load, CALIBRATION_SECONDS, seed)
        played = self._play(f"calibration, load {load:g}", trace)
        models = comparison.model_ms(self._world, trace, played.fates)
        return Calibration(played, CALIBRATION_SECONDS, *models)

    def _trace(self, load: float, seconds: float, seed: int) -> Trace:
        rate = load * self._world.capacity_per_s
        return traces.make("poisson", rate, seconds, self._mix, self._world.recording, seed)

    def _play(self, name: str, trace: Trace) -> Played:
        say(f"{name}: {len(trace)} requests")
        return asyncio.run(_drive(self._fleet, trace, self._examples, self._world))


async def _drive(fleet: Fleet, trace: Trace, examples: Sequence[Example], world: World) -> Played:
    parts = ([g.program for g in fleet.gateways], fleet.tritons, [fleet.balancer.program])
    before, client_s = [_cpu_ms(part) for part in parts], time.process_time()
    async with load_clients.HttpLoadClient(fleet.http_url) as load_client:
        played = await open_loop.play(schedule.of_trace(trace, examples), load_client)
    gateways, tritons, balancer = (
        _cpu_ms(part) - was for part, was in zip(parts, before, strict=True)
    )
    client_ms = 1e3 * (time.process_time() - client_s) + balancer
    fates = [fate_of(result, world.plans) for result in played.results]
    return Played(fates, Spent(gateways, client_ms, tritons), played.client.complaint())


def _cpu_ms(programs: Sequence[Program]) -> float:
    """Return the CPU time of programs and of all that they started."""
    total_s = 0.0
    for program in programs:
        process = psutil.Process(program.process.pid)
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            total_s += times.user + times.system
    return 1e3 * total_s


def _show(world: World, costs: Costs, found: Sequence[Compared]) -> tuple[bool, dict[str, Any]]:
    table = Table("load", "requests/s", "measure", "served", "simulated", "simulated / served")
    for compared in found:
        for name, served, simulated in compared.rows():
            table.add_row(
                f"{compared.load:g}",
                f"{compared.rate:.0f}",
                name,
                f"{served:.3f}" if served <= 1 else f"{served:.1f}",
                f"{simulated:.3f}" if simulated <= 1 else f"{simulated:.1f}",
                f"{ratio(served, simulated):.2f}",
            )
    Console(width=120).print(table)
    print(
        f"ms of CPU: gateways {costs.answer:.2f} an answer, {costs.refusal:.2f} a refusal,"
        f" {costs.background:.0f} a second beside; client and balancer {costs.client:.2f} a request;"
        f" Tritons {costs.window:.2f} a window beside its model"
    )
    print(f"load 1: {world.capacity_per_s:.1f} requests/s; {hardware()}")
    for compared in found:
        if compared.complaint:
            print(f"NOT VALID: load {compared.load:g}: {compared.complaint}")
    return not any(c.complaint for c in found), {
        "loads": [
            {
                "load": c.load,
                "rate_per_s": c.rate,
                "requests": c.served.n,
                "complaint": c.complaint,
                **{
                    name: {"served": _json(a), "simulated": _json(b), "ratio": _json(ratio(a, b))}
                    for name, a, b in c.rows()
                },
            }
            for c in found
        ],
        "costs_ms": asdict(costs),
        "host": hardware(),
    }


def ratio(served: float, simulated: float) -> float:
    """Return simulated / served; nan where nothing was served."""
    return simulated / served if served else nan


def _json(value: float) -> float | None:
    return value if isfinite(value) else None
