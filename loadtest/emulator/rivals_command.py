"""`bertier-loadtest rivals`: the lab's contenders on a real gateway with Triton, the same traces in turns."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.host import usable_cores
from gateway.errors import BertierError
from loadtest.drive.open_loop import MAX_LAG_MS
from loadtest.emulator.served import Played, Player
from loadtest.lab import contenders, mixes, recording, rivals, traces
from loadtest.lab.arrivals import PROCESSES
from loadtest.lab.contenders import OURS
from loadtest.lab.engine import End
from loadtest.lab.measures import measure
from loadtest.lab.traces import Trace
from loadtest.lab.world import Times, World
from loadtest.sample import questions
from loadtest.stack import SERVE, Stack, fresh_stack, hardware

# Clipper batches, and the shipped models answer alone: without batches it is a fixed plan.
LEFT_OUT = (rivals.ClipperStyle.name, rivals.Random.name)
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One trace under one policy. Shares are of all requests."""

    policy: str
    load: float
    by_certificate: float
    joint: float
    answered: float
    core_ms: float  # CPU time of gateway and Triton, an answer
    p95_ms: float


class UnknownRival(BertierError):
    """No such contender; the message lists those there are."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "compare rival policies with ours in a real gateway with Triton, on the same traces"
    command = commands.add_parser("rivals", help=text, description=text)
    add = command.add_argument
    add("--policies", nargs="+", help="default: all but those that batch or choose at random")
    add("--arrivals", nargs="+", choices=PROCESSES, default=["poisson", "mmpp"])
    add("--loads", nargs="+", type=float, default=[0.9, 1.2, 2.0, 5.0])
    add("--mix", choices=mixes.MIXES, default="mixed")
    add("--seconds", type=float, default=20.0, help="seconds of each trace")
    add("--rounds", type=int, default=2, help="each with a seed of its own; policies take turns")
    add("--questions", type=int, help="of the shipped sample; default: all")
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--folder", type=Path, default=Path("runs/rivals"), help="folder of the measurements")
    add(
        "--max-send-lag-ms",
        type=float,
        default=MAX_LAG_MS,
        help="limit on the p99 send lag of a valid run",
    )
    command.set_defaults(run=_rivals)


def _rivals(args: argparse.Namespace) -> tuple[bool, Result]:
    catalog = store.read_questions(args.model_repository)
    recorded = recording.of_catalog(
        args.model_repository, None, args.questions, args.folder / "recorded"
    )
    world = World(catalog, recorded, usable_cores(), Times.RECORDED)
    policies = policies_of(world, args.policies)
    tuned = _tuned(world, args, contenders.tunable(policies))
    contest = _Contest(args, world, tuned)
    cells = [
        cell
        for seed in range(1, args.rounds + 1)
        for policy in policies
        for cell in contest.play(policy, seed)
    ]
    return _show(world, cells, tuned, contest.complaints)


def policies_of(world: World, asked: Sequence[str] | None) -> list[str]:
    """Return who takes part. Raises: UnknownRival."""
    known = [name for name in contenders.names(world) if name not in LEFT_OUT]
    unknown = [name for name in asked or () if name not in known]
    if unknown:
        raise UnknownRival(f"--policies {unknown[0]!r}: it must be one of {', '.join(known)}")
    return list(asked or known)


def _tuned(world: World, args: argparse.Namespace, wanted: Iterable[str]) -> dict[str, Any]:
    """Return each rival's best parameters, found in the lab on traces of its own; kept."""
    path = args.folder / f"tuned-{world.recording.digest[:12]}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in wanted if name not in found]
    if missing:
        mix = mixes.MIXES[args.mix](world.catalog)
        found |= contenders.tune(world, mix, missing, _say)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found))
        os.replace(part, path)
    return found


