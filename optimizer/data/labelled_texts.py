"""Texts with labels, alone or in pairs: tab-separated values, JSON Lines or Parquet, as GLUE and `datasets` have them.

Tab-separated files are GLUE's: the first line names the columns, and a quotation mark is a character like any
other. Columns given as numbers (from 0) mean a file without such a line. Up to one row in a hundred that lacks a
text or a field is left out and reported; more are an error, and an unknown label always is.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gateway.catalog.schema import Decoding
from gateway.domain import Answer, LabelLogits, Logits, Texts, Windows
from gateway.qa import labels as codec
from gateway.qa.boundaries import has_visible
from gateway.qa.codec import SpanEncoder
from optimizer.data import question_files, question_sets
from optimizer.data.items import Feature, LabelReading
from optimizer.data.question_sets import DataError
from optimizer.study.config import Column, TaskConfig

log = logging.getLogger(__name__)

SUFFIXES = (".tsv", ".jsonl", ".ndjson", ".parquet")
MOST_LABELS = 200  # where the study file names none; more are no labels but texts or numbers
MOST_CERTIFYING = 10_000  # of a split
MOST_TEXTS = (
    50  # of a group, that count in a certificate: one text says less than a context's questions
)
BROKEN = 0.01  # share of the rows that may lack something
DECIMAL = re.compile(r"-?\d+(\.\d+)?")
LABELLED = "labelled {}"  # a stratum: the rows of one label

Row = Mapping[Any, Any]  # by column: a name, or a number from 0


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text, or a pair of texts, with its label."""

    most_contexts: ClassVar[int] = MOST_TEXTS
    units: ClassVar[tuple[str, str]] = ("group", "text")

    id: str
    text: str
    text_pair: str | None
    label: int  # of `labels`
    labels: tuple[str, ...]  # of the task, in the order of the logits
    title: str = ""  # the group that it is from; empty: none

    @property
    def context(self) -> str:
        return self.text if self.text_pair is None else f"{self.text}\n{self.text_pair}"

    @property
    def kind(self) -> str:
        return LABELLED.format(self.labels[self.label])

    def row_key(self) -> list[Any]:
        return [self.text, self.text_pair, self.label]

    def windows(self, encoder: SpanEncoder) -> Windows:
        return encoder.encode_texts(Texts(self.text, self.text_pair))

    def feature(self, encoder: SpanEncoder, rng: random.Random) -> Feature:
        windows = self.windows(encoder)
        n = windows.n_tokens
        ids, types = windows.input_ids[0, :n], windows.token_type_ids[0, :n]
        return Feature(ids.astype(np.int32), types.astype(np.int8), (), self.label)

    def ask(self, session: Any, windows: Windows) -> LabelLogits:
        from gateway.backends.embedded import run_labels  # going back needs no engine

        return run_labels(session, windows)

    def read(self, windows: Windows, logits: Logits | LabelLogits) -> LabelReading:
        assert isinstance(logits, LabelLogits), "the model is a classifier"
        return LabelReading(tuple(logits.labels[0].tolist()))

    def answer_of(self, reading: LabelReading, how: Decoding) -> Answer:
        found = codec.decode(np.array(reading.logits, np.float32), self.labels, how)
        return Answer(found.label, None, None, found.score, 0.0)

    def value_of(self, text: str) -> float:
        return float(text == self.labels[self.label])


def load(path: Path, task: TaskConfig, labels: Sequence[str] = ()) -> list[LabelledText]:
    """Return the rows of a file, in its order; `labels`: of the task, none: those of this file. Raises: DataError."""
    rows = _whole_rows(path, task)
    labels = tuple(labels or labels_in(path, task, rows))
    return [_labelled(path, task, where, row, labels) for where, row in rows]


