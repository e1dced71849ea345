"""SQuAD-format question sets: where they come from, how they are split, what a training row is.

Splits are by article or by context, never by question: h = sha1(key) % 20. Search is h 0-1. In files that
certify, calibrate is h 2-9 of whole articles and h 2-4 of contexts whose article is not known. The rest
trains. Nothing trains on search or calibrate.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import lzma
import os
import random
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar, cast

import numpy as np

from gateway.catalog.schema import ANSWERABLE, UNANSWERABLE, Decoding
from gateway.domain import Answer, LabelLogits, Logits, Question, Windows
from gateway.errors import BertierError
from gateway.qa import codec
from gateway.qa.codec import Reading, SpanEncoder
from gateway.qa.scoring import normalize, token_f1, tokens_of
from optimizer.data.items import Feature, Item

log = logging.getLogger(__name__)

I = TypeVar("I", bound=Item)  # noqa: E741 - an item's own kind

OFFICIAL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
SQUAD_SHA256 = {
    "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "train-v2.0.json": "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    "dev-v2.0.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
}
BY_NAME = {
    "squad": "train-v1.1.json",
    "squad_dev": "dev-v1.1.json",
    "squad_v2": "train-v2.0.json",
    "squad_v2_dev": "dev-v2.0.json",
    "squad_v2_dev_a": "dev-v2.0.json",  # the articles below: the test set of the model cards
}
ARTICLES = {
    "squad_v2_dev_a": frozenset(
        {
            *("1973_oil_crisis", "Black_Death", "Computational_complexity_theory", "Ctenophora"),
            *("European_Union_law", "French_and_Indian_War", "Geology", "Huguenot", "Imperialism"),
            *("Islamism", "Normans", "Packet_switching", "Prime_number", "Rhine", "Steam_engine"),
            *("Sky_(United_Kingdom)", "Victoria_(Australia)", "Yuan_dynasty"),
        }
    )
}
MIXED_ARTICLES = "squad-train"  # a title that holds contexts of many articles
# Of `split_of`. Models trained under another version may have seen what this one certifies with.
SPLIT_VERSION = 2
BUCKETS = 20
SEARCH_END, CONTEXTS_END, ARTICLES_END = 2, 5, 10  # first bucket after search, and after calibrate
DOWNLOADS = Path("runs/downloads")
MOST_CONTEXTS = 5  # of an article, that count in a certificate
MISPLACED = 0.01  # share of the answers that may not stand where they are said to
OPENERS: dict[str, Any] = {".json": open, ".gz": gzip.open, ".xz": lzma.open}


class DataError(BertierError):
    """A question set that cannot be read; the message names the file and what to do."""


class NotSquad(DataError):
    """A JSON file that is not in SQuAD's form, or has questions without an id."""


