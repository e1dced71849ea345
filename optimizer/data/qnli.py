"""A set of question and sentence pairs in the form of GLUE's QNLI, made from questions with answers in contexts.

A question with an answer gives two rows: one with the sentence that holds the answer, and one with the other
sentence of its context that shares the most words with the question. Both labels have equally many rows.
Source: Wang et al. 2019 (GLUE), section 3.3, which pairs a question with every sentence of its context and drops
pairs of few shared words.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.qa.boundaries import sentence_around
from gateway.qa.scoring import normalize
from optimizer.data.question_sets import DataError, Example, article_of

ENTAILS, NOT = "entailment", "not_entailment"  # GLUE's labels
COLUMNS = ("index", "question", "sentence", "label", "group")  # GLUE's, and the article


@dataclass(frozen=True, slots=True)
class Pair:
    """One row."""

    question: str
    sentence: str
    label: str
    group: str  # the article, or the context where it is not known


@dataclass(frozen=True, slots=True)
class Made:
    """The rows, and what of the questions was left out."""

    pairs: tuple[Pair, ...]
    n_questions: int  # that gave two rows each
    unanswerable: int
    without_sentence: int  # their answer lies in no single sentence, or in every one


def made_of(examples: Sequence[Example]) -> Made:
    """Return the pairs of some questions. Raises: DataError where none gives a pair."""
    answerable = [e for e in examples if e.answerable]
    found = [pairs for e in answerable if (pairs := list(_pairs_of(e)))]
    if not found:
        raise DataError(
            f"none of {len(examples)} questions gives a pair: each needs an answer in one sentence of a context of"
            " several; give a question set with answers"
        )
    return Made(
        tuple(pair for pairs in found for pair in pairs),
        len(found),
        len(examples) - len(answerable),
        len(answerable) - len(found),
    )


def _pairs_of(example: Example) -> Iterator[Pair]:
    """Yield a question's two rows; none where the sentences do not tell the labels apart."""
    begin, answer = example.starts[0], example.answers[0]
    end = begin + len(answer)
    sentences = list(sentences_of(example.context))
    holding = [part for part in sentences if part[0] <= begin and end <= part[1]]
    words = _words(example.question)
    named = {normalize(text) for text in example.answers}
    elsewhere = (
        example.context[first:last] for first, last in sentences if (first, last) not in holding
    )
    others = [text for text in elsewhere if not any(n and n in normalize(text) for n in named)]
    if not holding or not others:
        return
    group = article_of(example) or f"context-{_sha8(example.context)}"
    first, last = holding[0]
    nearest = max(others, key=lambda text: len(words & _words(text)))  # of equals the first
    yield Pair(example.question, example.context[first:last], ENTAILS, group)
    yield Pair(example.question, nearest, NOT, group)


def sentences_of(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each sentence of a text begins and ends, without white space around it."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        begin, at = sentence_around(text, at, at + 1)
        yield begin, at


def _words(text: str) -> set[str]:
    return set(normalize(text).split())


def _sha8(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def write(pairs: Iterable[Pair], path: Path) -> None:
    """Write the rows as a tab-separated file, by one rename: white space in a text becomes a single space.

    Raises: DataError.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    lines = ["\t".join(COLUMNS)]
    for i, pair in enumerate(pairs):
        fields = (pair.question, pair.sentence, pair.label, pair.group)
        lines.append("\t".join([str(i), *(" ".join(field.split()) for field in fields)]))
    try:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as exc:
        raise DataError(f"{path}: cannot be written: {exc.strerror}") from exc
    finally:
        part.unlink(missing_ok=True)


def counts_of(pairs: Iterable[Pair]) -> dict[str, int]:
    """Return how many rows each label has."""
    found = Counter(pair.label for pair in pairs)
    return {label: found[label] for label in (ENTAILS, NOT)}
