"""`bertier-optimize evaluate --task`: the scores of GLUE for published classifiers or a running gateway."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.store import Task
from optimizer.data import class_scores, evaluate, labelled_texts
from optimizer.data.class_scores import ClassScores
from optimizer.data.labelled_texts import LabelledText
from optimizer.data.question_sets import DataError
from optimizer.evaluation import remote
from optimizer.publish import tasks
from optimizer.study.config import ConfigError, TaskConfig

AskGateway = Callable[[argparse.Namespace, Sequence[LabelledText]], list[str]]


def add_options(command: Any) -> None:
    """Add the options of a classification to the command."""
    command.add_argument(
        "--task", help="classification, by its name in the catalog; default: questions"
    )
    command.add_argument("--text", default="text", help="with --task: column of the text")
    command.add_argument("--text-pair", help="with --task: column of the second text of a pair")
    command.add_argument("--label", default="label", help="with --task: column of the label")


def run(args: argparse.Namespace, ask_gateway: AskGateway) -> dict[str, Any]:
    """Score the labels of a file's texts; the last row is the constant answer. Raises: BertierError."""
    task = task_of(args)
    if args.url:
        known = remote.labels_of(args.url, args.task, {})
        rows = labelled_texts.load(Path(args.data), task, known)[: args.limit]
        labels = {args.url: ask_gateway(args, rows)}
    else:
        rows, labels = _ask_variants(args, task)
    if not rows:
        raise DataError(f"{args.data}: no row to score; give a larger --limit")
    if args.predictions:
        written = {n: dict(zip((r.id for r in rows), a, strict=True)) for n, a in labels.items()}
        args.predictions.write_text(json.dumps(written, ensure_ascii=False, indent=1))
    most = class_scores.majority(rows)
    labels[f"always {most!r}"] = [most] * len(rows)
    found = {name: class_scores.scores(rows, said) for name, said in labels.items()}
    _show(found)
    return {name: {"n": s.n, "accuracy": s.accuracy, **s.others} for name, s in found.items()}


def task_of(args: argparse.Namespace) -> TaskConfig:
    """Return the task and the columns that the options name. Raises: ConfigError."""
    columns = {name: getattr(args, name, None) for name in ("text", "text_pair", "label", "group")}
    given = {key: _column(value) for key, value in columns.items() if value is not None}
    try:
        return TaskConfig.model_validate({"name": args.task, **given})
    except ValidationError as exc:
        raise ConfigError(f"--task {args.task}: {exc.errors()[0]['msg']}") from exc


def check_texts(there: Task, task: TaskConfig) -> None:
    """Raises: DataError where one names a text and the other a pair."""
    if there.pair is not (task.text_pair is not None):
        wanted = (
            "pairs of texts: name the second column with --text-pair" if there.pair else "one text"
        )
        raise DataError(f"--task {there.name}: classifies {wanted}")


def _column(given: str) -> str | int:
    """Return a column's name, or its number in a file whose first line names none."""
    return int(given) if given.isdecimal() else given


def _ask_variants(
    args: argparse.Namespace, task: TaskConfig
) -> tuple[list[LabelledText], dict[str, list[str]]]:
    repo: Path = args.model_repository
    catalog = tasks.part_of(store.read(repo), args.task)
    (there,) = catalog.tasks
    check_texts(there, task)
    chosen = [v for v in catalog.variants if args.variant in (None, v.name)]
    if not chosen:
        known = ", ".join(v.name for v in catalog.variants)
        raise DataError(
            f"--variant {args.variant}: not of {there.name} in {repo}; its variants are {known}"
        )
    rows = labelled_texts.load(Path(args.data), task, there.labels)[: args.limit]
    found = {}
    for variant in chosen:
        model = store.model_path(repo, variant)
        readings = evaluate.read_all(model, repo / store.TOKENIZER, rows, variant.precision)
        found[variant.name] = evaluate.texts_of(rows, readings, variant.decoding)
    return rows, found


def _show(found: dict[str, ClassScores]) -> None:
    columns = (class_scores.F1, class_scores.MACRO_F1, class_scores.MATTHEWS)
    table = Table("", "n", "accuracy", "F1", "macro F1", "Matthews")
    for name, scores in found.items():
        others = (scores.others.get(column) for column in columns)
        cells = ("-" if value is None else f"{100 * value:.1f}" for value in others)
        table.add_row(name, str(scores.n), f"{100 * scores.accuracy:.1f}", *cells)
    Console().print(table)
