"""`bertier-loadtest drift`: streams of other questions, and of the same, against the shipped certificates."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.settings import Settings
from loadtest.quality import drift, recording
from loadtest.quality.drift import Chances
from loadtest.quality.recording import CERTIFIED, REPORT, SEARCH, SHIFTED, UNSHIFTED, Series

Rows = list[dict[str, Any]]
RECORDED = ("CERTIFYING", "OTHER", "REPORT")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "measure how often certificates raise alarms on shifted and on unchanged streams"
    command = commands.add_parser("drift", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.add_argument(
        "--record",
        nargs=3,
        metavar=RECORDED,
        help="ask first: the held-out splits of a set that certifies, another set's search split, test data",
    )
    command.add_argument("--run-dir", type=Path, default=Path("runs/default"), help="keeps answers")
    command.add_argument("--recording", type=Path, default=recording.RECORDED)
    command.add_argument("--streams", type=int, default=200, help="streams of each kind")
    command.add_argument("--requests", type=int, default=3000, help="sampled requests of a stream")
    command.add_argument(
        "--bursts", type=int, nargs="+", default=[1], help="samples in a row on one context"
    )
    command.add_argument(
        "--statistics",
        choices=(SEARCH, "calibrate"),
        help="compare statistics in place of it, in `--streams` trials with expectations of their own: on"
        " the split they are chosen on, or on the one that certifies",
    )
    command.add_argument("--seed", type=int, default=1)
    command.set_defaults(run=_drift)


def _drift(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    if args.record:
        from loadtest.quality.drift_record import Sources, record

        logging.getLogger("optimizer").setLevel(logging.INFO)  # tells how far the asking is
        record(args.model_repository, Sources(*args.record), args.run_dir, args.recording)
    catalog = store.read(args.model_repository)
    if args.statistics:
        rows = statistics(catalog, args.recording, args.statistics, args.streams, args.seed)
        _show_statistics(rows)
        return True, {"trials": args.streams, "on": args.statistics, "rows": rows}
    recorded, reference = recording.read(args.recording, catalog)
    series = streamed(recorded, args.seed)
    rows = judged(catalog, series, reference, args.streams, args.requests, args.seed, args.bursts)
    _show_alarms(rows)
    delta = Settings.model_fields["shadow_delta"].default
    return _good(rows, delta), {"delta": delta, "streams": args.streams, "rows": rows}


def _good(rows: Rows, delta: float) -> bool:
    """Say whether streams as certified raised alarms no more often than delta, and shifted ones always."""
    apart = [row for row in rows if row["burst"] == 1]
    quiet = all(row["alarms"] <= delta for row in apart if row["stream"] == UNSHIFTED)
    agreement = [row for row in apart if row["test"] == "agreement"]
    return quiet and all(row["alarms"] == 1 for row in agreement if row["stream"] == SHIFTED)


def judged(
    catalog: Catalog,
    recorded: Mapping[str, Series],
    reference: str,
    streams: int,
    requests: int,
    seed: int,
    bursts: Sequence[int] = (1,),
) -> Rows:
    """Return per set, plan and variant the share of streams that raise an alarm, and when."""
    rows: Rows = []
    for (name, found), burst in product(recorded.items(), bursts):
        drawn = drift.draw(found, requests, streams, seed, burst)
        kind = {"stream": name, "burst": burst}
        rows += [kind | row for row in _agreements(catalog, found, reference, drawn)]
        rows += [kind | row for row in _confidences(catalog, found, drawn)]
    return rows


def streamed(recorded: Mapping[str, Series], seed: int) -> dict[str, Series]:
    """Return what streams are drawn from; test data also with as many unanswerable questions as certified."""
    share = recorded[CERTIFIED].unanswerable
    report = recorded[REPORT]
    series = {name: recorded[name] for name in (UNSHIFTED, SHIFTED, REPORT)}
    if share < report.unanswerable:
        series[f"{REPORT}, {share:.0%} unanswerable"] = report.with_unanswerable(share, seed)
    return series


def _agreements(catalog: Catalog, series: Series, reference: str, drawn: np.ndarray) -> Rows:
    watched = [(p, p.agreement) for p in catalog.plans if p.agreement is not None]
    chances = _chances(catalog, len(watched))
    rows: Rows = []
    any_plan = np.full(drawn.shape[1], -1)
    for plan, expected in watched:
        compared = series.of_plan(plan, reference)
        alarms = drift.first_alarms(expected, compared[drawn], chances.alarm, chances.tolerance)
        sooner = (alarms >= 0) & ((any_plan < 0) | (alarms < any_plan))
        any_plan = np.where(sooner, alarms, any_plan)
        rates = drift.WATCHED.rates(compared)
        rows.append({"of": plan.name, "test": "agreement", "rates": rates} | _told(alarms))
    return [*rows, {"of": "any plan", "test": "any"} | _told(any_plan)]


def _confidences(catalog: Catalog, series: Series, drawn: np.ndarray) -> Rows:
    each = Settings.model_fields["shadow_delta"].default / len(catalog.variants)
    return [
        {"of": variant.name, "test": "confidence"}
        | _told(
            drift.first_shifts(variant.confidence, series.confidence[variant.name][drawn], each)
        )
        for variant in catalog.variants
        if variant.confidence is not None
    ]


def _chances(catalog: Catalog, n_watched: int) -> Chances:
    """Return a plan's shares of what the certificates and the gateway's settings allow."""
    delta, tolerance = (
        Settings.model_fields[f"shadow_{name}"].default for name in ("delta", "tolerance")
    )
    expected = catalog.plans[0].certificate.delta / len(catalog.plans)
    return Chances(expected, delta / n_watched, tolerance)


def _told(alarms: np.ndarray) -> dict[str, Any]:
    risen = alarms[alarms >= 0]
    after = int(np.median(risen)) + 1 if len(risen) else None
    return {"alarms": float((alarms >= 0).mean()), "after": after}


def statistics(catalog: Catalog, path: Path, on: str, trials: int, seed: int) -> Rows:
    """Return for each statistic how often it is wrong about contexts as its own, and what it finds of others.

    `on`: the search split, or `calibrate`: what certifies, with its fresh contexts.
    """
    recorded, reference = recording.read(path, catalog)
    own = recorded[SEARCH]
    if on != SEARCH:
        own = recording.joined(recorded[CERTIFIED], recorded[UNSHIFTED])
    plans = [plan for plan in catalog.plans if plan.variants != (reference,)]
    chances = _chances(catalog, len(plans))
    rows: Rows = []
    for each in drift.STATISTICS:
        false, true = drift.trials(
            own, recorded[SHIFTED], plans, reference, each, chances, trials, seed
        )
        medians = np.median(np.where(true < 0, np.inf, true + 1), axis=1)
        rows.append(
            {
                "statistic": each.name,
                "false_alarms": float((false >= 0).any(axis=0).mean()),
                "found_least": float((true >= 0).mean(axis=1).min()),
                "found_last_after": _known(medians.max()),
                "plans": {
                    plan.name: {
                        "false": float((a >= 0).mean()),
                        "found": float((b >= 0).mean()),
                        "after": _known(m),
                    }
                    for plan, a, b, m in zip(plans, false, true, medians, strict=True)
                },
            }
        )
    return rows


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _show_alarms(rows: Rows) -> None:
    """Print a table for each burst: a row for each plan and variant, a column for each stream."""
    streams = list(dict.fromkeys(row["stream"] for row in rows))
    for burst in dict.fromkeys(row["burst"] for row in rows):
        table = Table("of", "test", *streams, title=f"{burst} sample(s) in a row on one context")
        cells: dict[tuple[str, str], list[str]] = {}
        for row in (r for r in rows if r["burst"] == burst):
            cells.setdefault((row["of"], row["test"]), []).append(_cell(row))
        for (of, test), found in cells.items():
            table.add_row(of, test, *found)
        Console(width=170).print(table)
    print(
        "each cell: streams with an alarm, after how many samples (median); both answer, then alike"
    )


def _cell(row: dict[str, Any]) -> str:
    after = "" if row["after"] is None else f" after {row['after']}"
    rates = ", ".join(f"{rate:.3f}" for rate in row.get("rates", ()))
    return f"{row['alarms']:.1%}{after}" + (f"; {rates}" if rates else "")


def _show_statistics(rows: Rows) -> None:
    table = Table("statistic", "false alarms, any plan", "found, least", "found last after")
    for row in rows:
        after = row["found_last_after"]
        table.add_row(
            row["statistic"],
            f"{row['false_alarms']:.1%}",
            f"{row['found_least']:.1%}",
            "never" if after is None else f"{after:.0f}",
        )
    Console().print(table)
