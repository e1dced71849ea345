"""`bertier-optimize run --teacher X --data D --budget 2h`: chooses a study, says what it does, runs it.

The study is a file of the run folder like any other; its stages are those of `run`.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.schema import QA
from optimizer.budget import questions, record, schedule, study_file
from optimizer.budget.record import Given, Record
from optimizer.budget.schedule import BudgetError, Schedule, Stage
from optimizer.certify.own_questions import OwnQuestions
from optimizer.cli import own
from optimizer.data.question_sets import Split, sha256_of
from optimizer.data.splits import StudyQuestions
from optimizer.study import config as configs
from optimizer.study.config import StudyConfig

log = logging.getLogger(__name__)

WIDTH = 80  # columns
MEASURE = "measure"  # the stage before the study's own
BUDGET = (
    "time to spend, such as 30m, 2h or 1d: choose a study for --teacher and --data that fits into it,"
    " show it, and run it"
)
DATA = "with --budget: your questions, a file or a folder of files (JSON, JSON Lines, CSV, Parquet)"
DRY_RUN = "with --budget: choose the study and show it, train nothing"


@dataclass(frozen=True)
class ChosenStudy:
    """A chosen study, about to be run."""

    args: argparse.Namespace  # of `run --study`
    folder: Path
    questions: StudyQuestions

    @property
    def record(self) -> Record:
        found = record.read(self.folder)
        assert found is not None, "it was chosen before"
        return found

    @property
    def plain(self) -> dict[str, Any]:
        """The stages with their minutes, as plain data."""
        return record.as_plain(self.record)

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Note how long a stage takes."""
        return record.timed(self.folder, stage)

    @property
    def published(self) -> Path:
        found: Path | None = self.args.model_repository
        return found or configs.read(self.args.study).publish.repository


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `run` that choose a study."""
    command.add_argument("--budget", metavar="TIME", help=BUDGET)
    command.add_argument("--data", type=Path, metavar="PATH", help=DATA)
    command.add_argument("--dry-run", action="store_true", help=DRY_RUN)


def is_wanted(args: argparse.Namespace) -> bool:
    """Return whether a study is to be chosen. Raises: ConfigError when options are missing or contradict."""
    if args.budget is None:
        if args.data is not None or args.dry_run:
            raise configs.ConfigError("--data and --dry-run need --budget, such as --budget 2h")
        return False
    if args.data is None or len(args.teacher or ()) != 1:
        raise configs.ConfigError(
            "--budget needs --data and one --teacher: run --teacher minilm --data mine.json --budget 2h"
        )
    if args.study != configs.DEFAULT_STUDY or args.backbone is not None:
        raise configs.ConfigError(
            "--budget chooses the study: give no --study and no --backbone (as --teacher an encoder"
            " is fine-tuned first)"
        )
    return True


def prepared(args: argparse.Namespace) -> ChosenStudy:
    """Choose the study, or take the one that the same command chose before, and show it.

    Raises: BertierError.
    """
    budget_min = schedule.minutes_of(args.budget)
    questions.refuse_labelled(args.data, args.teacher[0])
    name = name_of(args.data)
    folder = args.run_dir or Path("runs") / name
    before = record.read(folder)
    if before is not None:
        record.check_budget(folder, before, budget_min)
    config = StudyConfig(name=name, largest_name=name, data=questions.sources_of(args.data))
    given = _given(args, config, budget_min)
    if before is None:
        before = _chosen(args, config, given, folder)
    record.check(folder, before, given)
    chosen = {"study": folder / record.STUDY, "run_dir": folder}
    roles = {"teacher": None, "weights": None}
    call = ChosenStudy(
        argparse.Namespace(**vars(args) | chosen | roles),
        folder,
        StudyQuestions(config, args.data_dir),
    )
    _show(call)
    return call


def name_of(data: Path) -> str:
    """Return the name of a study of this file or folder."""
    stem = data.resolve().name.split(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-") or "study"


def _given(args: argparse.Namespace, config: StudyConfig, budget_min: float) -> Given:
    from optimizer.teachers import checkpoint  # torch takes seconds to import

    files = {source.source: Path(source.source) for source in config.data}
    for path in files.values():
        if not path.exists():
            raise BudgetError(f"--data {path}: no such file or folder")
    teacher = _absolute(args.teacher[0])
    return Given(
        budget_min,
        teacher,
        checkpoint.identity(teacher),
        args.weights and _absolute(args.weights),
        {name: sha256_of(path) for name, path in files.items()},
    )


def _absolute(name: str) -> str:
    """Return a folder's full path, so that the study file runs from anywhere; else the name as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _chosen(args: argparse.Namespace, config: StudyConfig, given: Given, folder: Path) -> Record:
    """Measure this host, choose a study and write it."""
    from optimizer.budget import speeds

    began = time.monotonic()
    log.info("measuring how fast this host trains and answers: minutes on a slow or busy one")
    splits = questions.splits_of(StudyQuestions(config, args.data_dir))
    counts = questions.counts_of(args.data, splits)
    start = speeds.start_of(given.teacher, given.weights)
    found = speeds.measure(start, splits[Split.TRAIN], counts.train)
    taken_min = (time.monotonic() - began) / 60
    fitting = schedule.choose(
        start.role, found.whole, counts, found.seconds, given.budget_min, taken_min
    )
    published = args.model_repository or folder / "model_repository"
    text = study_file.text_of(config.name, start, fitting, config.data, published, found.tokens)
    folder.mkdir(parents=True, exist_ok=True)
    study = folder / record.STUDY
    study.write_text(text)
    configs.read(study)  # what was written is a study
    measured = Stage(MEASURE, "time a few steps of teacher and students on this host", taken_min)
    chosen = Record(
        given,
        sha256_of(study),
        (measured, *fitting.stages),
        notes_of(fitting),
        {MEASURE: round(60 * taken_min, 1)},
    )
    record.write(folder, chosen)
    return chosen


