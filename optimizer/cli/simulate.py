"""`bertier-optimize simulate`: error rates of floors and of drift alarms on simulated data."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from optimizer.certify import simulation

QUESTIONS = (1, 5, 20)  # on one text


def add(commands: Any) -> None:
    """Add the command."""
    text = (
        "simulate data with a known truth; count how often floors fail and drift alarms are false"
    )
    command = commands.add_parser("simulate", help=text, description=text)
    command.add_argument(
        "--runs", type=int, default=1000, help="number of simulated certifications"
    )
    command.add_argument(
        "--picture",
        type=Path,
        help="write a chart of the floor by number of articles to this SVG file",
    )
    command.set_defaults(run=_simulate)


def _simulate(args: argparse.Namespace) -> dict[str, Any]:
    rows = simulation.failures(args.runs)
    table = Table("data", "unit", "allowed", "observed", "mean floor", title="rate of wrong floors")
    for row in rows:
        rates = (f"{row.delta:g}", f"{row.failed:.3f}", f"{row.mean_floor:.3f}")
        table.add_row(row.world, row.unit, *rates)
    Console().print(table)
    alarms = {n: simulation.false_alarms(n, max(1, args.runs // 5)) for n in QUESTIONS}
    watch = Table(
        "questions on a text", "by question", "by text", title="rate of false alarms, 0.05 allowed"
    )
    for n, (single, by_text) in alarms.items():
        watch.add_row(str(n), f"{single:.3f}", f"{by_text:.3f}")
    Console().print(watch)
    if args.picture:
        points = simulation.floors_by_size(simulation.SIZES, max(1, args.runs // 40))
        args.picture.write_text(simulation.picture(points))
    return {"floors": [asdict(row) for row in rows], "false_alarms": alarms}
