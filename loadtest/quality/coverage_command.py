"""`bertier-loadtest coverage`: do predicted latencies hold, how wide are they, what do they cost."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.host import usable_cores
from gateway.catalog.store import Catalog
from loadtest.cost import decision
from loadtest.quality import coverage, coverage_served
from loadtest.quality.coverage import Row
from loadtest.sample import questions
from loadtest.stack import fresh_stack, hardware

Result = dict[str, Any]
LOADS = (0.0, 0.5, 0.8, 0.95)
SERVED_LOADS = (0.1, 0.5, 0.8)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "measure the coverage of predicted latencies, on a virtual host or (--served) a real gateway"
    command = commands.add_parser("coverage", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.add_argument(
        "--requests", type=int, default=10_000, help="requests at each load (virtual)"
    )
    command.add_argument("--steps", type=int, default=20, help="number of loads (virtual)")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--served", action="store_true", help="measure a fresh gateway")
    command.add_argument(
        "--seconds", type=float, default=60.0, help="seconds at each load (served)"
    )
    command.add_argument(
        "--workers", type=int, default=1, help="worker processes of the gateway (served)"
    )
    command.add_argument(
        "--backend",
        choices=["triton", "embedded"],
        default="triton",
        help="of the gateway (served)",
    )
    command.add_argument("--variants", nargs="+", help="that are asked (served); default: all")
    command.add_argument(
        "--loads",
        type=float,
        nargs="+",
        default=SERVED_LOADS,
        help="shares of the capacity that the profiles predict (served)",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> tuple[bool, Result]:
    catalog = store.read_questions(args.model_repository)
    rows = []
    for row in _served(catalog, args) if args.served else _virtual(catalog, args):
        rows.append(row)
        print(f"{row.load}: {row.n} requests", flush=True)
    _show(rows)
    costs = decision.measure(args.model_repository)
    table = Table("CPU us", "p50", "p99")
    for cost in costs:
        table.add_row(cost.name, f"{cost.p50_us:.1f}", f"{cost.p99_us:.1f}")
    Console().print(table)
    print(f"{decision.PLANS} plans, {decision.IN_FLIGHT} requests in flight, on {hardware()}")
    return all(row.kept for row in rows), {
        "coverage": [_as_json(row) for row in rows],
        "cost_us": {cost.name: [cost.p50_us, cost.p99_us] for cost in costs},
    }


def _as_json(row: Row) -> Result:
    known = {
        name: None if isinstance(value, float) and isnan(value) else value
        for name, value in asdict(row).items()
    }
    return known | {"kept": row.kept}


def _virtual(catalog: Catalog, args: argparse.Namespace) -> Iterator[Row]:
    for share in LOADS:
        yield coverage.steady(catalog, share, args.requests, args.seed)
    yield coverage.after_steps(catalog, args.steps, args.seed)


def _served(catalog: Catalog, args: argparse.Namespace) -> Iterator[Row]:
    examples, cores = questions(None, 500), usable_cores()
    asked = [catalog.variant(n) for n in args.variants or [v.name for v in catalog.variants]]
    flags = ("--workers", str(args.workers), "--backend", args.backend)
    with fresh_stack(args.model_repository, *flags) as stack:
        for share in args.loads:
            answered = coverage_served.ask(stack, asked, cores, examples, share, args.seconds)
            yield coverage.summarize(f"{share:g}", asyncio.run(answered))


def _show(rows: list[Row]) -> None:
    table = Table("load", "n", "in P95", "in P99", "worst cell", "P95 / seen", "worst cell", "kept")
    for row in rows:
        shares = (row.in_p95, row.in_p99, row.worst_cell)
        table.add_row(
            row.load,
            str(row.n),
            *("-" if isnan(x) else f"{100 * x:.1f} %" for x in shares),
            *("-" if isnan(x) else f"{x:.2f}" for x in (row.sharpness, row.worst_sharpness)),
            "yes" if row.kept else "no",
        )
    Console().print(table)
