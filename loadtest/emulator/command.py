"""`bertier-loadtest emulator`: how far the lab's virtual host is from this real one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.host import usable_cores
from loadtest.drive.open_loop import MAX_LAG_MS
from loadtest.emulator import comparison
from loadtest.emulator.comparison import Calibration, Costs, Difference
from loadtest.emulator.served import Played, Player
from loadtest.lab import mixes, recording, traces
from loadtest.lab.arrivals import PROCESSES
from loadtest.lab.traces import Trace
from loadtest.lab.world import Times, World
from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack, hardware
from optimizer.data.question_sets import Example

# Of the traces that costs are measured on, Poisson; their seeds are no run's.
CALIBRATION_LOADS, CALIBRATION_SECONDS, SEED = (0.4, 1.2, 3.0), 15.0, 70_001
Result = dict[str, Any]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "compare the lab's engine with a fresh gateway and Triton on the same traces"
    command = commands.add_parser("emulator", help=text, description=text)
    add = command.add_argument
    add("--arrivals", nargs="+", choices=PROCESSES, default=["poisson", "mmpp"])
    add("--loads", nargs="+", type=float, default=[0.5, 0.8, 1.2, 2.0, 5.0])
    add("--mix", choices=mixes.MIXES, default="mixed")
    add("--seconds", type=float, default=60.0, help="seconds of each trace")
    add("--seed", type=int, default=1)
    add("--questions", type=int, help="of the shipped sample; default: all")
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--folder", type=Path, default=Path("runs/emulator"), help="folder of the measurements")
    add(
        "--max-send-lag-ms",
        type=float,
        default=MAX_LAG_MS,
        help="limit on the p99 send lag of a valid run",
    )
    command.set_defaults(run=_emulator)


def _emulator(args: argparse.Namespace) -> tuple[bool, Result]:
    examples = questions(None, args.questions)
    catalog = store.read_questions(args.model_repository)
    recorded = recording.of_catalog(
        args.model_repository, None, args.questions, args.folder / "recorded"
    )
    world = World(catalog, recorded, usable_cores(), Times.RECORDED)
    with fresh_stack(args.model_repository) as stack:
        runs = _Runs(args, stack, examples, world)
        costs = runs.costs()
        found = {
            f"{process}, load {load:g}": runs.compare(costs, process, load)
            for process in args.arrivals
            for load in args.loads
        }
    return _show(world, costs, found, runs.complaints)


class _Runs:
    """Traces for the lab and for a gateway alike."""

    def __init__(
        self, args: argparse.Namespace, stack: Stack, examples: Sequence[Example], world: World
    ) -> None:
        self._args, self._stack, self._world = args, stack, world
        self._player = Player(world, examples, args.folder, args.max_send_lag_ms)
        self.complaints: dict[str, str] = {}

    def costs(self) -> Costs:
        """Return what this host takes beside the models, measured on traces of their own."""
        return comparison.costs(
            [self._calibrated(load, SEED + i) for i, load in enumerate(CALIBRATION_LOADS)]
        )

    def compare(self, costs: Costs, process: str, load: float) -> list[Difference]:
        args = self._args
        trace = self._trace(process, load, args.seconds, args.seed)
        found = self._play(f"{process}-{load:g}-{args.seed}", trace)
        world = comparison.with_costs(self._world, costs, len(trace) / args.seconds)
        return comparison.compare(world, trace, found.fates, args.seed)

    def _calibrated(self, load: float, seed: int) -> Calibration:
        trace = self._trace("poisson", load, CALIBRATION_SECONDS, seed)
        found = self._play(f"calibration-{load:g}", trace)
        return Calibration(
            found, CALIBRATION_SECONDS, *comparison.model_ms(self._world, trace, found.fates)
        )

    def _trace(self, process: str, load: float, seconds: float, seed: int) -> Trace:
        world = self._world
        mix = mixes.MIXES[self._args.mix](world.catalog)
        rate = load * world.capacity_per_s
        return traces.make(process, rate, seconds, mix, world.recording, seed)

    def _play(self, name: str, trace: Trace) -> Played:
        found = self._player.play(name, trace, self._stack)
        if found.complaint:
            self.complaints[name] = found.complaint
        return found


def _show(
    world: World,
    costs: Costs,
    found: dict[str, list[Difference]],
    complaints: dict[str, str],
) -> tuple[bool, Result]:
    table = Table("trace", "measure", "served", "emulated", "difference", "within aim")
    for name, differences in found.items():
        for difference in differences:
            table.add_row(name, *comparison.table_row(difference))
    Console(width=120).print(table)
    print(
        f"ms of CPU: gateway {costs.answer:.2f} an answer, {costs.refusal:.2f} a refusal,"
        f" {costs.background:.0f} a second beside; client {costs.client:.2f} a request; Triton {costs.window:.2f} a window beside its model"
    )
    print(f"load 1: {world.capacity_per_s:.1f} requests/s; {hardware()}")
    for name, complaint in complaints.items():
        print(f"NOT VALID: {name}: {complaint}")
    every = [d for differences in found.values() for d in differences]
    good = all(d.within for d in every) and not complaints
    return good, {
        "traces": {name: [comparison.plain(d) for d in ds] for name, ds in found.items()},
        "within": sum(d.within for d in every),
        "of": len(every),
        "costs_ms": asdict(costs),
        "complaints": complaints,
    }
