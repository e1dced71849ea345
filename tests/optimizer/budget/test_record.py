"""The same command goes on; another one says what is different and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.budget import record
from optimizer.budget.record import Given, Record
from optimizer.budget.schedule import BudgetError, Stage
from optimizer.data.question_sets import sha256_of

GIVEN = Given(120.0, "teacher", "1234", None, {"a.json": "aa", "b.json": "bb"})


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run folder with a chosen study."""
    study = tmp_path / record.STUDY
    study.write_text("name = 'x'")
    stages = (Stage("teacher", "train", 2.0), Stage("publish", "publish", 1.0))
    record.write(tmp_path, Record(GIVEN, sha256_of(study), stages, ("a note",), {}))
    return tmp_path


def read(folder: Path) -> Record:
    found = record.read(folder)
    assert found is not None
    return found


def test_the_same_command_goes_on(begun: Path) -> None:
    """Two hours are 120 minutes, however they were written."""
    record.check(begun, read(begun), replace(GIVEN, budget_min=2 * 60.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (replace(GIVEN, budget_min=60.0), "--budget 2h instead of 60m"),
        (replace(GIVEN, teacher="other"), "--teacher teacher instead of other"),
        (replace(GIVEN, teacher_identity="5678"), "other files in teacher"),
        (replace(GIVEN, weights="minilm"), "--weights not given instead of minilm"),
        (replace(GIVEN, data={"a.json": "aa", "b.json": "cc"}), "b.json: changed"),
        (replace(GIVEN, data={"a.json": "aa"}), "b.json: added or removed"),
    ],
)
def test_a_changed_command_says_what_changed_and_what_to_do(
    begun: Path, given: Given, said: str
) -> None:
    """Silently going on would train on one thing and report another."""
    with pytest.raises(BudgetError, match="another --run-dir") as found:
        record.check(begun, read(begun), given)
    assert said in str(found.value)


def test_a_changed_study_file_is_run_as_a_study(begun: Path) -> None:
    """The error is the command that runs it."""
    (begun / record.STUDY).write_text("name = 'y'")
    with pytest.raises(BudgetError, match=r"run --study .*study\.toml --run-dir"):
        record.check(begun, read(begun), GIVEN)


def test_the_folder_of_another_study_is_left_alone(tmp_path: Path) -> None:
    """Its stages would be taken for those of the chosen one."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "manifest.json").write_text("{}")
    with pytest.raises(BudgetError, match="another study's run"):
        record.read(tmp_path)


def test_a_damaged_record_says_so(begun: Path) -> None:
    """Not a traceback of a parser."""
    (begun / record.FILE).write_text("{")
    with pytest.raises(BudgetError, match="not readable"):
        record.read(begun)


def test_what_a_stage_took_adds_up_over_kills(begun: Path) -> None:
    """A stage that was stopped has taken its time all the same."""
    with pytest.raises(KeyboardInterrupt), record.timed(begun, "teacher"):
        raise KeyboardInterrupt
    first = read(begun).took_s
    with record.timed(begun, "teacher"):
        pass
    assert set(first) == {"teacher"}
    assert read(begun).took_s["teacher"] >= first["teacher"]
    assert record.as_plain(read(begun))["publish"] == {"planned_min": 1.0, "took_min": None}
