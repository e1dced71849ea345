"""`bertier-optimize qnli`: question and sentence pairs in the form of GLUE's QNLI, from a question set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from optimizer.data import qnli, question_files
from optimizer.study.config import ConfigError


def add(commands: Any) -> None:
    """Add the command."""
    text = (
        "make a file of question and sentence pairs, as GLUE's QNLI has them, from a question set: does the sentence"
        " hold the answer?"
    )
    command = commands.add_parser("qnli", help=text, description=text)
    command.add_argument(
        "--data", required=True, help="question set, or a known name such as squad_v2"
    )
    command.add_argument("--out", required=True, type=Path, help="file to write: .tsv")
    command.set_defaults(run=_make)


def _make(args: argparse.Namespace) -> dict[str, Any]:
    if args.out.suffix != ".tsv":
        raise ConfigError(f"--out {args.out}: tab-separated lines are written; name a file .tsv")
    found = qnli.made_of(question_files.of_study(args.data))
    qnli.write(found.pairs, args.out)
    counts, groups = qnli.counts_of(found.pairs), len({pair.group for pair in found.pairs})
    table = Table("label", "rows", title=f"{args.out}: {len(found.pairs)} rows of {groups} groups")
    for label, n in counts.items():
        table.add_row(label, str(n))
    console = Console()
    console.print(table)
    console.print(
        f"{found.n_questions} questions gave two rows each; {found.unanswerable} have no answer,"
        f" {found.without_sentence} none in a single sentence, or no other sentence\n"
        "Train on it with a study file that has\n\n"
        '[task]\nname = "qnli"\ntext = "question"\ntext_pair = "sentence"\ngroup = "group"\n',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return {"rows": len(found.pairs), "labels": counts, "groups": groups}
