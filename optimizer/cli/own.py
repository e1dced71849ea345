"""`bertier-optimize certify --data FILE`: certify the published variants on a user's own questions."""

from __future__ import annotations

import argparse
import json
import shlex
from math import floor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.schema import QA
from gateway.catalog.store import Catalog
from optimizer.certify import own_questions
from optimizer.certify.own_questions import FloorEstimate, OwnQuestions
from optimizer.cli import tables
from optimizer.publish import recertify, tasks
from optimizer.study import config as configs

DELTA = 0.1
RUN_FOLDER = Path("runs") / "own-questions"


def certify(args: argparse.Namespace) -> dict[str, Any]:
    """Certify the published variants on the questions of a file, and write the catalog."""
    published = args.model_repository or configs.REPOSITORY
    delta = DELTA if args.delta is None else args.delta
    if not 0 < delta < 1:
        raise configs.ConfigError(f"--delta {delta:g}: must be between 0 and 1")
    catalog, console = tasks.part_of(store.read(published), QA), Console()
    own = own_questions.read(args.data, catalog)
    _say_before(console, own, own_questions.outlook(own.n_clusters, len(catalog.variants), delta))
    folder = args.run_dir or RUN_FOLDER
    found, values = own_questions.certified(published, own, delta, folder)
    result = _show(console, found)
    _say(console, "For questions like these", own_questions.outlook_of(found, values, delta))
    _warn(console, found)
    if args.dry_run:
        store.note_looks(published, found.looks)
        console.print(
            "the floors are not written (--dry-run); this look at the data is recorded in the catalog",
            markup=False,
        )
        return result
    recertify.write(published, found)
    console.print(
        f"{published}: catalog written; a gateway that serves this repository loads it. To undo:"
        f" bertier-optimize rollback --model-repository {published}\nTo try it:\n\n{curl(found, own)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return result


def curl(catalog: Catalog, own: OwnQuestions) -> str:
    """Return a request that the certified plans can meet, with a question of the file."""
    best = max(catalog.plans, key=lambda plan: plan.certified_f1)
    profiles = [catalog.variant(name).profile for name in best.variants]
    slow_ms = sum(max(cell.p99_ms for cell in profile.cells) for profile in profiles)
    example = min(own.examples, key=lambda e: len(e.context))
    body = json.dumps(
        {"question": example.question, "context": example.context}, ensure_ascii=False
    )
    headers = {
        "SLO-Latency-Ms": f"{max(1000.0, min(60_000.0, 10 * slow_ms)):.0f}",
        "SLO-Min-F1": f"{floor(100 * best.certified_f1) / 100:g}",
        "Content-Type": "application/json",
    }
    named = " ".join(f"-H {shlex.quote(f'{n}: {value}')}" for n, value in headers.items())
    return f"curl -i http://127.0.0.1:8080/v1/answer {named} -d {shlex.quote(body)}"


def _say_before(console: Console, own: OwnQuestions, expected: list[FloorEstimate]) -> None:
    console.print(
        f"{own.name}: {len(own.examples)} questions count, from {own.n_clusters} articles (or contexts,"
        " where the article is not known)",
        markup=False,
        soft_wrap=True,
    )
    _say(console, f"With a mean F1 of {own_questions.TYPICAL_F1:g}, as is typical", expected)


def _say(console: Console, given: str, expected: list[FloorEstimate]) -> None:
    floors = ", ".join(f"{e.n_clusters} give about {e.floor:.2f}" for e in expected)
    console.print(
        f"{given}, the certified floor depends on the number of articles: {floors}",
        markup=False,
        soft_wrap=True,
    )


def _show(console: Console, catalog: Catalog) -> dict[str, Any]:
    kinds = ("answerable", "unanswerable")
    columns = ("F1", "always no answer", "F1 >=", *(f"{kind} F1 >=" for kind in kinds))
    table = Table(tables.whole("plan"), *columns)
    for plan in catalog.plans:
        certificate = plan.certificate
        floors = (certificate.floor_of(kind) for kind in kinds)
        table.add_row(
            plan.name,
            f"{certificate.f1:.3f}",
            f"{certificate.constant_f1 or 0:.3f}",
            f"{certificate.floor:.3f}",
            *("-" if value is None else f"{value:.3f}" for value in floors),
        )
    console.print(table)
    return {
        plan.name: {"floor": plan.certificate.floor, "f1": plan.certificate.f1}
        for plan in catalog.plans
    }


def _warn(console: Console, catalog: Catalog) -> None:
    for name, constant in own_questions.worse_than_silence(catalog).items():
        console.print(
            f"WARNING: on these questions {name} is no better than always answering 'no answer'"
            f" (F1 {constant:.3f}); do not use it for such questions",
            markup=False,
            style="bold red",
        )