def notes_of(fitting: Schedule) -> tuple[str, ...]:
    """Return what the reader should know of the choice, a sentence each."""
    amount, found = fitting.amount, []
    found.append(f"Chosen: {amount.kind.name}. The teacher {amount.role}.")
    for kind, needed_min in fitting.left_out:
        found.append(
            f"Does not fit: {kind.name}; it needs --budget {schedule.duration(needed_min)}."
        )
    if amount.fraction < 1:
        found.append(
            f"Does not fit: all {amount.counts.train} training questions; {amount.rows} are used."
        )
    if fitting.is_largest:
        found.append(
            "A larger budget would not be used: more training rarely helps on these questions."
        )
    return tuple(found)


def _show(call: ChosenStudy) -> None:
    console, found = Console(width=WIDTH), call.record
    console.print(table_of(found))
    for note in found.notes:
        console.print(note, markup=False, highlight=False)
    console.print(
        f"Study file: {call.args.study} (change it, and run it with --study)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def table_of(found: Record) -> Table:
    """Return the stages with the minutes that they should take, and those that they took so far."""
    total = sum(stage.minutes for stage in found.stages)
    budget = schedule.duration(found.given.budget_min)
    table = Table(title=f"about {total:.0f} minutes, budget {budget}", width=WIDTH)
    table.add_column("stage")
    table.add_column("what")
    table.add_column("plan, min", justify="right")
    table.add_column("took, min", justify="right")
    for stage in found.stages:
        took_s = found.took_s.get(stage.name)
        took = "" if took_s is None else f"{took_s / 60:.1f}"
        table.add_row(stage.name, stage.what, f"{stage.minutes:.1f}", took)
    return table


def finished(call: ChosenStudy) -> dict[str, Any]:
    """Show what each stage took and how to serve the result; return the stages as plain data."""
    console, found = Console(width=WIDTH), call.record
    console.print(table_of(found))
    catalog = store.read(call.published).only(QA)
    unseen = call.questions.certifying(Split.SEARCH)
    request = own.curl(catalog, OwnQuestions(call.questions.config.name, "", unseen))
    console.print(
        f"Serve it:\n\n    bertier serve --model-repository {call.published}\n\nAsk it:\n\n    {request}\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return call.plain
