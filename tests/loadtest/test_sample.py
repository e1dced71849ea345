"""The shipped sample: real questions that no model was trained or certified on, and may be passed on."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadtest import sample
from optimizer.data.question_sets import Example, Split, load, split_of
from optimizer.study import config


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with lzma.open(sample.SAMPLE) as file:
        found: dict[str, Any] = json.load(file)
    return found


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return sample.questions(None)


def test_it_has_a_thousand_questions_of_both_kinds(examples: list[Example]) -> None:
    """Every measurement says `1000 questions` and means it; a gateway must also say `no answer`."""
    assert len({e.id for e in examples}) == len(examples) == sample.SIZE
    assert {e.answerable for e in examples} == {True, False}


def test_it_is_whole_squad_form(document: dict[str, Any]) -> None:
    """Any tool that reads SQuAD 2.0 reads it, the official scorer included."""
    assert document["version"] == "v2.0"
    articles = [article["title"] for article in document["data"]]
    assert len(set(articles)) == len(articles)
    asked = [qa for a in document["data"] for p in a["paragraphs"] for qa in p["qas"]]
    assert {frozenset(qa) for qa in asked} == {
        frozenset({"id", "question", "answers", "is_impossible"})
    }
    assert all(qa["is_impossible"] == (not qa["answers"]) for qa in asked)


def test_every_gold_answer_is_where_it_says(examples: list[Example]) -> None:
    """A shifted offset would score as a wrong answer of the model."""
    for e in examples:
        for text, start in zip(e.answers, e.starts, strict=True):
            assert e.context[start : start + len(text)] == text


def test_none_of_it_is_trained_on_or_certified_on(examples: list[Example]) -> None:
    """A number measured on training data, or on what the floors come from, would prove nothing."""
    (certifying,) = (d for d in config.read(config.DEFAULT_STUDY).data if d.certifies)
    splits = {split_of(e, by_article=certifying.by_article, certifies=True) for e in examples}
    assert splits == {Split.SEARCH}


def test_it_names_its_licence(document: dict[str, Any]) -> None:
    """Whoever passes the data on must pass its terms on."""
    assert "CC BY-SA 4.0" in document["licence"]
    assert document["licence"] == sample.LICENCE


def test_a_limit_takes_the_first_questions(examples: list[Example]) -> None:
    """Two runs with the same limit ask the same."""
    assert sample.questions(None, 7) == examples[:7]


def test_what_is_written_is_read_back_alike(tmp_path: Path, examples: list[Example]) -> None:
    """The sample is rewritten by the same code that wrote it, and nothing gets lost on the way."""
    path = tmp_path / "again.json"
    path.write_text(json.dumps(sample.as_squad(examples)))
    assert Counter(load(str(path))) == Counter(examples)