class Split(StrEnum):
    TRAIN = "train"
    SEARCH = "search"
    CALIBRATE = "calibrate"


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its gold answers; no answers: unanswerable."""

    most_contexts: ClassVar[int] = MOST_CONTEXTS
    units: ClassVar[tuple[str, str]] = ("article", "context")

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    title: str

    @property
    def answerable(self) -> bool:
        return bool(self.answers)

    @property
    def kind(self) -> str:
        return ANSWERABLE if self.answerable else UNANSWERABLE

    def as_question(self) -> Question:
        return Question(self.question, self.context, self.id)

    def row_key(self) -> list[Any]:
        return [self.question, self.context, self.answers, self.starts]

    def windows(self, encoder: SpanEncoder) -> Windows:
        return encoder.encode(self.as_question())

    def feature(self, encoder: SpanEncoder, rng: random.Random) -> Feature:
        """Return one training window: one that holds the answer, if there is one."""
        return _feature(self, self.windows(encoder), rng)

    def ask(self, session: Any, windows: Windows) -> Logits:
        from gateway.backends.embedded import run  # going back needs no engine

        return run(session, windows)

    def read(self, windows: Windows, logits: Logits | LabelLogits) -> Reading:
        assert isinstance(logits, Logits), "the model answers questions"
        return codec.read(windows, logits, self.as_question())

    def answer_of(self, reading: Reading, how: Decoding) -> Answer:
        return codec.answer_of(reading, how)

    def value_of(self, text: str) -> float:
        return f1(text, self.answers)


def f1(found: str, golds: Sequence[str]) -> float:
    """Return the best token F1 against any gold answer; no golds: unanswerable."""
    return max(token_f1(tokens_of(found), tokens_of(gold)) for gold in scored_golds(golds))


def scored_golds(golds: Sequence[str]) -> Sequence[str]:
    """Return the gold answers that are not empty after normalization; the official rule drops others."""
    return [gold for gold in golds if normalize(gold)] or [""]


def load(source: str, cache: Path = DOWNLOADS) -> list[Example]:
    """Return the questions of a SQuAD-format file, or of `squad`, `squad_v2` (+ `_dev`) by name.

    `squad_v2_dev_a` is the part of SQuAD 2.0's dev set that the model cards report on.

    Reads .json, .json.gz and .json.xz. A question with an answer that does not stand where its offset
    says is left out; more than a few of them are an error. Raises: DataError.
    """
    path = path_of(source, cache)
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            document = json.load(cast(BinaryIO, file))
        found = [e for e in _examples(document) if e.title in ARTICLES.get(source, (e.title,))]
    except FileNotFoundError as exc:
        known = ", ".join(BY_NAME)
        raise DataError(f"{source}: no such file; give a path, or one of {known}") from exc
    except (OSError, lzma.LZMAError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise DataError(f"{path}: not readable as (compressed) JSON: {exc}") from exc
    except (KeyError, TypeError) as exc:
        raise NotSquad(
            f"{path}: not in SQuAD's form (data > paragraphs > context, qas): {exc!r}"
        ) from exc
    _check_ids(found, path)
    return _well_placed(found, path)


def path_of(source: str, cache: Path = DOWNLOADS) -> Path:
    """Return the file of a question set, downloaded if it goes by a name. Raises: DataError."""
    path = Path(source)
    if source in BY_NAME and not path.exists():
        return _download(BY_NAME[source], cache)
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, cache: Path) -> Path:
    path = cache / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            urllib.request.urlretrieve(OFFICIAL + name, part)
        except OSError as exc:
            raise DataError(
                f"{OFFICIAL + name}: download failed ({exc}); fetch it yourself to {path}"
            ) from exc
        part.rename(path)
    found = sha256_of(path)
    if found != SQUAD_SHA256[name]:
        raise DataError(f"{path}: sha256 is {found}, not {SQUAD_SHA256[name]}; delete and retry")
    return path


def _examples(document: Any) -> Iterator[Example]:
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for qa in paragraph["qas"]:
                answers = [] if qa.get("is_impossible") else qa["answers"]
                yield Example(
                    id=str(qa.get("id") or ""),
                    question=qa["question"],
                    context=context,
                    answers=tuple(a["text"] for a in answers),
                    starts=tuple(a["answer_start"] for a in answers),
                    title=article.get("title", ""),
                )


def _check_ids(examples: Iterable[Example], path: Path) -> None:
    """Raises: DataError where a question has no id, or shares one: answers are kept by it."""
    seen: set[str] = set()
    for n, example in enumerate(examples, 1):
        where = f"{path}: question {n} ({example.question[:60]!r})"
        if not example.id:
            raise NotSquad(f"{where} has no id; give each question an id of its own")
        if example.id in seen:
            raise DataError(
                f"{where} has the id {example.id!r} of a question before it; give it an id of its own"
            )
        seen.add(example.id)


def _well_placed(examples: Sequence[Example], path: Path) -> list[Example]:
    """Return the questions whose answers all stand where they are said to. Raises: DataError."""
    astray = {e.id: misplaced for e in examples if (misplaced := _misplaced(e))}
    if not astray:
        return list(examples)
    n_answerable = sum(e.answerable for e in examples)
    name, (text, start) = next(iter(astray.items()))
    said = (
        f"{path}: answers of {len(astray)} of {n_answerable} answerable questions do not stand at their"
        f" answer_start (code points from 0); the first, of {name!r}: {text!r} at {start}"
    )
    if len(astray) > MISPLACED * n_answerable:
        raise DataError(f"{said}; mend the offsets")
    log.warning("%s; these questions are left out", said)
    return [e for e in examples if e.id not in astray]


def _misplaced(example: Example) -> tuple[str, int] | None:
    """Return the first answer that is not in the context where it is said to be."""
    for text, start in zip(example.answers, example.starts, strict=True):
        if start < 0 or not example.context.startswith(text, start):
            return text, start
    return None


def split_of(example: Item, *, by_article: bool, certifies: bool) -> Split:
    """Return the split an example belongs to, whatever else is in the file; see SPLIT_VERSION."""
    article = article_of(example) if by_article else None
    key = example.context if article is None else article
    bucket = int(hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest(), 16) % BUCKETS
    if bucket < SEARCH_END:
        return Split.SEARCH
    end = CONTEXTS_END if article is None else ARTICLES_END
    return Split.CALIBRATE if certifies and bucket < end else Split.TRAIN


def article_of(example: Item) -> str | None:
    """Return the title of its article; None where it is not known."""
    return None if example.title in ("", MIXED_ARTICLES) else example.title


def sample_contexts(examples: Sequence[I], fraction: float, seed: int) -> list[I]:
    """Keep a fixed `fraction` of the contexts, each with all its questions."""
    contexts = sorted({e.context for e in examples})
    random.Random(seed).shuffle(contexts)
    kept = set(contexts[: round(len(contexts) * fraction)])
    return [e for e in examples if e.context in kept]


def features(examples: Iterable[Item], encoder: SpanEncoder, seed: int) -> list[Feature]:
    """Return one training row an example."""
    rng = random.Random(seed)
    return [e.feature(encoder, rng) for e in examples]


def _feature(example: Example, windows: Windows, rng: random.Random) -> Feature:
    spans = [_gold_tokens(example, windows, row) for row in range(windows.n_windows)]
    holding = [row for row, found in enumerate(spans) if found]
    row = rng.choice(holding or range(windows.n_windows))
    n = int(windows.attention_mask[row].sum())
    return Feature(
        windows.input_ids[row, :n].astype(np.int32),
        windows.token_type_ids[row, :n].astype(np.int8),
        spans[row] or ((0, 0),),
    )


def _gold_tokens(example: Example, windows: Windows, row: int) -> tuple[tuple[int, int], ...]:
    """Return the (first, last) token of each gold answer that lies whole in this window."""
    inside = np.flatnonzero(windows.is_context[row])
    begins, stops = windows.offsets[row, inside, 0], windows.offsets[row, inside, 1]
    found: dict[tuple[int, int], None] = {}  # in the file's order, each once
    for text, first in zip(example.answers, example.starts, strict=True):
        last = first + len(text)
        if not len(inside) or first < begins[0] or last > stops[-1]:
            continue
        start = int(np.searchsorted(stops, first, side="right"))
        end = int(np.searchsorted(begins, last, side="left")) - 1
        if start <= end:
            found[int(inside[start]), int(inside[end])] = None
    return tuple(found)
