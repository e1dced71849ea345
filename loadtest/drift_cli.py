"""`bertier-loadtest drift`: streams of other questions, and of the same, against the shipped certificates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gateway import catalog as catalogs
from gateway.catalog import Catalog
from gateway.settings import Settings
from loadtest import drift
from loadtest.drift import SHIFTED, UNSHIFTED
from optimizer import data, strata
from optimizer.data import Split

Rows = list[dict[str, Any]]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "do certificates break on shifted streams, and on no others?"
    command = commands.add_parser("drift", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.add_argument(
        "--record",
        nargs=2,
        metavar=("CERTIFYING", "OTHER"),
        help="ask first: the fresh contexts of a set that certifies, and another set's search split",
    )
    command.add_argument("--recording", type=Path, default=drift.RECORDED)
    command.add_argument("--streams", type=int, default=200, help="of each kind")
    command.add_argument("--requests", type=int, default=3000, help="sampled ones of a stream")
    command.add_argument("--seed", type=int, default=1)
    command.set_defaults(run=_drift)


def _drift(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    if args.record:
        certifying, other = args.record
        sets = {UNSHIFTED: _fresh(certifying), SHIFTED: _search(other)}
        drift.record(args.model_repository, sets, args.recording)
    catalog = catalogs.read(args.model_repository)
    rows = judged(catalog, args.recording, args.streams, args.requests, args.seed)
    _show(rows)
    delta = Settings.model_fields["shadow_delta"].default
    good = all(row[f"{UNSHIFTED}_alarms"] <= delta for row in rows)
    agreement = [row for row in rows if row["test"] == "agreement"]
    good = good and all(row[f"{SHIFTED}_alarms"] == 1 for row in agreement)
    return good, {"delta": delta, "streams": args.streams, "rows": rows}


def judged(catalog: Catalog, recording: Path, streams: int, requests: int, seed: int) -> Rows:
    """Return per plan and variant the share of streams of either kind that raise an alarm, and when."""
    series, reference = drift.read(recording, catalog)
    settings = Settings.model_fields
    delta, tolerance = (settings[f"shadow_{name}"].default for name in ("delta", "tolerance"))
    n_plans = sum(plan.agreement is not None for plan in catalog.plans)
    draws = {name: s.draw(requests, streams, seed) for name, s in series.items()}
    rows = []
    for plan in catalog.plans:
        row: dict[str, Any] = {"of": plan.name, "test": "agreement"}
        if plan.agreement is None:
            continue
        for name, found in series.items():
            compared = found.of_plan(plan, reference)
            row |= _rates(name, compared)
            alarms = drift.first_alarms(
                plan.agreement, compared[draws[name]], delta / n_plans, tolerance
            )
            row |= _told(name, alarms)
        rows.append(row)
    for variant in catalog.variants:
        if variant.confidence is None:
            continue
        row = {"of": variant.name, "test": "confidence"}
        for name, found in series.items():
            drawn = found.confidence[variant.name][draws[name]]
            each = delta / len(catalog.variants)
            row |= _told(name, drift.first_shifts(variant.confidence, drawn, each))
        rows.append(row)
    return rows


def _rates(name: str, compared: np.ndarray) -> dict[str, float]:
    """Return the two rates that are tested, and the one they make together, of all questions."""
    same, different, one = (int((compared == i).sum()) for i in range(3))
    return {
        f"{name}_both_answer": (same + different) / (same + different + one),
        f"{name}_same_answer": same / (same + different),
        f"{name}_agree": same / (same + different + one),
    }


def _told(name: str, alarms: np.ndarray) -> dict[str, Any]:
    risen = alarms[alarms >= 0]
    after = int(np.median(risen)) + 1 if len(risen) else None
    return {f"{name}_alarms": float((alarms >= 0).mean()), f"{name}_after": after}


def _fresh(source: str) -> list[data.Example]:
    return [
        e
        for e in data.load(source)
        if data.split_of(e, by_article=True, certifies=True) is Split.CALIBRATE
        and strata.is_fresh(e.context)
    ]


def _search(source: str) -> list[data.Example]:
    found = data.load(source)
    return [e for e in found if data.split_of(e, by_article=False, certifies=False) is Split.SEARCH]


def _show(rows: Rows) -> None:
    table = Table("of", "test", "both answer", "the same", "alarms", "after requests")
    for row in rows:
        table.add_row(
            row["of"],
            row["test"],
            *(_pair(row, what, ".3f") for what in ("both_answer", "same_answer")),
            _pair(row, "alarms", ".1%"),
            _pair(row, "after", "d"),
        )
    Console(width=160).print(table)
    print("each cell: unshifted / shifted stream")


def _pair(row: dict[str, Any], what: str, form: str) -> str:
    found = [row.get(f"{name}_{what}") for name in (UNSHIFTED, SHIFTED)]
    return " / ".join("-" if value is None else format(value, form) for value in found)
