"""`bertier-loadtest drift`: streams of other questions, and of the same, against the shipped certificates."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.monitoring.sequential_tests import SequentialTests
from gateway.settings import Settings
from loadtest.quality import drift, recording
from loadtest.quality.drift import EQUAL, Chances, Stream
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
    command.add_argument("--streams", type=int, default=100, help="streams of each kind")
    command.add_argument("--requests", type=int, default=3000, help="sampled requests of a stream")
    command.add_argument(
        "--bursts", type=int, nargs="+", default=[1], help="samples in a row on one text"
    )
    command.add_argument(
        "--same-texts",
        action="store_true",
        help="a text that is drawn again is the same one, as of a service with no more texts than were"
        " recorded; default: another one like it",
    )
    command.add_argument(
        "--statistics",
        choices=(SEARCH, "calibrate"),
        help="compare what may count as the same answer, in `--streams` trials with expectations of their"
        " own: on the split it is chosen on, or on the one that certifies",
    )
    command.add_argument("--seed", type=int, default=1)
    command.set_defaults(run=_drift)


def _drift(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    if args.record:
        from loadtest.quality.drift_record import Sources, record

        logging.getLogger("optimizer").setLevel(logging.INFO)  # tells how far the asking is
        record(args.model_repository, Sources(*args.record), args.run_dir, args.recording)
    catalog = store.read_questions(args.model_repository)
    if args.statistics:
        rows = statistics(catalog, args.recording, args.statistics, args.streams, args.seed)
        _show_statistics(rows)
        return True, {"trials": args.streams, "on": args.statistics, "rows": rows}
    recorded, reference = recording.read(args.recording, catalog)
    series = streamed(recorded, args.seed)
    drawn = drawn_from(
        series, args.streams, args.requests, args.seed, args.bursts, same_texts=args.same_texts
    )
    rows = judged(catalog, series, reference, drawn)
    _show_alarms(rows)
    delta = _default("delta")
    return _good(rows, delta), {"delta": delta, "streams": args.streams, "rows": rows}


def _good(rows: Rows, delta: float) -> bool:
    """Say whether streams as certified raised alarms no more often than delta, and shifted ones always."""
    apart = [row for row in rows if row["burst"] == 1]
    no_false_alarms = all(row["alarms"] <= delta for row in apart if row["stream"] == UNSHIFTED)
    agreement = [row for row in apart if row["test"] == "agreement"]
    return no_false_alarms and all(
        row["alarms"] == 1 for row in agreement if row["stream"] == SHIFTED
    )


Drawn = Mapping[tuple[str, int], Sequence[Stream]]  # by set and burst


def drawn_from(
    recorded: Mapping[str, Series],
    streams: int,
    requests: int,
    seed: int,
    bursts: Sequence[int] = (1,),
    *,
    same_texts: bool = False,
) -> Drawn:
    """Return streams of each set and burst."""
    return {
        (name, burst): drift.streams_of(
            series, requests, streams, seed, burst, same_texts=same_texts
        )
        for (name, series), burst in product(recorded.items(), bursts)
    }


def judged(catalog: Catalog, recorded: Mapping[str, Series], reference: str, drawn: Drawn) -> Rows:
    """Return per set, plan and variant the share of streams that raise an alarm, and when."""
    rows: Rows = []
    for (name, burst), streams in drawn.items():
        kind = {"stream": name, "burst": burst}
        rows += [kind | row for row in _judged(catalog, recorded[name], reference, streams)]
    return rows


def streamed(recorded: Mapping[str, Series], seed: int) -> dict[str, Series]:
    """Return what streams are drawn from; test data also with as many unanswerable questions as certified."""
    share = recorded[CERTIFIED].unanswerable
    report = recorded[REPORT]
    series = {name: recorded[name] for name in (UNSHIFTED, SHIFTED, REPORT)}
    if share < report.unanswerable:
        series[f"{REPORT}, {share:.0%} unanswerable"] = report.with_unanswerable(share, seed)
    return series


def _judged(
    catalog: Catalog, series: Series, reference: str, streams: Sequence[Stream]
) -> Iterator[dict[str, Any]]:
    """Yield the alarms of each plan, of any plan, and of each variant's confidence."""
    watches = [_watch(catalog) for _ in streams]
    any_plan = np.full(len(streams), drift.NEVER)
    for plan in (p for p in catalog.plans if p.name in watches[0].agreement):
        found = series.of_plan(plan, reference)
        each = [
            drift.first_alarm(watch.agreement[plan.name], s.texts, EQUAL.of(found[s.rows]))
            for watch, s in zip(watches, streams, strict=True)
        ]
        alarms = np.array(each)
        sooner = (alarms >= 0) & ((any_plan < 0) | (alarms < any_plan))
        any_plan = np.where(sooner, alarms, any_plan)
        yield {"of": plan.name, "test": "agreement", "rates": EQUAL.rates(found)} | _summary(alarms)
    yield {"of": "any plan", "test": "any"} | _summary(any_plan)
    for name in watches[0].confidence:
        each = [
            drift.first_shift(watch.confidence[name], name, series, s)
            for watch, s in zip(watches, streams, strict=True)
        ]
        yield {"of": name, "test": "confidence"} | _summary(np.array(each))


def _watch(catalog: Catalog) -> SequentialTests:
    """Return the tests that a gateway with default settings begins with."""
    watch = SequentialTests(_default("delta"), _default("tolerance"))
    watch.follow(catalog.plans, catalog.variants)
    return watch


def _default(name: str) -> float:
    return float(Settings.model_fields[f"shadow_{name}"].default)


def _chances(catalog: Catalog, n_watched: int) -> Chances:
    """Return a plan's shares of what the certificates and the gateway's settings allow."""
    certificate = catalog.plans[0].certificate
    expected = (certificate.spent or certificate.delta) / len(catalog.plans)
    return Chances(expected, _default("delta") / n_watched, _default("tolerance"))


def _summary(alarms: np.ndarray) -> dict[str, Any]:
    risen = alarms[alarms >= 0]
    after = int(np.median(risen)) + 1 if len(risen) else None
    return {"alarms": float((alarms >= 0).mean()), "after": after}


def statistics(catalog: Catalog, path: Path, on: str, trials: int, seed: int) -> Rows:
    """Return for each statistic how often it is wrong about clusters as its own, and what it finds of others.

    `on`: the search split, or `calibrate`: what certifies, with its held-out articles.
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
        table = Table("of", "test", *streams, title=f"{burst} sample(s) in a row on one text")
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
