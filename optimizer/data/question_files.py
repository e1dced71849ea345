"""A user's own questions: SQuAD JSON, JSON Lines, CSV or Parquet, as Hugging Face `datasets` writes them.

A row has `question`, `context`, `answers` ({"text": [...], "answer_start": [...]}, or a list of such pairs,
or of texts), and maybe `id` and `title`. In CSV `answers` is JSON, or what pandas writes of a dict (also with
numpy's `array(...)`), or there is `answer` with one text and maybe `answer_start`. No answer: the question is unanswerable. Broken rows are errors that name file, row, id
and field.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optimizer.data import question_sets
from optimizer.data.question_sets import DataError, Example

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
MAX_FIELD = (
    10_000_000  # characters of a CSV field; the module's own limit is shorter than some contexts
)
NEEDS_PARQUET = "Parquet needs pyarrow; install it with: pip install 'bertier[parquet]'"

Row = Mapping[str, Any]


def of_study(source: str) -> list[Example]:
    """Return the questions of a study's source: a known name, SQuAD's JSON, or a file as `load` reads it.

    Raises: DataError.
    """
    kinds = [suffix for suffix in Path(source).suffixes if suffix in SUFFIXES]
    if source not in question_sets.BY_NAME and kinds and kinds[-1] != ".json":
        return load(Path(source))
    try:
        return question_sets.load(source)
    except question_sets.NotSquad:
        if not kinds:
            raise
        return load(Path(source))


def files_of(path: Path) -> list[Path]:
    """Return the file, or the question files of a folder by name. Raises: DataError when it has none."""
    if not path.is_dir():
        return [path]
    found = [p for p in sorted(path.iterdir()) if p.is_file() and set(p.suffixes) & set(SUFFIXES)]
    if not found:
        raise DataError(f"{path}: holds no question file; put files of {', '.join(SUFFIXES)} there")
    return found


def load(path: Path) -> list[Example]:
    """Return the questions of a file, in its order. Raises: DataError."""
    if not path.exists():
        raise DataError(f"{path}: no such file; give a file of {', '.join(SUFFIXES)}")
    suffixes = [s for s in path.suffixes if s in SUFFIXES]
    if not suffixes:
        raise DataError(f"{path}: not a known kind of file; use {', '.join(SUFFIXES)}")
    read = READERS[suffixes[-1]]
    try:
        found = list(read(path))
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read: {exc}") from exc
    return _checked(path, found)


def _checked(path: Path, found: list[Example]) -> list[Example]:
    """Return the questions, or say that there are none, or that an id occurs twice."""
    if not found:
        raise DataError(f"{path}: holds no question")
    seen: dict[str, int] = {}
    for number, example in enumerate(found, 1):
        first = seen.setdefault(example.id, number)
        if first != number:
            raise DataError(
                f"{path}: id {example.id!r} occurs twice, at questions {first} and {number}; give each"
                " question its own"
            )
    return found


def _squad(path: Path) -> Iterator[Example]:
    """Read SQuAD's nested form, or a list of rows."""
    with question_sets.OPENERS.get(path.suffix, open)(path, "rb") as file:
        try:
            document = json.load(file)
        except json.JSONDecodeError as exc:
            raise DataError(f"{path}: not JSON: {exc}") from exc
    if isinstance(document, list):
        yield from _rows(path, ((f"row {i}", row) for i, row in enumerate(document, 1)))
        return
    articles = document.get("data") if isinstance(document, dict) else None
    if not isinstance(articles, list):
        raise DataError(f"{path}: data: missing; SQuAD's form is data > paragraphs > context, qas")
    if all(isinstance(a, dict) and "paragraphs" not in a for a in articles):
        yield from _rows(path, ((f"row {i}", row) for i, row in enumerate(articles, 1)))
        return
    yield from _rows(path, _flat(path, articles))


def _flat(path: Path, articles: list[Any]) -> Iterator[tuple[str, Row]]:
    """Yield each question of SQuAD's nested form as a row, with where it stands."""
    for i, article in enumerate(articles):
        for j, paragraph in enumerate(_list_of(path, f"data.{i}", article, "paragraphs")):
            where = f"data.{i}.paragraphs.{j}"
            for k, qa in enumerate(_list_of(path, where, paragraph, "qas")):
                if not isinstance(qa, dict):
                    raise DataError(f"{path}: {where}.qas.{k}: is no object")
                above = {"context": paragraph.get("context"), "title": article.get("title")}
                yield f"{where}.qas.{k}", above | qa


