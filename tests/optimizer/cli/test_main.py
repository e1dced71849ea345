"""`bertier-optimize` says what is wrong in one line, and prints one JSON line when it is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModel

from gateway.catalog import store
from gateway.catalog.schema import GoldenLogits
from gateway.domain import Question
from gateway.qa.codec import SpanEncoder
from loadtest.faults import fleet
from optimizer.cli import main
from tests.end_to_end.conftest import REPOSITORY
from tests.optimizer import checkpoints
from tests.optimizer.conftest import question_set

STUDY = """
name = "tiny"
largest_name = "roberta-2"
[[data]]
source = "train.json.xz"
by_article = true
certifies = true
[[students]]
name = "roberta-1"
layers = [1]
ffn = 64
"""


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(question_set(3)))
    return path


def test_evaluate_prints_the_official_scores(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line is for programs: every variant with its parts and their sizes."""
    repository, few = tmp_path / "model_repository", fleet.smallest(REPOSITORY, 2)
    fleet.publish(REPOSITORY, repository, few)
    status = main.main(
        ["evaluate", "--data", str(questions), "--model-repository", str(repository)]
    )
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0
    assert scores.keys() == {variant.name for variant in few.variants}
    for found in scores.values():
        assert (found["n"], found["has_answer_n"], found["no_answer_n"]) == (9, 6, 3)
        assert 0 <= found["exact"] <= found["f1"] <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "absent.json"], "no such file"),
        (["--data", "{set}", "--variant", "huge"], "not in"),
        (["--data", "{set}", "--model-repository", "nowhere"], "catalog.json"),
        (["--data", "{set}", "--url", "http://127.0.0.1:9"], "is a gateway running there"),
        (["--data", "{set}", "--limit", "0"], "contains no questions"),
    ],
)
def test_wrong_evaluations_give_a_one_line_error(
    questions: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what a user can mend."""
    given = [a.replace("{set}", str(questions)) for a in arguments]
    assert main.main(["evaluate", "--model-repository", str(REPOSITORY), *given]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bertier-optimize: ")
    assert said in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 1", "name"),
        ("nam = 'x'", "nam"),
        ("= 3", "not TOML"),
    ],
)
def test_a_wrong_study_file_names_the_key(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelled key must not be ignored."""
    path = tmp_path / "study.toml"
    path.write_text(text)
    assert main.main(["teacher", "--study", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_a_teacher_of_another_family_becomes_a_repository(tmp_path: Path, tiny_data: Path) -> None:
    """`--teacher` reaches the tokenizer, the students, the catalog and what is asked of it."""
    made = checkpoints.byte_level()
    config = checkpoints.CONFIGS["roberta"](made.get_vocab_size())
    teacher = checkpoints.save(config, tmp_path / "checkpoint", made)
    # Of two untrained models the smaller one is as good.
    assert (
        main.main(
            ["run", "--allow-dominated", "--allow-constant", *_study(tmp_path, teacher, tiny_data)]
        )
        == 0
    )
    repository = tmp_path / "repository"
    catalog = store.read(repository)
    assert store.check_files(repository, catalog) == []
    assert {v.shape.vocabulary for v in catalog.variants} == {made.get_vocab_size()}
    encoder = SpanEncoder.from_file(repository / store.TOKENIZER)
    for golden, said in zip(catalog.golden_inputs, catalog.variants[0].golden, strict=True):
        windows = encoder.encode(Question(golden.question, golden.context))
        assert isinstance(said, GoldenLogits)
        assert len(said.start) == windows.n_tokens
    data = ["--data", str(tiny_data / "test.json"), "--limit", "3"]
    assert main.main(["evaluate", "--model-repository", str(repository), *data]) == 0


def test_a_teacher_that_answers_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written; the message says which option would do."""
    teacher = checkpoints.save(
        checkpoints.CONFIGS["electra"](300), tmp_path / "checkpoint", model=AutoModel
    )
    assert main.main(["teacher", *_study(tmp_path, teacher, tmp_path)]) == 1
    assert "as --backbone" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher" / "manifest.json").exists()


def test_a_warning_says_that_a_backbone_beside_a_teacher_is_ignored(
    tmp_path: Path, tiny_backbone: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The teacher is taken as it is; the message says how to use both."""
    command = ["teacher", *_study(tmp_path, tiny_backbone, tiny_data), "--backbone", "minilm"]
    assert main.main(command) == 0
    assert "backbone minilm is ignored" in caplog.text
    assert "--weights minilm" in caplog.text


def test_a_mistyped_teacher_is_no_download(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there is not looked for on a hub."""
    (tmp_path / "checkpoint").mkdir()
    command = ["teacher", *_study(tmp_path, tmp_path / "chekpoint", tiny_data)]
    assert main.main(command) == 1
    assert "chekpoint: no such folder" in capsys.readouterr().err


def _study(folder: Path, teacher: Path, data: Path) -> list[str]:
    file = folder / "study.toml"
    file.write_text(STUDY)
    options = {
        "study": file,
        "teacher": teacher,
        "data-dir": data,
        "run-dir": folder / "run",
        "model-repository": folder / "repository",
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