def labels_of(paths: Iterable[Path], task: TaskConfig) -> tuple[str, ...]:
    """Return the labels that the study file names, or else all of these files, sorted. Raises: DataError."""
    if task.labels:
        return task.labels
    paths = list(paths)
    found = sorted({label for path in paths for label in labels_in(path, task)})
    if len(found) < 2:
        raise DataError(
            f"{', '.join(map(str, paths))}: column {task.label!r} has one label only, {found[0]!r}: there is"
            " nothing to tell apart; give rows of at least two labels"
        )
    return tuple(found)


def labels_in(
    path: Path, task: TaskConfig, rows: Sequence[tuple[str, Row]] | None = None
) -> tuple[str, ...]:
    """Return the labels that a file has, sorted. Raises: DataError for more than labels can be."""
    rows = _whole_rows(path, task) if rows is None else rows
    found = Counter(_label(path, task, where, row) for where, row in rows)
    if len(found) > MOST_LABELS:
        raise DataError(
            f"{path}: column {task.label!r} has {len(found)} different values; is it the label's? Where it is,"
            " name all of them as labels in [task]"
        )
    if all(DECIMAL.fullmatch(label) for label in found) and not all(
        float(label).is_integer() for label in found
    ):
        raise DataError(
            f"{path}: column {task.label!r} has numbers such as {min(found)}: a regression cannot be trained here; give"
            " a column of labels"
        )
    return tuple(sorted(found))


def counts_of(rows: Iterable[LabelledText]) -> dict[str, int]:
    """Return how many rows each label has."""
    rows = list(rows)
    found = Counter(row.label for row in rows)
    return {label: found[i] for i, label in enumerate(rows[0].labels)} if rows else {}


def _labelled(
    path: Path, task: TaskConfig, where: str, row: Row, labels: tuple[str, ...]
) -> LabelledText:
    label = _label(path, task, where, row, labels)
    if label not in labels:
        raise DataError(
            f"{path}: {where}: unknown label {label!r}; the task {task.name} has {', '.join(labels)}: mend the"
            " row, or name all labels in [task]"
        )
    text = str(row[task.text])
    text_pair = None if task.text_pair is None else str(row[task.text_pair])
    group = "" if task.group is None else str(row[task.group])
    said = hashlib.sha256(f"{text}\n{text_pair}".encode("utf-8", "surrogatepass")).hexdigest()
    number = where.rpartition(" ")[2]
    return LabelledText(f"{number}-{said[:8]}", text, text_pair, labels.index(label), labels, group)


