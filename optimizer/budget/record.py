"""What a one-call run was begun with, what it planned, and what each stage took: a file of its run folder.

It is written after the study file, so a run that was killed while measuring starts again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from optimizer.budget.schedule import BudgetError, Stage, duration
from optimizer.data.question_sets import sha256_of
from optimizer.study import stages

FILE, STUDY = "budget.json", "study.toml"


@dataclass(frozen=True, slots=True)
class Given:
    """What the command names; another value is another run."""

    budget_min: float
    teacher: str  # folder or name
    teacher_identity: str  # hash of its files
    weights: str | None
    data: Mapping[str, str]  # sha256 by file


@dataclass(frozen=True, slots=True)
class Record:
    """A run that was begun."""

    given: Given
    study_sha256: str
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]  # what was left out, what is not used
    took_s: Mapping[str, float]  # by stage, of all runs of the same command


_RECORD = TypeAdapter(Record)


def read(folder: Path) -> Record | None:
    """Return the record of a run folder; None: nothing was begun there. Raises: BudgetError."""
    path = folder / FILE
    if path.exists():
        try:
            return _RECORD.validate_json(path.read_bytes())
        except ValidationError as exc:
            raise BudgetError(f"{path}: not readable; remove {folder}, or give --run-dir") from exc
    if folder.exists() and any(folder.glob(f"*/{stages.MANIFEST}")):
        raise BudgetError(
            f"{folder}: holds another study's run; give --run-dir a folder of its own"
        )
    return None


def write(folder: Path, record: Record) -> None:
    stages.write_json(folder / FILE, _RECORD.dump_python(record, mode="json"))


def check(folder: Path, record: Record, given: Given) -> None:
    """Raises: BudgetError when the run was begun with other values, or its study file was changed."""
    _refuse(folder, _changes(record.given, given))
    study = folder / STUDY
    if not study.exists() or sha256_of(study) != record.study_sha256:
        raise BudgetError(
            f"{study}: was changed or removed since it was chosen. To run it as it is now:"
            f" bertier-optimize run --study {study} --run-dir {folder}"
        )


def check_budget(folder: Path, record: Record, budget_min: float) -> None:
    """Raises: BudgetError when the run was begun with another budget; known before models are read."""
    _refuse(folder, _changes(record.given, replace(record.given, budget_min=budget_min)))


def _refuse(folder: Path, changed: Sequence[str]) -> None:
    if changed:
        raise BudgetError(
            f"{folder}: was begun with {'; '.join(changed)}. Give the same again to go on, or start anew"
            " with another --run-dir, or after removing the folder"
        )


def _changes(before: Given, now: Given) -> list[str]:
    found = []
    if before.budget_min != now.budget_min:
        found.append(
            f"--budget {duration(before.budget_min)} instead of {duration(now.budget_min)}"
        )
    if before.teacher != now.teacher:
        found.append(f"--teacher {before.teacher} instead of {now.teacher}")
    elif before.teacher_identity != now.teacher_identity:
        found.append(f"other files in {now.teacher}")
    if before.weights != now.weights:
        found.append(
            f"--weights {before.weights or 'not given'} instead of {now.weights or 'none'}"
        )
    if before.data != now.data:
        found.append(f"other questions ({_differing(before.data, now.data)})")
    return found


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = [n for n in sorted({*before, *now}) if before.get(n) != now.get(n)]
    kind = {True: "changed", False: "added or removed"}
    return ", ".join(f"{name}: {kind[name in before and name in now]}" for name in names)


@contextmanager
def timed(folder: Path, stage: str) -> Iterator[None]:
    """Add to the record what a stage takes, also where it is stopped."""
    began = time.monotonic()
    try:
        yield
    finally:
        record = _RECORD.validate_python(json.loads((folder / FILE).read_text()))
        taken_s = record.took_s.get(stage, 0.0) + time.monotonic() - began
        write(folder, replace(record, took_s={**record.took_s, stage: round(taken_s, 1)}))


def as_plain(record: Record) -> dict[str, Any]:
    """Return the stages with planned minutes and those they took, as plain data."""
    return {
        stage.name: {
            "planned_min": round(stage.minutes, 2),
            "took_min": round(record.took_s[stage.name] / 60, 2)
            if stage.name in record.took_s
            else None,
        }
        for stage in record.stages
    }
