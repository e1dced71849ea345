"""A user's own questions come in the forms that people have, and broken ones are named."""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optimizer.data import question_files
from optimizer.data.question_sets import DataError, Example

ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "title": "Bridges",
        "context": "Ada built the bridge in 1931.",
        "question": "Who built it?",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    },
    {
        "id": "b",
        "title": "Bridges",
        "context": "Ada built the bridge in 1931.",
        "question": "How long is it?",
        "answers": {"text": [], "answer_start": []},
    },
]
EXPECTED = [
    Example("a", "Who built it?", ROWS[0]["context"], ("Ada",), (0,), "Bridges"),
    Example("b", "How long is it?", ROWS[0]["context"], (), (), "Bridges"),
]


def squad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows in SQuAD's nested form."""
    articles = []
    for row in rows:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": t, "answer_start": s} for t, s in pairs]
        qa = {"id": row["id"], "question": row["question"], "answers": answers}
        paragraph = {"context": row["context"], "qas": [qa]}
        articles.append({"title": row["title"], "paragraphs": [paragraph]})
    return {"version": "2.0", "data": articles}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the rows in the form that the name's end says."""
    match path.name.split(".", 1)[1]:
        case "json":
            path.write_text(json.dumps(squad(rows)))
        case "json.xz":
            path.write_bytes(lzma.compress(json.dumps(squad(rows)).encode()))
        case "jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(row | {"answers": json.dumps(row["answers"])} for row in rows)
    return path


@pytest.mark.parametrize(
    "name", ["mine.json", "mine.json.xz", "mine.jsonl", "mine.csv", "mine.parquet"]
)
def test_every_form_reads_alike(tmp_path: Path, name: str) -> None:
    """Nobody should have to convert what `datasets` writes."""
    assert question_files.load(write(tmp_path / name, ROWS)) == EXPECTED


def test_a_list_of_rows_is_read_from_json(tmp_path: Path) -> None:
    """`datasets.to_pandas().to_json(orient="records")` writes one; an answer's place is looked up."""
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps([{"question": "Who?", "context": "It was Ada.", "answers": ["Ada"]}])
    )
    assert question_files.load(path) == [Example("1", "Who?", "It was Ada.", ("Ada",), (7,), "")]


def test_a_csv_file_of_pandas_is_read(tmp_path: Path) -> None:
    """`datasets.to_csv` writes the lists of `answers` as numpy prints arrays, over several lines where long."""
    texts = ["Ada", "Ada built the bridge in 1931"]
    whole = {
        "text": np.array(texts, dtype=object),
        "answer_start": np.array([0, 0], dtype=np.int32),
    }
    none = {"text": np.array([], dtype=object), "answer_start": np.array([], dtype=np.int32)}
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(r | {"answers": repr(a)} for r, a in zip(ROWS, (whole, none), strict=True))
    assert "array(" in path.read_text()
    answered, unanswered = question_files.load(path)
    assert (answered.answers, answered.starts) == (tuple(texts), (0, 0))
    assert unanswered == EXPECTED[1]


def test_a_cell_is_data_and_never_run(tmp_path: Path) -> None:
    """Of Python's expressions literals and arrays of them are read, nothing else."""
    path = tmp_path / "mine.csv"
    path.write_text("question,context,answers\nWho?,Ada.,\"open('x', 'w')\"\n")
    with pytest.raises(DataError, match="line 2, id '1': answers: not JSON"):
        question_files.load(path)


def test_a_plain_table_needs_one_column_of_answers(tmp_path: Path) -> None:
    """What people keep in a spreadsheet; an empty cell is no answer."""
    path = tmp_path / "mine.csv"
    path.write_text("question,context,answer\nWho?,It was Ada.,Ada\nWhen?,It was Ada.,\n")
    assert [e.answers for e in question_files.load(path)] == [("Ada",), ()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": " "}, r"line 2, id 'b': question: missing"),
        ({"context": None}, r"line 2, id 'b': context: missing"),
        ({"answers": {"text": "Ada"}}, r"line 2, id 'b': answers\.text: missing, or not a list"),
        (
            {"answers": {"text": ["Ada"], "answer_start": [4]}},
            r"line 2, id 'b': answer_start: 'Ada' does not stand at 4",
        ),
        ({"answers": ["Eve"]}, r"line 2, id 'b': answers: 'Eve' does not stand in the context"),
        ({"answers": [""]}, r"line 2, id 'b': answers: '' is no text"),
        ({"id": "a"}, r"id 'a' occurs twice, at questions 1 and 2"),
    ],
)
def test_a_broken_row_is_named_by_file_id_and_field(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """In a file of thousands nobody finds it otherwise."""
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (ROWS[0], ROWS[1] | change)))
    with pytest.raises(DataError, match=said) as caught:
        question_files.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.txt", "x", "not a known kind of file"),
        ("mine.json", "{", "not JSON"),
        (
            "mine.json",
            '{"data": [{"paragraphs": [{"context": "c"}]}]}',
            r"data\.0\.paragraphs\.0: qas",
        ),
        ("mine.json", '{"rows": []}', "data: missing"),
        ("mine.jsonl", "x\n", "line 1: not JSON"),
        ("mine.jsonl", "\n", "holds no question"),
        ("mine.csv", "question,answer\n", "no column context"),
        ("mine.csv", "question,context\n", "no column answers"),
        ("mine.parquet", "x", "not a Parquet file"),
    ],
)
def test_a_broken_file_says_what_is_wrong(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    """And with what to do where that is not plain."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        question_files.load(path)


@pytest.mark.parametrize("form", ["list.json", "numbered.json", "rows.jsonl"])
def test_a_study_reads_every_form(tmp_path: Path, form: str) -> None:
    """What `certify --data` reads can be trained on, too; SQuAD's form without ids is numbered."""
    path = tmp_path / form
    if form == "list.json":
        path.write_text(json.dumps(ROWS))
    elif form == "rows.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text(json.dumps(squad([row | {"id": ""} for row in ROWS])))
    found = question_files.of_study(str(path))
    assert [(e.question, e.answers) for e in found] == [(e.question, e.answers) for e in EXPECTED]


def test_what_is_no_question_set_in_any_form_is_an_error(tmp_path: Path) -> None:
    """The error is that of the more general form, which names the row."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"question": "Who?"}]))
    with pytest.raises(DataError, match=r"row 1.*context"):
        question_files.of_study(str(path))