def _label(path: Path, task: TaskConfig, where: str, row: Row, labels: Sequence[str] = ()) -> str:
    """Return a row's label as text; a number that is none of the labels counts them from 0."""
    value = row[task.label]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes the numbers of a column with gaps so
    if isinstance(value, float):
        raise DataError(
            f"{path}: {where}: {task.label}: {value:g} is no label; a regression cannot be trained here"
        )
    text = str(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    counts = is_number and not any(map(str.isdecimal, labels))  # else numbers are the labels
    if counts and 0 <= value < len(labels):
        return labels[value]
    return text


def _whole_rows(path: Path, task: TaskConfig) -> list[tuple[str, Row]]:
    """Return the rows that have all that the task needs, with where each stands. Raises: DataError."""
    whole: list[tuple[str, Row]] = []
    broken: list[tuple[str, str]] = []
    for where, row in _read(path, task):
        why = row if isinstance(row, str) else _lacks(task, row)
        if why is not None:
            broken.append((where, why))
        elif not isinstance(row, str):
            whole.append((where, row))
    if not whole and not broken:
        raise DataError(f"{path}: holds no row; give a file with texts and labels")
    if broken:
        _report_broken(path, broken, len(whole) + len(broken))
    return whole


def _read(path: Path, task: TaskConfig) -> list[tuple[str, Row | str]]:
    """Return all rows of a file. Raises: DataError."""
    kinds = [suffix for suffix in path.suffixes if suffix in SUFFIXES]
    if not path.exists():
        raise DataError(f"{path}: no such file; give a file of {', '.join(SUFFIXES)}")
    if not kinds:
        raise DataError(f"{path}: not a known kind of file; use {', '.join(SUFFIXES)}")
    try:
        return list(READERS[kinds[-1]](path, task))
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read: {exc}") from exc


def _report_broken(path: Path, broken: Sequence[tuple[str, str]], n_rows: int) -> None:
    """Log a few rows that are left out. Raises: DataError for more of them."""
    where, why = broken[0]
    said = f"{path}: {len(broken)} of {n_rows} rows lack something; the first, {where}: {why}"
    if len(broken) > BROKEN * n_rows:
        raise DataError(f"{said}; mend the file, or name other columns in [task]")
    log.warning("%s; these rows are left out", said)


def _lacks(task: TaskConfig, row: Row) -> str | None:
    """Return what a row lacks; None: nothing."""
    for column in task.columns:
        value = row.get(column)
        if value is None or value == "":
            return f"no {column!r}"
    for column in (task.text, task.text if task.text_pair is None else task.text_pair):
        if not isinstance(row[column], str) or not has_visible(row[column]):
            return f"{column!r} is no text with a visible character"
        if any("\ud800" <= character <= "\udfff" for character in row[column]):
            return f"{column!r} has a lone surrogate, which is no character"
    return None


def _check_columns(path: Path, task: TaskConfig, there: Sequence[Any]) -> None:
    """Raises: DataError that names the columns that a file lacks, and those it has; or one that it has twice."""
    for column in task.columns:
        if list(there).count(column) > 1:
            raise DataError(
                f"{path}: more than one column {column!r}: which one is meant? Rename the others"
            )
    missing = [column for column in task.columns if column not in there]
    if not missing:
        return
    named = ", ".join(map(repr, missing))
    hint = f"it has {', '.join(map(str, there))}: name its columns in [task]"
    if task.label in missing and len(missing) == 1:
        hint += " (GLUE's own test files have no labels: certify and report with train and dev)"
    raise DataError(f"{path}: no column {named}; {hint}")


def _tsv(path: Path, task: TaskConfig) -> Iterator[tuple[str, Row | str]]:
    """Read tab-separated lines as they are: no quotation mark and no backslash means anything.

    Lines end at a line feed alone: other breaks may stand in a text.
    """
    with question_sets.OPENERS.get(path.suffix, open)(path, "rb") as file:
        lines = file.read().decode("utf-8-sig").split("\n")
    fields = [line.removesuffix("\r").split("\t") for line in lines]
    numbered = list(enumerate(fields, 1))
    columns: Sequence[Column]
    if task.has_header:
        columns = fields[0] if lines[0].strip() else ()
        if not columns:
            raise DataError(f"{path}: empty; its first line names the columns")
        numbered = numbered[1:]
    else:
        columns = range(len(fields[0]))
    _check_columns(path, task, columns)
    for number, values in numbered:
        if len(values) == len(columns):
            yield f"line {number}", dict(zip(columns, values, strict=True))
        elif values != [""]:
            yield f"line {number}", f"has {len(values)} fields, not {len(columns)}"


def _json_lines(path: Path, task: TaskConfig) -> Iterator[tuple[str, Row | str]]:
    with question_sets.OPENERS.get(path.suffix, open)(path, "rb") as file:
        lines = [(n, line) for n, line in enumerate(file, 1) if line.strip()]
    for n, line in lines:
        row = question_files.parsed(path, n, line)
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {n}: is no object with the columns of [task]")
        if n == lines[0][0]:
            _check_columns(path, task, list(row))
        yield f"line {n}", row


def _parquet(path: Path, task: TaskConfig) -> Iterator[tuple[str, Row | str]]:
    rows = question_files.parquet_rows(path)
    if rows:
        _check_columns(path, task, list(rows[0]))
    for n, row in enumerate(rows, 1):
        yield f"row {n}", row


# Of each row where it stands, and itself, or what is wrong with it.
READERS: dict[str, Callable[[Path, TaskConfig], Iterator[tuple[str, Row | str]]]] = {
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
