"""`bertier-loadtest feedback`: whether the live intervals of feedback cover a truth that is known."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.errors import BertierError
from loadtest.lab import recording
from loadtest.quality import feedback_intervals
from loadtest.quality.feedback_intervals import Case, Counted

LEAST_COVERED = 0.93  # of 500 streams at 95 %, one in fifty cases is below by chance


class FeedbackError(BertierError):
    """A name that is none of the catalog's."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "count how often live intervals of feedback cover the truth, on recorded answers"
    command = commands.add_parser("feedback", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.add_argument("--data", help="SQuAD-format file; default: the shipped sample")
    command.add_argument("--questions", type=int, help="number of questions; default: all")
    command.add_argument("--folder", type=Path, default=Path("runs/lab"), help="keeps answers")
    command.add_argument("--streams", type=int, default=500, help="of each case")
    command.add_argument("--known", type=int, nargs="+", default=[20, 50, 200])
    command.add_argument("--shadow-shares", type=float, nargs="+", default=[0.0, 1.0])
    command.add_argument("--variants", nargs="+", metavar="NAME", help="default: all")
    command.add_argument(
        "--reference", metavar="NAME", help="gives the shadow answers; default: the largest"
    )
    command.add_argument("--seed", type=int, default=1)
    command.set_defaults(run=_feedback)


def _feedback(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    catalog = store.read_questions(args.model_repository)
    reference = args.reference or max(catalog.variants, key=lambda v: v.size_bytes).name
    names = args.variants or [v.name for v in catalog.variants]
    asked = {*names, reference}
    if unknown := asked - {v.name for v in catalog.variants}:
        raise FeedbackError(f"{', '.join(sorted(unknown))}: no variant of {args.model_repository}")
    recorded = recording.of_catalog(
        args.model_repository, args.data, args.questions, args.folder / "recorded", asked
    )
    counted = []
    for name in names:
        answers = feedback_intervals.of_recording(recorded, name, reference)
        shares = args.shadow_shares if name != reference else [0.0]  # it has no shadow answers
        for known, share in product(args.known, shares):
            case = Case(name, known, share)
            counted.append(feedback_intervals.count(answers, case, args.streams, args.seed))
    _show(counted)
    good = all(each.covered >= LEAST_COVERED for each in counted)
    return good, {"streams": args.streams, "rows": [asdict(each) for each in counted]}


def _show(counted: list[Counted]) -> None:
    table = Table(
        *("plan", "F1", "known", "shadow", "covered", "width", "alone: covered", "width"),
        *("worth",),
    )
    for each in counted:
        case = each.case
        table.add_row(
            *(case.plan, f"{each.truth:.3f}", str(case.known), f"{case.shadow_share:g}"),
            *(f"{each.covered:.1%}", f"{each.width:.3f}"),
            *(f"{each.covered_alone:.1%}", f"{each.width_alone:.3f}", f"{each.worth:.2f}"),
        )
    Console().print(table)
