"""Teachers' answers as targets for a student's training rows, in the student's own tokens.

Legend: T teachers, R rows, K kept places, B rows of a batch, S tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gateway.qa.codec import SpanEncoder
from optimizer.data.items import Feature
from optimizer.data.question_sets import Example
from optimizer.models.bert import IGNORE
from optimizer.teachers.mapping import (
    CLS,
    END,
    NOTHING,
    START,
    Spread,
    TargetRow,
    best_span,
    is_cut,
    onto_tokens,
)
from optimizer.teachers.store import AnswerStore, key_of
from optimizer.training.loop import Batch
from optimizer.training.teacher_outputs import TeacherOutputs


@dataclass(frozen=True, slots=True)
class Mapped:
    """How many of one teacher's answers reached the rows."""

    questions: int
    too_long: int  # questions that do not fit into its window
    spans: int  # answers that lie in their row
    cut: int  # of these, how many begin or end inside a token of the student

    def __str__(self) -> str:
        share = 100 * self.cut / max(self.spans, 1)
        return (
            f"{self.questions - self.too_long} of {self.questions} questions asked"
            f" ({self.too_long} too long for its window); {self.cut} of {self.spans} answers"
            f" ({share:.1f} %) begin or end inside a token of the student"
        )


@dataclass(frozen=True, slots=True)
class MappedAnswers:
    """The mean answer of several teachers, row by row."""

    tokens: np.ndarray  # (T, R, 2, K) int16
    shares: np.ndarray  # (T, R, 2, K) float16
    known: np.ndarray  # (T, R) bool: which teacher was asked about which row
    context: np.ndarray  # (R, 2) first token of the context, and the one after its last

    @classmethod
    def of_rows(
        cls, rows: Sequence[TargetRow], spreads: Sequence[Sequence[Spread]]
    ) -> MappedAnswers:
        """Map each teacher's answers to the rows; `spreads`: T of R."""
        tokens = [[_tokens(s, row) for s, row in zip(t, rows, strict=True)] for t in spreads]
        ranges = [(r.tokens[0], r.tokens[-1] + 1) if len(r.tokens) else (0, 0) for r in rows]
        return cls(
            np.asarray(tokens, np.int16),
            np.asarray([[s.shares for s in t] for t in spreads], np.float16),
            np.asarray([[is_known(s) for s in t] for t in spreads], np.bool_),
            np.asarray(ranges, np.int32),
        )

    def of(self, batch: Batch) -> TeacherOutputs:
        """Return the logits of the teachers' mean, each row summing to 1; no hidden states.

        A row that no teacher was asked about has its labels'.
        """
        chances = self.chances(batch.rows, batch.input_ids.shape[1])
        unasked = ~self.known[:, list(batch.rows)].any(0)
        for side, gold in enumerate((batch.starts, batch.ends)):
            labels = gold.cpu().numpy()[unasked].astype(np.float32)
            chances[side, unasked] = labels / labels.sum(-1, keepdims=True)
        logits = np.full(chances.shape, IGNORE, np.float32)
        np.log(chances, out=logits, where=chances > 0)
        start, end = torch.from_numpy(logits).to(batch.input_ids.device)
        return TeacherOutputs((start, end), None)

    def chances(self, rows: Sequence[int], n_tokens: int) -> np.ndarray:  # (2, B, S) float32
        """Return the teachers' mean distributions over the tokens of some rows."""
        picked = list(rows)
        elsewhere = self._possible(picked, n_tokens)  # (B, S)
        elsewhere /= elsewhere.sum(-1, keepdims=True)
        found = np.zeros((2, len(picked), n_tokens), np.float32)
        where = np.arange(len(picked))[:, None]
        for tokens, shares, known in zip(self.tokens, self.shares, self.known, strict=True):
            for side in (START, END):
                mass = shares[picked, side].astype(np.float32) * known[picked, None]  # (B, K)
                np.add.at(found[side], (where, tokens[picked, side].astype(np.int64)), mass)
                rest = np.maximum(known[picked] - mass.sum(-1), 0.0)
                found[side] += rest[:, None] * elsewhere
        n_known = np.maximum(self.known[:, picked].sum(0), 1)
        found /= n_known[None, :, None]
        return found

    def _possible(self, rows: list[int], n_tokens: int) -> np.ndarray:
        """Return 1 for tokens where an answer may lie, and for "no answer"."""
        place = np.arange(n_tokens)
        first, stop = self.context[rows, :1], self.context[rows, 1:]
        possible: np.ndarray = (place == CLS) | ((place >= first) & (place < stop))
        return possible.astype(np.float32)


def row_of(example: Example, feature: Feature, encoder: SpanEncoder) -> TargetRow:
    """Return where the tokens of a training row stand in the text: it is one of the windows."""
    windows = encoder.encode(example.as_question())
    n = len(feature.input_ids)
    lengths = windows.attention_mask.sum(-1)
    same = (windows.input_ids[:, :n] == feature.input_ids).all(-1) & (lengths == n)
    assert same.any(), f"{example.id}: its training row is none of its windows"
    which = int(same.argmax())
    tokens = np.flatnonzero(windows.is_context[which])
    begins, ends = windows.offsets[which, tokens].T if len(tokens) else np.zeros((2, 0), np.int64)
    first, last = which == 0, which == windows.n_windows - 1
    return TargetRow(
        tokens,
        begins,
        ends,
        low=0 if first or not len(tokens) else int(begins[0]),
        high=len(example.context) if last or not len(tokens) else int(ends[-1]),
    )


def spreads_of(examples: Sequence[Example], store: AnswerStore) -> list[Spread]:
    return [store[key_of(e.question, e.context)] for e in examples]


def counted(rows: Sequence[TargetRow], spreads: Sequence[Spread]) -> Mapped:
    """Return how many answers reach the student's tokens whole."""
    asked = [(row, s) for row, s in zip(rows, spreads, strict=True) if is_known(s)]
    spans = [(row, span) for row, s in asked if (span := best_span(s)) is not None]
    cuts = [cut for row, span in spans if (cut := is_cut(span, row)) is not None]
    return Mapped(len(rows), len(rows) - len(asked), len(cuts), sum(cuts))


def is_known(spread: Spread) -> bool:
    return bool(spread.places[START, 0] != NOTHING)


def _tokens(spread: Spread, row: TargetRow) -> np.ndarray:  # (2, K)
    return np.stack([onto_tokens(spread.places[side], side, row) for side in (START, END)])
