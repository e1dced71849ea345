"""`run --teacher X --data D --budget T` chooses a study that a reader can open, and runs it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from optimizer.budget import record, schedule
from optimizer.budget.questions import sources_of
from optimizer.cli import main, one_call
from optimizer.cli.one_call import ChosenStudy
from optimizer.data.splits import StudyQuestions
from optimizer.study import config as configs
from optimizer.study.config import StudyConfig
from tests.end_to_end.conftest import REPOSITORY
from tests.optimizer.budget.test_record import GIVEN
from tests.optimizer.conftest import question_set


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "My Questions.json"
    path.write_text(json.dumps(question_set(120)))
    return path


@pytest.fixture(scope="module")
def words(questions: Path, tiny_backbone: Path) -> list[str]:
    """The command, with a run folder beside the questions."""
    given = ["--teacher", str(tiny_backbone), "--data", str(questions)]
    return ["run", *given, "--run-dir", str(questions.parent / "run"), "--dry-run"]


@pytest.fixture(scope="module")
def chosen(words: list[str]) -> Path:
    """A study that was chosen: measured with the real steps of a tiny model."""
    assert main.main([*words, "--budget", "1h"]) == 0
    return Path(words[words.index("--run-dir") + 1])


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main.main(words) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("mine.tsv", "text\tlabel\n"),
        ("mine.jsonl", '{"question": "Who?", "sentence": "Ada.", "label": 0}\n'),
    ],
)
def test_labelled_texts_are_sent_to_a_study_file(
    name: str, row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has the command that takes them."""
    (tmp_path / name).write_text(row)
    words = ["run", "--teacher", "minilm", "--budget", "1h", "--data", str(tmp_path / name)]
    said = error_of(words, capsys)
    assert "holds labelled texts, and --budget chooses studies of questions alone" in said
    assert f"run --study mine.toml --data-dir {tmp_path} --teacher minilm" in said


def test_the_study_file_is_one_that_run_takes(chosen: Path, questions: Path) -> None:
    """Its data is the user's file, its repository is in the run folder, its teacher the folder named."""
    study = configs.read(chosen / record.STUDY)
    assert study.name == "my-questions"
    assert [source.source for source in study.data] == [str(questions.resolve())]
    assert study.publish.repository == chosen / "model_repository"
    assert study.publish.leave_out_weak
    assert study.finished
    assert study.search
    assert study.search.trials == schedule.TRIALS[1]


def test_the_same_command_measures_nothing_again(
    chosen: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows the same plan, in 80 columns, and ends with one JSON line."""
    files = [chosen / name for name in (record.STUDY, record.FILE)]
    before = [file.read_bytes() for file in files]
    assert main.main([*words, "--budget", "60m"]) == 0
    assert [file.read_bytes() for file in files] == before
    *table, last = capsys.readouterr().out.splitlines()
    assert list(json.loads(last)) == sorted(
        ["measure", "teacher", "distill", "search", "finish", "publish"]
    )
    shown = [line for line in table if not line.startswith("Study file")]
    assert max(map(len, shown)) <= one_call.WIDTH
    for stage in json.loads(last):
        assert any(f" {stage} " in line for line in shown)


def test_another_budget_says_what_to_do(
    chosen: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And the chosen study stays as it is."""
    said = error_of([*words, "--budget", "2h"], capsys)
    assert "--budget 60m instead of 2h" in said
    assert "another --run-dir" in said
    assert (chosen / record.STUDY).exists()


def test_a_budget_that_is_too_small_names_one_that_is_enough(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained, and nothing is written that a second try would find."""
    again = [*words, "--run-dir", str(tmp_path / "small"), "--budget", "0.2m"]
    said = error_of(again, capsys)
    assert "too small" in said
    assert "give --budget" in said
    assert not (tmp_path / "small" / record.FILE).exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--budget", "soon"], "such as 30m, 2h or 1d"),
        (["--budget", "2h", "--study", "other.toml"], "give no --study"),
        (["--budget", "2h", "--teacher", "second"], "one --teacher"),
        (["--budget", "1h", "--data", "absent.json"], "absent.json: no such file"),
        ([], "need --budget"),
    ],
)
def test_wrong_calls_give_a_one_line_error(
    words: list[str], given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before torch is even imported, where that is possible."""
    assert said in error_of([*words, *given], capsys)


def test_too_few_questions_are_refused_before_anything_is_measured(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who has thirty questions should not wait for a study that cannot be certified."""
    few = tmp_path / "few.json"
    few.write_text(json.dumps(question_set(10)))
    run = ["--data", str(few), "--budget", "1h", "--run-dir", str(tmp_path / "run")]
    assert "too few questions" in error_of([*words, *run], capsys)


def test_it_ends_with_how_to_serve_and_a_question_of_the_user(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The request is one that the published plans can meet, on a text that trained nothing."""
    record.write(tmp_path, record.Record(GIVEN, "", (schedule.Stage("publish", "x", 1.0),), (), {}))
    config = StudyConfig(name="own", largest_name="own", data=sources_of(questions))
    args = argparse.Namespace(study=None, model_repository=REPOSITORY)
    one_call.finished(ChosenStudy(args, tmp_path, StudyQuestions(config, Path("data"))))
    said = capsys.readouterr().out
    assert f"bertier serve --model-repository {REPOSITORY}" in said
    assert "curl -i http://127.0.0.1:8080/v1/answer" in said
    assert "Story" in said