class _Contest:
    """One gateway at a time, every trace of a round on it."""

    def __init__(self, args: argparse.Namespace, world: World, tuned: dict[str, Any]) -> None:
        self._args, self._world, self._tuned = args, world, tuned
        examples = questions(None, args.questions)
        self._player = Player(world, examples, args.folder, args.max_send_lag_ms)
        self.complaints: dict[str, str] = {}

    def play(self, policy: str, seed: int) -> list[Cell]:
        """Return a cell a trace; a gateway is started only for what is not kept."""
        cells = []
        with ExitStack() as running:
            start = _once(lambda: running.enter_context(self._gateway(policy)))
            for process in self._args.arrivals:
                for load in self._args.loads:
                    name = f"{policy.replace(' ', '-')}-{process}-{load:g}-{seed}"
                    trace = self._trace(process, load, seed)
                    found = self._player.kept(name, trace)
                    found = found or self._player.play(name, trace, start())
                    if found.complaint:
                        self.complaints[name] = found.complaint
                    cells.append(_cell(self._world, policy, load, trace, found))
        return cells

    def _gateway(self, policy: str) -> Any:
        args = self._args
        if policy == OURS:
            return fresh_stack(args.model_repository, program=SERVE)
        flags = ["--policy", policy, "--parameters", json.dumps(self._tuned.get(policy, {}))]
        flags += ["--recorded", str(args.folder / "recorded")]
        if args.questions is not None:
            flags += ["--questions", str(args.questions)]
        return fresh_stack(
            args.model_repository, *flags, program=("loadtest.emulator.rival_gateway",)
        )

    def _trace(self, process: str, load: float, seed: int) -> Trace:
        world, args = self._world, self._args
        mix = mixes.MIXES[args.mix](world.catalog)
        rate = load * world.capacity_per_s
        return traces.make(process, rate, args.seconds, mix, world.recording, seed)


def _once(make: Callable[[], Stack]) -> Callable[[], Stack]:
    made: list[Stack] = []

    def given() -> Stack:
        if not made:
            made.append(make())
        return made[0]

    return given


def _cell(world: World, policy: str, load: float, trace: Trace, played: Played) -> Cell:
    found = measure(world, trace, played.fates)["all"]
    spent, answered = played.spent, played.count(End.ANSWERED)
    return Cell(
        policy,
        load,
        found["by_certificate"],
        found["joint"],
        answered / len(trace),
        (spent.gateway + spent.triton) / max(1, answered),
        found["p95_ms"] or float("inf"),
    )


def _show(
    world: World, cells: Sequence[Cell], tuned: dict[str, Any], complaints: dict[str, str]
) -> tuple[bool, Result]:
    by_load: dict[str, dict[str, dict[str, float]]] = {}
    for load in sorted({c.load for c in cells}):
        table = Table(
            *("policy", "kept by certificate", "lowest, highest", "by class means", "answered"),
            *("core ms an answer", "p95 ms"),
            title=f"load {load:g}: {load * world.capacity_per_s:.0f} requests/s",
        )
        rows = {
            name: [c for c in cells if (c.policy, c.load) == (name, load)] for name in _names(cells)
        }
        for name, own in sorted(rows.items(), key=lambda r: -_mean(r[1], "by_certificate")):
            kept = [c.by_certificate for c in own]
            table.add_row(
                *(name, f"{_mean(own, 'by_certificate'):.3f}", f"{min(kept):.3f}, {max(kept):.3f}"),
                *(f"{_mean(own, 'joint'):.3f}", f"{_mean(own, 'answered'):.3f}"),
                *(f"{_mean(own, 'core_ms'):.1f}", f"{_mean(own, 'p95_ms'):.0f}"),
            )
            by_load.setdefault(f"{load:g}", {})[name] = {
                field: round(_mean(own, field), 4) for field in Cell.__slots__[2:]
            }
        Console(width=150).print(table)
    print(f"load 1: {world.capacity_per_s:.1f} requests/s; {hardware()}; tuned {json.dumps(tuned)}")
    for name, complaint in complaints.items():
        print(f"NOT VALID: {name}: {complaint}")
    leads = {
        load: max(found, key=lambda n: found[n]["by_certificate"])
        for load, found in by_load.items()
    }
    return not complaints, {"loads": by_load, "ahead": leads, "complaints": complaints}


def _names(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(c.policy for c in cells))


def _mean(cells: Sequence[Cell], field: str) -> float:
    return float(np.mean([getattr(c, field) for c in cells]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
