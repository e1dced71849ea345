"""The user's questions are taken in any form, and too few of them are refused before anything is measured."""

from __future__ import annotations

import csv
import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from optimizer.budget import questions
from optimizer.data.question_sets import DataError, Split
from optimizer.data.splits import StudyQuestions
from optimizer.study.config import StudyConfig
from tests.optimizer.conftest import question_set


def rows_of(document: Any) -> list[dict[str, Any]]:
    """Return a SQuAD document as flat rows."""
    return [
        {
            "id": qa["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {
                "text": [a["text"] for a in qa["answers"]],
                "answer_start": [a["answer_start"] for a in qa["answers"]],
            },
        }
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def write(path: Path, document: Any) -> Path:
    """Write a document in the form that the name's ending says."""
    rows = rows_of(document)
    if path.suffix == ".json":
        path.write_text(json.dumps(document))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(row | {"answers": json.dumps(row["answers"])} for row in rows)
    return path


def studied(path: Path) -> StudyQuestions:
    config = StudyConfig(name="own", largest_name="own", data=questions.sources_of(path))
    return StudyQuestions(config, Path("data"))


@pytest.mark.parametrize("name", ["own.jsonl", "own.csv"])
def test_every_form_of_a_file_gives_the_same_split(tmp_path: Path, name: str) -> None:
    """A study reads what `certify --data` reads; nothing is converted."""
    document = question_set(40)
    squad = questions.splits_of(studied(write(tmp_path / "own.json", document)))
    assert questions.splits_of(studied(write(tmp_path / name, document))) == squad
    assert all(squad[split] for split in Split)


def test_a_folder_is_all_its_question_files(tmp_path: Path) -> None:
    """One source each, so a file that is added later moves no question of another."""
    whole = question_set(40)
    articles: list[Any] = whole["data"]  # type: ignore[assignment]
    write(tmp_path / "a.json", {"data": articles[:25]})
    write(tmp_path / "b.jsonl", {"data": articles[25:]})
    (tmp_path / "notes.txt").write_text("not a question file")
    found = studied(tmp_path)
    assert [Path(source.source).name for source in found.config.data] == ["a.json", "b.jsonl"]
    assert sum(map(len, questions.splits_of(found).values())) == 120


def test_a_folder_without_question_files_is_an_error(tmp_path: Path) -> None:
    """The error lists the endings that are read."""
    (tmp_path / "notes.txt").write_text("not a question file")
    with pytest.raises(DataError, match=r"holds no question file.*\.parquet"):
        questions.sources_of(tmp_path)


def test_too_few_questions_say_how_many_are_needed_for_what(tmp_path: Path) -> None:
    """Each part that is short, and about how many questions would do."""
    path = write(tmp_path / "own.json", question_set(12))
    with pytest.raises(DataError, match="too few questions") as found:
        questions.counts_of(path, questions.splits_of(studied(path)))
    said = str(found.value)
    assert f"of at least {questions.MIN_ANSWERABLE} questions with an answer to train on" in said
    assert f"of at least {questions.MIN_SEARCH} questions to fit" in said
    assert f"of at least {questions.MIN_CLUSTERS} articles" in said
    assert "Of 36 questions" in said


def test_as_many_as_the_error_names_are_enough(tmp_path: Path) -> None:
    """By proportion: the split is by hash, so the number is an estimate, not a bound."""
    path = write(tmp_path / "own.json", question_set(100))
    with pytest.raises(DataError, match="give about 340 questions"):
        questions.counts_of(path, questions.splits_of(studied(path)))
    path = write(tmp_path / "own.json", question_set(ceil(340 / 3)))
    counts = questions.counts_of(path, questions.splits_of(studied(path)))
    assert counts.train > questions.MIN_ANSWERABLE
    assert counts.search >= questions.MIN_SEARCH
    assert counts.certify >= questions.MIN_CLUSTERS