def _list_of(path: Path, where: str, owner: Any, name: str) -> list[Any]:
    found = owner.get(name) if isinstance(owner, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{path}: {where}: {name}: missing, or not a list")
    return found


def _json_lines(path: Path) -> Iterator[Example]:
    with question_sets.OPENERS.get(path.suffix, open)(path, "rb") as file:
        lines = [(n, line) for n, line in enumerate(file, 1) if line.strip()]
    yield from _rows(path, ((f"line {n}", parsed(path, n, line)) for n, line in lines))


def parsed(path: Path, number: int, line: bytes) -> Any:
    """Return a line of a JSON Lines file. Raises: DataError."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as exc:
        why = f"{exc.msg} (character {exc.pos + 1} of the line)"
        raise DataError(f"{path}: line {number}: not JSON: {why}") from exc
    except ValueError as exc:
        raise DataError(f"{path}: line {number}: not JSON: {exc}") from exc


def _csv(path: Path) -> Iterator[Example]:
    csv.field_size_limit(MAX_FIELD)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"question", "context"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{path}: no column {', '.join(sorted(missing))}")
        if not {"answers", "answer"} & set(reader.fieldnames or ()):
            raise DataError(
                f"{path}: no column answers or answer; leave its cell empty for no answer"
            )
        yield from _rows(path, ((f"line {reader.line_num}", row) for row in reader))


def _parquet(path: Path) -> Iterator[Example]:
    yield from _rows(path, ((f"row {i}", row) for i, row in enumerate(parquet_rows(path), 1)))


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file. Raises: DataError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise DataError(f"{path}: {NEEDS_PARQUET}") from exc
    try:
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as exc:
        raise DataError(f"{path}: not a Parquet file: {exc}") from exc
    return found


READERS: dict[str, Callable[[Path], Iterator[Example]]] = {
    ".json": _squad,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _rows(path: Path, rows: Iterable[tuple[str, Any]]) -> Iterator[Example]:
    for number, (where, row) in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: {where}: is no object with question and context")
        given = row.get("id")
        name = str(number) if given in (None, "") else str(given)
        yield _Row(path, f"{where}, id {name!r}", row).example(name)


class _Row:
    """One row and where it stands, for messages."""

    def __init__(self, path: Path, where: str, row: Row) -> None:
        self._path, self._where, self._row = path, where, row

    def example(self, name: str) -> Example:
        """Return the question. Raises: DataError, naming the field."""
        context = self._text("context")
        answers = (
            () if self._row.get("is_impossible") in (True, "True", "true") else self._answers()
        )
        texts = tuple(text for text, _ in answers)
        starts = tuple(self._start(context, text, start) for text, start in answers)
        title = self._row.get("title") or ""
        return Example(name, self._text("question"), context, texts, starts, str(title))

    def _text(self, field: str) -> str:
        value = self._row.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(field, "missing, or without a visible character")
        return value

    def _answers(self) -> list[tuple[str, int | None]]:
        if "answers" in self._row:
            return self._pairs(self._decoded(self._row["answers"]))
        text = self._row.get("answer")
        if text in (None, ""):
            return []
        return [(self._answer(text), self._number(self._row.get("answer_start")))]

    def _decoded(self, value: Any) -> Any:
        """Return what a cell of a CSV file says: JSON, or a Python literal."""
        if not isinstance(value, str):
            return value
        if not value.strip():
            return []
        for parse in (json.loads, _literal):
            try:
                return parse(value)
            except (ValueError, SyntaxError, RecursionError):
                continue
        raise self._wrong("answers", 'not JSON, such as {"text": ["..."], "answer_start": [0]}')

    def _pairs(self, value: Any) -> list[tuple[str, int | None]]:
        if value is None:
            return []
        if isinstance(value, dict):
            texts, starts = value.get("text"), value.get("answer_start")
            if not isinstance(texts, list):
                raise self._wrong("answers.text", "missing, or not a list")
            if starts is None:
                starts = [None] * len(texts)
            if not isinstance(starts, list) or len(starts) != len(texts):
                raise self._wrong("answers.answer_start", f"not one for each of {len(texts)} texts")
            return [(self._answer(t), self._number(s)) for t, s in zip(texts, starts, strict=True)]
        if not isinstance(value, list):
            raise self._wrong("answers", "neither an object nor a list")
        return [self._pair(each) for each in value]

    def _pair(self, value: Any) -> tuple[str, int | None]:
        if isinstance(value, dict):
            return self._answer(value.get("text")), self._number(value.get("answer_start"))
        return self._answer(value), None

    def _answer(self, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._wrong("answers", f"{value!r} is no text; leave unanswerable ones empty")
        return value

    def _number(self, value: Any) -> int | None:
        if value in (None, ""):
            return None
        try:
            return int(value)
        except (TypeError, ValueError) as exc:
            raise self._wrong("answer_start", f"{value!r} is no number") from exc

    def _start(self, context: str, text: str, start: int | None) -> int:
        """Return where the answer stands; looked up where the file does not say."""
        if start is None:
            start = context.find(text)
            if start < 0:
                raise self._wrong("answers", f"{text!r} does not stand in the context")
        elif start < 0 or not context.startswith(text, start):
            raise self._wrong(
                "answer_start", f"{text!r} does not stand at {start} (code points from 0)"
            )
        return start

    def _wrong(self, field: str, what: str) -> DataError:
        return DataError(f"{self._path}: {self._where}: {field}: {what}")


def _literal(text: str) -> Any:
    """Return a Python literal, in which numpy's arrays are lists. Raises: ValueError, SyntaxError."""
    return ast.literal_eval(_WithoutArrays().visit(ast.parse(text.strip(), mode="eval")))


class _WithoutArrays(ast.NodeTransformer):
    """Replaces `array([...], dtype=...)` by the list, as pandas writes the lists of a data set to CSV."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        named = isinstance(node.func, ast.Name) and node.func.id == "array"
        return node.args[0] if named and node.args else node
