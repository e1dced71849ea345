"""Asks every variant of a repository the questions of a recording; answers are kept, so a killed run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.catalog import store
from gateway.catalog.schema import Variant
from gateway.domain import Answer
from gateway.qa import codec
from gateway.qa.codec import SpanEncoder
from loadtest.quality import recording
from loadtest.quality.recording import CERTIFIED, REPORT, SEARCH, SHIFTED, UNSHIFTED, AnsweredSet
from optimizer.certify import strata
from optimizer.data import question_sets
from optimizer.data.question_sets import Example, Split
from optimizer.evaluation import cached


@dataclass(frozen=True, slots=True)
class Sources:
    """Question sets: one that certifies, one that is unlike it, and test data; names or files."""

    certifying: str
    other: str
    report: str


def record(repository: Path, sources: Sources, folder: Path, path: Path) -> None:
    """Write a recording of the sources.

    `folder`: of a study; answers are kept there as `bertier-optimize expect` keeps them. Raises: DataError.
    """
    catalog = store.read_questions(repository)
    encoder = SpanEncoder.from_file(repository / store.TOKENIZER)
    sets: dict[str, AnsweredSet] = {}
    for part, names, examples in _parts(sources):
        given = {v.name: _ask(repository, v, part, examples, folder) for v in catalog.variants}
        for name, rows in names.items():
            chosen = [examples[i] for i in rows]
            tokens = [encoder.encode(e.as_question()).n_tokens for e in chosen]
            answers = {v: [found[i] for i in rows] for v, found in given.items()}
            sets[name] = AnsweredSet(chosen, tokens, answers)
    recording.write(path, catalog, sets)


def _parts(
    sources: Sources,
) -> Iterator[tuple[str, dict[str, Sequence[int]], Sequence[Example]]]:
    """Yield what is asked at once: its name in the folder, which of it are which sets, and the questions."""
    search = _split(sources.certifying, Split.SEARCH, certifies=True)
    yield "search", {SEARCH: range(len(search))}, search
    calibrate = _split(sources.certifying, Split.CALIBRATE, certifies=True)
    fresh = np.flatnonzero(strata.held_out(calibrate)).tolist()
    certified = sorted(set(range(len(calibrate))).difference(fresh))
    yield "calibrate", {CERTIFIED: certified, UNSHIFTED: fresh}, calibrate
    other = _split(sources.other, Split.SEARCH, certifies=False)
    yield f"{_stem(sources.other)}-search", {SHIFTED: range(len(other))}, other
    report = question_sets.load(sources.report)
    yield _stem(sources.report), {REPORT: range(len(report))}, report


def _split(source: str, split: Split, *, certifies: bool) -> list[Example]:
    return [
        e
        for e in question_sets.load(source)
        if question_sets.split_of(e, by_article=certifies, certifies=certifies) is split
    ]


def _stem(source: str) -> str:
    return Path(source).name.split(".")[0]


def _ask(
    repository: Path, variant: Variant, part: str, examples: Sequence[Example], folder: Path
) -> list[Answer]:
    file, tokenizer = store.model_path(repository, variant), repository / store.TOKENIZER
    model = cached.Model(file, variant.sha256, tokenizer, variant.precision)
    readings, _ = cached.readings(model, folder / "published" / variant.name, part, examples)
    return [codec.answer_of(reading, variant.decoding) for reading in readings]
