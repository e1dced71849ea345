"""Labelled texts are read as GLUE writes them; what cannot be used is named."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.catalog.schema import Decoding
from gateway.qa.codec import SpanEncoder
from optimizer.data import labelled_texts
from optimizer.data.items import LabelReading
from optimizer.data.labelled_texts import LabelledText
from optimizer.data.question_sets import DataError
from optimizer.study.config import TaskConfig
from tests.fakes import TOKENIZER

MOOD = TaskConfig(name="mood", text="sentence")
PAIRS = TaskConfig(name="nli", text="question", text_pair="sentence", group="title")
SINGLE = "sentence\tlabel\nit's \"fine\t1\nso-so\t0\n"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_quotation_marks_are_characters(tmp_path: Path) -> None:
    """GLUE's files quote nothing: a reader of CSV would swallow lines up to the next mark."""
    found = labelled_texts.load(written(tmp_path, "a.tsv", SINGLE), MOOD)
    assert [(e.text, e.labels[e.label]) for e in found] == [("it's \"fine", "1"), ("so-so", "0")]
    assert found[0].labels == ("0", "1")


def test_all_kinds_of_files_give_the_same_rows(tmp_path: Path) -> None:
    """A data set is not bound to the program that wrote it; numbers count the labels that are named."""
    rows: list[dict[str, Any]] = [
        {"question": "Who?", "sentence": "Ada.", "label": 0, "title": "a", "idx": 1},
        {"question": "When?", "sentence": "Noon.", "label": 1, "title": "b", "idx": 2},
    ]
    labels = ("entailment", "not_entailment")
    task = PAIRS.model_copy(update={"labels": labels})
    lines = [
        f"{r['question']}\t{r['sentence']}\t{labels[int(r['label'])]}\t{r['title']}" for r in rows
    ]
    text = "question\tsentence\tlabel\ttitle\r\n" + "\r\n".join(lines) + "\r\n"
    tsv = written(tmp_path, "a.tsv", text)
    jsonl = written(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [
        [(e.text, e.text_pair, e.label, e.title) for e in labelled_texts.load(path, task, labels)]
        for path in (tsv, jsonl, tmp_path / "a.parquet")
    ]
    assert found[0] == [("Who?", "Ada.", 0, "a"), ("When?", "Noon.", 1, "b")]
    assert found[1] == found[2] == found[0]


def test_columns_without_names_are_counted(tmp_path: Path) -> None:
    """CoLA's files have no line of names."""
    path = written(tmp_path, "cola.tsv", "gj04\t1\t\tThey slept.\ngj04\t0\t*\tThey sleeped.\n")
    cola = TaskConfig(name="cola", text=3, label=1)
    found = labelled_texts.load(path, cola)
    assert [(e.text, e.label) for e in found] == [("They slept.", 1), ("They sleeped.", 0)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "text\tlabel\nx\t0\n", "no column 'sentence'; it has text, label"),
        ("a.tsv", "sentence\tlabel\tsentence\nx\t0\ty\n", "more than one column 'sentence'"),
        ("a.tsv", "sentence\nx\n", r"no column 'label'.*test files have no labels"),
        ("a.tsv", "", "empty; its first line names the columns"),
        ("a.tsv", "sentence\tlabel\n", "holds no row"),
        ("a.tsv", "sentence\tlabel\nx\t1.5\ny\t2.0\n", "numbers such as 1.5: a regression"),
        ("a.jsonl", '{"sentence": "\\ud800x", "label": "a"}', "'sentence' has a lone surrogate"),
        ("a.jsonl", "", "holds no row"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.jsonl", '{"sentence": "x", "label": 0.5}', "0.5 is no label; a regression"),
        (
            "a.tsv",
            "sentence\tlabel\nx\t0\n \t1\n",
            r"1 of 2 rows lack .* line 3: 'sentence' is no text",
        ),
        ("a.tsv", "sentence\tlabel\nx\n", r"1 of 1 rows lack something; .* has 1 fields, not 2"),
        ("a.csv", SINGLE, "not a known kind of file; use .tsv, .jsonl"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    """With the file, the place and what to do, before anything is trained."""
    with pytest.raises(DataError, match=said) as caught:
        labelled_texts.load(written(tmp_path, name, text), MOOD)
    assert name in str(caught.value)


def test_an_unknown_label_is_an_error(tmp_path: Path) -> None:
    """It would be trained as something that it is not."""
    path = written(tmp_path, "a.tsv", SINGLE)
    with pytest.raises(DataError, match=r"line 2: unknown label '1'; the task mood has 0, 2"):
        labelled_texts.load(path, MOOD, ("0", "2"))


def test_numbers_are_no_positions_where_labels_are_numbers(tmp_path: Path) -> None:
    """A star too few would be trained as one star."""
    path = written(tmp_path, "a.jsonl", '{"sentence": "x", "label": 0}\n')
    with pytest.raises(DataError, match="unknown label '0'"):
        labelled_texts.load(path, MOOD, ("1", "2"))
    assert labelled_texts.load(path, MOOD, ("bad", "good"))[0].label == 0


def test_one_label_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    """A model of it would be right always, and of no use."""
    path = written(tmp_path, "a.tsv", "sentence\tlabel\nx\t1\ny\t1\n")
    with pytest.raises(DataError, match="one label only, '1'"):
        labelled_texts.labels_of([path], MOOD)
    assert labelled_texts.labels_of([written(tmp_path, "b.tsv", SINGLE)], MOOD) == ("0", "1")


def test_texts_are_no_labels(tmp_path: Path) -> None:
    """The wrong column, most likely: a head of thousands of labels would be trained."""
    rows = "".join(f"text {i}\tx\n" for i in range(201))
    path = written(tmp_path, "a.tsv", f"sentence\tlabel\n{rows}")
    wrong = TaskConfig(name="mood", text="label", label="sentence")
    with pytest.raises(DataError, match="'sentence' has 201 different values"):
        labelled_texts.load(path, wrong)


def test_a_few_broken_rows_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """QQP has some; a file of them is another file."""
    rows = "".join(f"text {i}\t{i % 2}\n" for i in range(200))
    path = written(tmp_path, "a.tsv", f"sentence\tlabel\n{rows}broken\n")
    with caplog.at_level(logging.WARNING):
        assert len(labelled_texts.load(path, MOOD)) == 200
    assert "1 of 201 rows lack something; the first, line 202: has 1 fields, not 2" in caplog.text


def test_a_row_is_a_window_with_its_label() -> None:
    """Framed as it is served, and decoded under a temperature."""
    pair = LabelledText("1", "Who came?", "Ada came.", 1, ("no", "yes"))
    row = pair.feature(SpanEncoder.from_file(TOKENIZER), random.Random(0))
    assert (row.label, row.spans) == (1, ())
    assert row.input_ids[0] == 101
    assert sorted(set(row.token_type_ids.tolist())) == [0, 1]
    answer = pair.answer_of(LabelReading((0.0, 2.0)), Decoding(temperature=2.0))
    assert answer.text == "yes"
    assert answer.score == pytest.approx(0.7311, abs=1e-4)
    assert [pair.value_of(text) for text in ("yes", "no")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "qa"}, "is question answering"),
        ({"labels": ("a",)}, "at least two"),
        ({"labels": ("a", "a")}, "each once"),
        ({"text_pair": 3}, "all by name, or all by number"),
        ({"group": "sentence"}, "named twice"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    """The study file says so, not a stage after hours."""
    with pytest.raises(ValueError, match=said):
        TaskConfig(**({"name": "mood", "text": "sentence"} | given))
