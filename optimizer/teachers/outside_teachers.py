"""Teachers that are not published: each answers the questions once; the mean is mapped to training rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.qa.codec import SpanEncoder
from optimizer.data.items import Feature
from optimizer.data.question_sets import Example
from optimizer.teachers import checkpoint, rows
from optimizer.teachers.errors import TeacherError
from optimizer.teachers.inference import ask
from optimizer.teachers.mapping import KEPT
from optimizer.teachers.rows import MappedAnswers
from optimizer.teachers.store import AnswerStore, key_of
from optimizer.teachers.windows import WindowEncoder

log = logging.getLogger(__name__)

FIRST = 200  # questions that check a teacher's token offsets before it answers all of them
FEW = 20  # with fewer answerable questions the check is skipped
MOST_CUT = 0.5  # largest share of gold answers that may begin or end inside a token


@dataclass(frozen=True)
class OutsideTeachers:
    """Checkpoints that teach and are not published."""

    names: tuple[str, ...]
    window: int | None  # tokens; None: each teacher's own
    folder: Path  # of their cached answers

    def inputs(self) -> dict[str, Any]:
        """Return everything that their answers depend on."""
        return {
            "teachers": [checkpoint.identity_once(name) for name in self.names],
            "window": self.window,
        }

    def answers(
        self, examples: Sequence[Example], features: Sequence[Feature], encoder: SpanEncoder
    ) -> tuple[MappedAnswers, dict[str, Any]]:
        """Return the targets of training rows, one a question, and how many answers were mapped.

        Runs the teachers on questions without a cached answer. Raises: TeacherError.
        """
        mapped = [rows.row_of(e, f, encoder) for e, f in zip(examples, features, strict=True)]
        stores = [self._asked(name, examples) for name in self.names]
        spreads = [rows.spreads_of(examples, store) for store in stores]
        found = {n: rows.counted(mapped, s) for n, s in zip(self.names, spreads, strict=True)}
        for name, counts in found.items():
            log.info("%s: %s", name, counts)
            if counts.questions == counts.too_long > 0:
                raise TeacherError(
                    f"{name}: none of {counts.questions} questions fits into its window"
                )
        return MappedAnswers.of_rows(mapped, spreads), {n: asdict(c) for n, c in found.items()}

    def _asked(self, name: str, examples: Sequence[Example]) -> AnswerStore:
        """Return a teacher's cached answers, complete for these questions."""
        store = AnswerStore(self._folder(name))
        if all(key_of(e.question, e.context) in store for e in examples):
            return store
        teacher = checkpoint.load(name, self.window)
        some = range(0, len(examples), max(1, len(examples) // FIRST))
        _check_places(name, teacher.encoder, [examples[i] for i in some])
        ask(teacher, examples, store)
        return store

    def _folder(self, name: str) -> Path:
        what = f"{checkpoint.identity_once(name)} {self.window} {KEPT}"
        return checkpoint.answers_folder(self.folder, name, what)


def _check_places(name: str, encoder: WindowEncoder, examples: Sequence[Example]) -> None:
    """Raises: TeacherError when most gold answers do not align with the teacher's tokens."""
    held = [found for e in examples if e.answerable and (found := _holds(encoder, e)) is not None]
    cut = held.count(False)
    if len(held) >= FEW and cut > MOST_CUT * len(held):
        raise TeacherError(
            f"{name}: {cut} of {len(held)} gold answers begin or end inside a token of its tokenizer,"
            " so its answers cannot be mapped: the offsets of its tokenizer.json may be wrong"
        )


def _holds(encoder: WindowEncoder, example: Example) -> bool | None:
    """Return whether the first gold answer aligns with tokens; None: no window fits the question."""
    windows = encoder.windows(example.question, example.context)
    first, last = example.starts[0], example.starts[0] + len(example.answers[0])
    begins = {int(b) for w in windows for b in w.begins[w.is_context]}
    ends = {int(e) for w in windows for e in w.ends[w.is_context]}
    return first in begins and last in ends if windows else None
