"""`bertier-loadtest lab`, `replay` and `plan`: flags in, a table, files and one JSON line out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.host import usable_cores
from loadtest.lab import capacity, contenders, frontier, page, recording, replay, tables, traces
from loadtest.lab import grid as grids
from loadtest.lab import verdicts as claims
from loadtest.lab.arrivals import PROCESSES
from loadtest.lab.engine import simulate
from loadtest.lab.grid import Grid
from loadtest.lab.measures import measure
from loadtest.lab.mixes import MIXES
from loadtest.lab.verdicts import Verdict
from loadtest.lab.world import GATEWAY_CPU_MS, GATEWAY_WEIGHT, REFUSAL_CPU_MS, Times, World

Result = dict[str, Any]
SHOWN = (
    "joint",
    "by_certificate",
    "in_time",
    "served_f1",
    "compute_ms",
    "rejected",
    "covered_p95",
    "covered_p99",
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the lab's commands to `bertier-loadtest`."""
    default = Grid()
    text = "compare the gateway's policy with every rival, on a virtual clock"
    lab = add_command(commands, "lab", text, _lab)
    lab.add_argument("--arrivals", nargs="+", choices=PROCESSES, default=default.arrivals)
    lab.add_argument("--loads", nargs="+", type=float, default=default.loads)
    lab.add_argument("--mixes", nargs="+", choices=MIXES, default=default.mixes)
    lab.add_argument("--seeds", type=int, default=default.seeds)
    lab.add_argument(
        "--seconds", type=float, default=default.seconds, help="virtual length of a trace"
    )
    lab.add_argument("--policies", nargs="+", default=default.policies, help="default: all")
    lab.add_argument(
        "--workers", type=int, default=usable_cores(), help="processes; default: number of cores"
    )
    lab.add_argument("--full", action="store_true", help="run the grid of `make prove`")
    lab.add_argument("--record", action="store_true", help="record the answers and stop")
    lab.add_argument(
        "--traces", type=Path, help="write the grid's traces to this folder as CSV and stop"
    )
    text = "replay a gateway's recorded decisions with another catalog or policy"
    again = add_command(commands, "replay", text, _replay)
    again.add_argument("record", type=Path, help="JSON lines; see loadtest/lab/replay.py")
    again.add_argument("--policy", default=contenders.OURS)
    text = "find the variants and the number of replicas that meet an SLO on a trace"
    plan = add_command(commands, "plan", text, _plan)
    plan.add_argument("--trace", type=Path, required=True, help="CSV; see loadtest/lab/traces.py")
    plan.add_argument(
        "--target",
        type=float,
        default=0.99,
        help="share of feasible requests that must meet their SLO",
    )


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: Any
) -> argparse.ArgumentParser:
    """Add a command with the flags that `world_of` needs."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--data", help="SQuAD-format file; default: the shipped sample")
    parser.add_argument("--questions", type=int, help="how many of them; default: all")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/lab"), help="folder of the results"
    )
    parser.add_argument("--cores", type=int, default=2, help="cores of the emulated host")
    parser.add_argument("--times", type=Times, choices=list(Times), default=Times.PROFILE)
    parser.add_argument(
        "--gateway-cpu-ms",
        type=float,
        default=GATEWAY_CPU_MS,
        help="CPU ms of the gateway per request",
    )
    parser.add_argument(
        "--refusal-cpu-ms", type=float, default=REFUSAL_CPU_MS, help="CPU ms of a refusal"
    )
    text = "share of a core for the gateway's thread, relative to a model's"
    parser.add_argument("--gateway-weight", type=float, default=GATEWAY_WEIGHT, help=text)
    parser.add_argument(
        "--contention", type=float, default=1.0, help="slow-down when several models run"
    )
    parser.set_defaults(run=run)
    return parser


def world_of(args: argparse.Namespace) -> World:
    """Return the emulated host; models are asked for what is not recorded yet."""
    recorded = recording.of_catalog(
        args.model_repository, args.data, args.questions, args.folder / "recorded"
    )
    return World(
        store.read_questions(args.model_repository),
        recorded,
        args.cores,
        args.times,
        args.gateway_cpu_ms,
        refusal_cpu_ms=args.refusal_cpu_ms,
        gateway_weight=args.gateway_weight,
        contention=args.contention,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lab(args: argparse.Namespace) -> tuple[bool, Result]:
    world = world_of(args)
    if args.record:
        return True, {"questions": len(world.recording), "variants": sorted(world.recording.said)}
    chosen_grid = Grid(
        tuple(args.arrivals),
        tuple(args.loads),
        tuple(args.mixes),
        args.seeds,
        args.seconds,
        tuple(args.policies),
    )
    grid = Grid.full() if args.full else chosen_grid
    if args.traces is not None:
        return True, {"traces": _write_traces(world, grid, args.traces)}
    cells, folder = grids.run(world, grid, args.folder, _say, args.workers)
    spots = tables.spots(cells)
    found = claims.judge(spots, contenders.always_largest(world))
    facts = _facts(world, grid)
    (folder / "lab.html").write_text(page.html(cells, found, facts))
    means = tables.by_load(cells)
    for load, policies in means.items():
        picture = frontier.svg(policies, f"load {load:g} of capacity")
        (folder / f"frontier-{load:g}.svg").write_text(picture)
    return True, _show(cells, found, facts, folder)


def _write_traces(world: World, grid: Grid, folder: Path) -> int:
    places = list(grid.places())
    for place in places:
        trace = place.trace(world, grid.seconds)
        traces.write(folder / f"{place.file_stem}.csv", trace, world.recording)
    return len(places)


def _facts(world: World, grid: Grid) -> dict[str, str]:
    host = world.catalog.variants[0].profile.host
    return {
        "capacity": f"{world.capacity_per_s:.1f} requests/s: {world.all_cores} cores full when the"
        " dearest variant answers everything; loads are shares of it",
        "service times": f"{world.times}, {host.cpu}; gateway {world.gateway_cpu_ms:g} ms of CPU a request,"
        f" {world.refusal_cpu_ms:g} to refuse one unread, its thread weighing {world.gateway_weight:g} models",
        "questions": f"{len(world.recording)}, {world.recording.data}",
        "grid": f"{', '.join(grid.arrivals)}; {grid.seeds} seeds of {grid.seconds:g} s, 95 % intervals over runs",
        "variants": ", ".join(v.name for v in world.catalog.variants),
    }


def _show(
    cells: Sequence[grids.Cell], found: Sequence[Verdict], facts: dict[str, str], folder: Path
) -> Result:
    for name, value in facts.items():
        print(f"{name}: {value}")
    means = tables.by_load(cells)
    for load, policies in means.items():
        table = Table(
            "policy", *(h for n, h, _ in tables.COLUMNS if n in SHOWN), title=f"load {load:g}"
        )
        for policy, row in sorted(policies.items(), key=lambda x: -x[1]["joint"].value):
            shown = [page.plain(row[n], d) for n, _, d in tables.COLUMNS if n in SHOWN]
            table.add_row(policy, *shown)
        Console(width=130).print(table)
    held: dict[str, list[int]] = {}
    for verdict in found:
        counts = held.setdefault(verdict.claim, [0, 0])
        counts[0] += verdict.holds
        counts[1] += 1
    for claim, (good, n) in held.items():
        print(f"{claim}: holds in {good} of {n} spots")
    for verdict in found:
        if not verdict.holds:
            print(f"  fails: {verdict.claim} ({verdict.spot}): {verdict.details}")
    played = [c for c in cells if "n" in c.found["all"] and c.found["plans"]]
    cpu_s = sum(c.found["cpu_s"] for c in played)
    requests = sum(c.found["all"]["n"] for c in played)
    print(f"page: {folder / 'lab.html'}")
    return {
        "claims": {c: {"holds": good, "spots": n} for c, (good, n) in held.items()},
        "joint": {
            f"{load:g}": {p: round(m["joint"].value, 4) for p, m in policies.items()}
            for load, policies in means.items()
        },
        "cells": len(cells),
        "requests": requests,
        "requests_per_core_second": round(requests / cpu_s) if cpu_s else None,
        "page": str(folder / "lab.html"),
    }


def _replay(args: argparse.Namespace) -> tuple[bool, Result]:
    world = world_of(args)
    decisions = replay.read(args.record)
    trace = replay.trace_of(decisions, world.recording, world.catalog.best_floor)
    before = asdict(replay.happened(decisions, world))
    policy = contenders.make(args.policy, world, {}, 0)
    after = measure(world, trace, simulate(world, trace, policy, 0))
    table = Table("", "as recorded", f"with {args.policy}, this catalog")
    for label, then, now in (
        ("in time", "in_time", "in_time"),
        ("in time, floor certified", "by_certificate", "by_certificate"),
        ("refused", "refused", "rejected"),
        ("expired", "expired", "expired"),
    ):
        table.add_row(label, f"{before[then]:.3f}", f"{after['all'][now]:.3f}")
    Console().print(table)
    return True, {"recorded": before, "replayed": after["all"], "plans": after["plans"]}


def _plan(args: argparse.Namespace) -> tuple[bool, Result]:
    world = world_of(args)
    trace = traces.read(args.trace, world.recording, world.catalog.best_floor)
    found = capacity.plan(world, trace, args.target, _say)
    table = Table("target", "replicas", "attained", "core ms an answer", "variants")
    for target, fleet in ((found.target, found.fleet), (found.next_target, found.next_fleet)):
        if fleet is None:
            table.add_row(f"{target:g}", f"> {capacity.MAX_REPLICAS}, or never", "-", "-", "-")
            continue
        numbers = (str(fleet.replicas), f"{fleet.attained:.4f}", f"{fleet.compute_ms:.1f}")
        table.add_row(f"{target:g}", *numbers, ", ".join(fleet.variants))
    Console(width=130).print(table)
    return found.fleet is not None, asdict(found)
