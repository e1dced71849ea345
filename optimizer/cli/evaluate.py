"""`bertier-optimize evaluate`: EM and F1, or the scores of labels, of published variants or of a running gateway."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.schema import QA
from optimizer.cli import evaluate_labels
from optimizer.data import evaluate, question_sets
from optimizer.evaluation import remote
from optimizer.publish import tasks
from optimizer.study import config as configs


def add(commands: Any) -> None:
    """Add the command."""
    text = (
        "score a repository's variants or a running gateway: EM and F1 by the SQuAD 2.0 rules, or with --task the"
        " scores of GLUE"
    )
    command = commands.add_parser("evaluate", help=text, description=text)
    command.add_argument(
        "--data",
        required=True,
        help="SQuAD-format file, or a known name such as squad_v2_dev; with --task: .tsv, .jsonl or .parquet",
    )
    evaluate_labels.add_options(command)
    command.add_argument(
        "--variant", help="score only this variant; with --url: sent as SLO-Variant"
    )
    command.add_argument("--url", help="score the gateway at this URL, e.g. http://127.0.0.1:8080")
    command.add_argument("--slo-class", help="with --url: sent as SLO-Class with every request")
    command.add_argument(
        "--concurrency", type=int, default=4, help="with --url: requests at a time; default: 4"
    )
    command.add_argument("--limit", type=int, help="use only the first LIMIT questions")
    command.add_argument(
        "--predictions", type=Path, help="write the answers to this JSON file, by question id"
    )
    command.add_argument("--model-repository", type=Path, default=configs.REPOSITORY)
    command.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    if args.task:
        return evaluate_labels.run(args, _ask_gateway)
    examples = question_sets.load(args.data)[: args.limit]
    if not examples:
        raise question_sets.DataError(f"{args.data}: contains no questions")
    if args.url:
        answers = {args.url: _ask_gateway(args, examples)}
        forced: dict[str, evaluate.Scores] = {}
    else:
        answers, forced = _ask_variants(args, examples)
    if args.predictions:
        written = {
            n: dict(zip((e.id for e in examples), a, strict=True)) for n, a in answers.items()
        }
        args.predictions.write_text(json.dumps(written, ensure_ascii=False, indent=1))
    scores = {name: evaluate.score(examples, found) for name, found in answers.items()}
    _print_scores(scores, forced)
    return {name: evaluate.as_dict(s, forced.get(name)) for name, s in scores.items()}


def _ask_gateway(args: argparse.Namespace, examples: Sequence[remote.Asked]) -> list[str]:
    headers = {"SLO-Latency-Ms": "60000"}
    if args.variant:
        headers["SLO-Variant"] = args.variant
    if args.slo_class:
        headers = headers | {"SLO-Class": args.slo_class}
        headers.pop("SLO-Latency-Ms")
    try:
        asked = remote.ask_all(args.url, examples, headers, args.concurrency, args.task)
        return asyncio.run(asked)
    except ExceptionGroup as group:  # not except*: before Python 3.11.4 it wraps what is raised
        raise next(_leaves(group)) from group


def _leaves(group: ExceptionGroup[Any]) -> Any:
    for exc in group.exceptions:
        yield from _leaves(exc) if isinstance(exc, ExceptionGroup) else (exc,)


def _ask_variants(
    args: argparse.Namespace, examples: Sequence[question_sets.Example]
) -> tuple[dict[str, list[str]], dict[str, evaluate.Scores]]:
    """Return each variant's answers, and its scores on answerable questions when it must answer."""
    repo: Path = args.model_repository
    catalog = tasks.part_of(store.read(repo), QA)
    chosen = [v for v in catalog.variants if args.variant in (None, v.name)]
    if not chosen:
        known = ", ".join(v.name for v in catalog.variants)
        raise question_sets.DataError(
            f"--variant {args.variant}: not in {repo}; its variants are {known}"
        )
    answers, forced = {}, {}
    answerable = [i for i, e in enumerate(examples) if e.answerable]
    for variant in chosen:
        model = store.model_path(repo, variant)
        readings = evaluate.read_all(model, repo / store.TOKENIZER, examples, variant.precision)
        answers[variant.name] = evaluate.answers_of(readings, variant.decoding)
        best = evaluate.forced_answers(readings)
        forced[variant.name] = evaluate.score(
            [examples[i] for i in answerable], [best[i] for i in answerable]
        )
    return answers, forced


def _print_scores(scores: dict[str, evaluate.Scores], forced: dict[str, evaluate.Scores]) -> None:
    table = Table("", "n", "EM", "F1", "HasAns n", "HasAns F1", "NoAns n", "NoAns F1", "forced F1")
    for name, s in scores.items():
        forced_f1 = f"{100 * forced[name].f1:.1f}" if name in forced else "-"
        table.add_row(
            name,
            str(s.n),
            f"{100 * s.exact:.1f}",
            f"{100 * s.f1:.1f}",
            str(s.has_answer_n),
            f"{100 * s.has_answer_f1:.1f}",
            str(s.no_answer_n),
            f"{100 * s.no_answer_f1:.1f}",
            forced_f1,
        )
    Console().print(table)
