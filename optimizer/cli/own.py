"""`bertier-optimize certify --data FILE`: certify the published variants on a user's own questions or texts."""

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
from optimizer.cli import evaluate_labels, tables
from optimizer.data import labelled_texts
from optimizer.publish import recertify, tasks
from optimizer.study import config as configs

DELTA = 0.1
MOST_COLUMNS = 6  # of labels, in the table
RUN_FOLDER = Path("runs") / "own-questions"


def certify(args: argparse.Namespace) -> dict[str, Any]:
    """Certify the published variants of a task on the rows of a file, and write the catalog."""
    published = args.model_repository or configs.REPOSITORY
    delta = DELTA if args.delta is None else args.delta
    if not 0 < delta < 1:
        raise configs.ConfigError(f"--delta {delta:g}: must be between 0 and 1")
    columns = evaluate_labels.task_of(args) if args.task else None
    catalog, console = _part_of(store.read(published), args.task), Console()
    if columns is not None:
        evaluate_labels.check_texts(catalog.tasks[0], columns)
    own = own_questions.read(args.data, catalog, columns)
    _say_before(console, own, own_questions.outlook(own.n_clusters, len(catalog.variants), delta))
    folder = args.run_dir or RUN_FOLDER
    found, values = own_questions.certified(published, own, delta, folder)
    result = _show(console, found)
    like = "questions" if own.task == QA else "texts"
    expected = own_questions.outlook_of(found, values, delta)
    _say(console, f"For {like} like these", expected, own)
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


def _part_of(catalog: Catalog, task: str | None) -> Catalog:
    """Return the part of a task; None: of questions. Raises: RepositoryError, ConfigError."""
    if task is None and QA not in catalog.task_names:
        raise configs.ConfigError(
            f"the repository answers no questions; name one of its classifications with --task:"
            f" {', '.join(catalog.task_names)}"
        )
    return tasks.part_of(catalog, task or QA)


def curl(catalog: Catalog, own: OwnQuestions) -> str:
    """Return a request that the certified plans can meet, with a question or text of the file."""
    best = max(catalog.plans, key=lambda plan: plan.certified_f1)
    profiles = [catalog.variant(name).profile for name in best.variants]
    slow_ms = sum(max(cell.p99_ms for cell in profile.cells) for profile in profiles)
    example = min(own.examples, key=lambda e: len(e.context))
    if own.task == QA:
        path, asked = "answer", {"question": example.question, "context": example.context}
    else:
        pair = {} if example.text_pair is None else {"text_pair": example.text_pair}
        path, asked = "classify", {"text": example.text, **pair, "task": own.task}
    body = json.dumps(asked, ensure_ascii=False)
    headers = {
        "SLO-Latency-Ms": f"{max(1000.0, min(60_000.0, 10 * slow_ms)):.0f}",
        "SLO-Min-F1": f"{floor(100 * best.certified_f1) / 100:g}",
        "Content-Type": "application/json",
    }
    named = " ".join(f"-H {shlex.quote(f'{n}: {value}')}" for n, value in headers.items())
    return f"curl -i http://127.0.0.1:8080/v1/{path} {named} -d {shlex.quote(body)}"


def _say_before(console: Console, own: OwnQuestions, expected: list[FloorEstimate]) -> None:
    group, context = own.examples[0].units
    console.print(
        f"{own.name}: {len(own.examples)} {'questions' if own.task == QA else 'texts'} count, from"
        f" {own.n_clusters} {group}s (or {context}s, where the {group} is not known)",
        markup=False,
        soft_wrap=True,
    )
    score = "F1" if own.task == QA else "accuracy"
    typical = f"With a mean {score} of {own_questions.TYPICAL_F1:g}, as is typical"
    _say(
        console,
        typical if own.task == QA else typical.removesuffix(", as is typical"),
        expected,
        own,
    )


def _say(console: Console, given: str, expected: list[FloorEstimate], own: OwnQuestions) -> None:
    floors = ", ".join(f"{e.n_clusters} give about {e.floor:.2f}" for e in expected)
    console.print(
        f"{given}, the certified floor depends on the number of {own.examples[0].units[0]}s: {floors}",
        markup=False,
        soft_wrap=True,
    )


def _show(console: Console, catalog: Catalog) -> dict[str, Any]:
    kinds: tuple[str, ...] = ("answerable", "unanswerable")
    score, constant = "F1", "always no answer"
    if catalog.tasks:
        labels = catalog.tasks[0].labels
        shown = labels if len(labels) <= MOST_COLUMNS else ()
        kinds = tuple(map(labelled_texts.LABELLED.format, shown))
        score, constant = "accuracy", "most frequent label"
    columns = (score, constant, f"{score} >=", *(f"{kind} {score} >=" for kind in kinds))
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
    what, said = "questions", "answering 'no answer' (F1"
    if catalog.tasks:
        what, said = "texts", "giving the most frequent label (accuracy"
    for name, constant in own_questions.worse_than_constant(catalog).items():
        console.print(
            f"WARNING: on these {what} {name} is no better than always {said} {constant:.3f});"
            f" do not use it for such {what}",
            markup=False,
            style="bold red",
        )
