"""What each variant says to each question, asked once and kept: the lab never runs a model again.

Legend: N questions.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.backends.embedded import open_session, run
from gateway.catalog import store
from gateway.catalog.schema import Variant
from gateway.catalog.store import Catalog
from gateway.domain import Size
from gateway.errors import BertierError
from gateway.qa import codec
from gateway.qa.codec import SpanEncoder
from loadtest.sample import questions
from optimizer.data import evaluate
from optimizer.data.question_sets import Example
from optimizer.study.progress import Progress

FORMAT = 1


class RecordingError(BertierError):
    """A recording that cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Said:
    """The answers of one variant, in the order of the questions."""

    sha256: str  # of the model file
    answers: tuple[str, ...]  # (N,) empty: unanswerable
    confidence: tuple[float, ...]  # (N,) calibrated P(the answer is right)
    f1: tuple[float, ...]  # (N,) token F1 by the SQuAD 2.0 rule
    cpu_ms: tuple[float, ...]  # (N,) CPU time of the whole inference, all windows, one thread


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded answers of some variants to the same questions."""

    data: str
    ids: tuple[str, ...]  # (N,)
    sizes: tuple[Size, ...]  # (N,)
    said: Mapping[str, Said]  # by variant

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """Return what changes when any recorded answer or model does; recorded times left out."""
        kept = {name: (s.sha256, s.answers, s.f1) for name, s in sorted(self.said.items())}
        return hashlib.sha256(json.dumps([self.ids, kept]).encode()).hexdigest()[:16]


def of_catalog(
    repository: Path,
    data: str | None,
    limit: int | None,
    folder: Path,
    variants: Collection[str] | None = None,
) -> Recording:
    """Return the recording of variants of a repository, by default all; asks only what `folder` does not hold.

    Each variant is a file of its own, written when it is whole: a killed run goes on from there.
    Raises: RepositoryError, RecordingError, DataError.
    """
    catalog = store.read_questions(repository)
    examples = questions(data, limit)
    if not examples:
        raise RecordingError(f"{data}: no questions; name a SQuAD-format file that has some")
    key = hashlib.sha256("\n".join(e.id for e in examples).encode()).hexdigest()[:12]
    encoder = SpanEncoder.from_file(repository / store.TOKENIZER)
    sizes = tuple(_size(encoder, e) for e in examples)
    said = {
        v.name: _said(repository, v, examples, encoder, folder / key / f"{v.sha256[:16]}.json.xz")
        for v in catalog.variants
        if variants is None or v.name in variants
    }
    return Recording(data or "shipped sample", tuple(e.id for e in examples), sizes, said)


def check(recording: Recording, catalog: Catalog) -> None:
    """Raise RecordingError unless all variants were recorded as they are published."""
    for variant in catalog.variants:
        found = recording.said.get(variant.name)
        if found is None or found.sha256 != variant.sha256:
            raise RecordingError(
                f"{variant.name}: not in the recording as published; run 'bertier-loadtest lab --record'"
            )


def _size(encoder: SpanEncoder, example: Example) -> Size:
    windows = encoder.encode(example.as_question())
    return Size(windows.input_ids.shape[1], windows.n_windows)


def _said(
    repository: Path,
    variant: Variant,
    examples: Sequence[Example],
    encoder: SpanEncoder,
    path: Path,
) -> Said:
    if path.exists():
        return _read(path)
    said = _ask(repository, variant, examples, encoder)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with lzma.open(part, "wt", preset=6) as file:
        json.dump({"format": FORMAT, **asdict(said)}, file, ensure_ascii=False)
    os.replace(part, path)
    return said


def _read(path: Path) -> Said:
    try:
        with lzma.open(path, "rt") as file:
            kept: dict[str, Any] = json.load(file)
    except (OSError, EOFError, lzma.LZMAError, ValueError) as exc:
        raise RecordingError(f"{path}: not readable ({exc}); delete it, it is made again") from exc
    if kept.pop("format", None) != FORMAT:
        raise RecordingError(f"{path}: of another version; delete it, it is made again")
    sha256 = kept.pop("sha256")
    return Said(sha256, **{k: tuple(v) for k, v in kept.items()})


def _ask(
    repository: Path, variant: Variant, examples: Sequence[Example], encoder: SpanEncoder
) -> Said:
    """Ask the model everything; CPU time, because a busy host stretches only the wall's."""
    session = open_session(store.model_path(repository, variant), precision=variant.precision)
    progress = Progress(f"record {variant.name}", len(examples))
    answers, confidence, f1, cpu_ms = [], [], [], []
    for example in examples:
        question = example.as_question()
        windows = encoder.encode(question)
        began = time.thread_time()
        logits = run(session, windows)
        cpu_ms.append(round((time.thread_time() - began) * 1e3, 3))
        answer = codec.decode(windows, logits, question, variant.decoding)
        answers.append(answer.text)
        confidence.append(round(answer.score, 4))
        f1.append(round(evaluate.f1(answer.text, example.answers), 4))
        progress.step()
    return Said(variant.sha256, tuple(answers), tuple(confidence), tuple(f1), tuple(cpu_ms))
