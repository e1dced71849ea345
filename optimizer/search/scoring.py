"""F1 (or accuracy) of slices of an elastic student: as they would be served, or on a GPU by the student itself.

Legend: B windows of a batch, S tokens of its longest, W windows of a question, L labels; K distributions of M places:
start and end over the tokens, or one over the labels.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from gateway.domain import LabelLogits, Logits, Windows
from gateway.qa.codec import SpanEncoder
from optimizer.data import evaluate
from optimizer.data.items import AnyReading, Feature, Item
from optimizer.data.question_sets import I
from optimizer.evaluation import decoding
from optimizer.models.bert import IGNORE
from optimizer.onnx import export
from optimizer.students.supernet import Supernet
from optimizer.study import workers
from optimizer.study.space import Candidate
from optimizer.training import loop

BATCH = 64  # windows of a batch on a GPU

Cut = Callable[[Candidate], PreTrainedModel]


def sample(examples: Sequence[I]) -> list[I]:
    """Return the questions in a fixed order that does not depend on their articles.

    The first n are the questions of a rung, so a higher rung contains the lower ones.
    """
    return sorted(examples, key=lambda e: hashlib.sha256(e.id.encode()).digest())


class Scorer(Protocol):
    """What tells candidates apart."""

    def f1(self, candidate: Candidate, n: int) -> float:
        """Return F1 on the first `n` questions, with the no-answer threshold fitted on the same.

        So F1 is optimistic, equally for all candidates.
        """
        ...


class SliceScorer:
    """Scores candidates on the first questions of a list; caches the answers of the last candidate."""

    def __init__(
        self,
        cut: Cut,
        tokenizer: Path,
        questions: Sequence[Item],
        lock: Path = workers.HOST_LOCK,
    ) -> None:
        self._cut, self._tokenizer, self._questions, self._lock = cut, tokenizer, questions, lock
        self._last: tuple[Candidate | None, list[AnyReading]] = (None, [])

    def f1(self, candidate: Candidate, n: int) -> float:
        """Return F1 as the file is served; see `Scorer`."""
        before = self._last[1] if self._last[0] == candidate else []
        if len(before) < n:
            more = self._ask(candidate, self._questions[len(before) : n])
            self._last = (candidate, [*before, *more])
        return _fitted_f1(self._questions[:n], self._last[1][:n])

    def _ask(self, candidate: Candidate, questions: Sequence[Item]) -> list[AnyReading]:
        with tempfile.TemporaryDirectory() as folder, workers.working(self._lock):
            path = Path(folder) / "slice" / "export" / "model.onnx"
            path.parent.mkdir(parents=True)
            export.write(self._cut(candidate), path, candidate.precision)
            return evaluate.read_all(path, self._tokenizer, questions, candidate.precision)


@dataclass(frozen=True)
class NetScorer:
    """Scores candidates on a GPU, in seconds: nothing is cut, exported or rounded to INT8.

    What rounding costs is not in this F1. Finished members are measured as they are served.
    """

    net: Supernet
    tokenizer: Path
    questions: Sequence[Item]

    def f1(self, candidate: Candidate, n: int) -> float:
        """Return F1 of the unrounded slice; see `Scorer`."""
        return _fitted_f1(self.questions[:n], self.readings(candidate, n))

    def readings(self, candidate: Candidate, n: int) -> list[Any]:  # AnyReading
        """Return what a slice says to the first `n` questions."""
        windows = self._windows[:n]
        rows = [(i, row) for i, found in enumerate(windows) for row in range(found.n_windows)]
        features = [_feature(windows[i], row) for i, row in rows]
        said: dict[tuple[int, int], np.ndarray] = {}  # (question, window) -> (K, M)
        order = sorted(range(len(rows)), key=lambda k: len(features[k].input_ids))
        self.net.to(loop.device()).eval()
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            with torch.no_grad(), loop.autocast():
                found = self.net(loop.batch_of(features, part), candidate).logits
            each = torch.stack(found).float().cpu().numpy()  # (K, B, M)
            said |= {rows[k]: each[:, b] for b, k in enumerate(part)}
        asked = enumerate(zip(windows, self.questions[:n], strict=True))
        return [
            e.read(w, _logits_of(w, [said[i, row] for row in range(w.n_windows)]))
            for i, (w, e) in asked
        ]

    @cached_property
    def _windows(self) -> list[Windows]:
        encoder = SpanEncoder.from_file(self.tokenizer)
        return [e.windows(encoder) for e in self.questions]


def _logits_of(windows: Windows, said: Sequence[np.ndarray]) -> Logits | LabelLogits:  # W of (K, M)
    """Return the logits as a backend does: those of padding, and beyond, are IGNORE."""
    if len(said[0]) == 1:
        return LabelLogits(np.concatenate(said))
    logits = np.full((2, *windows.input_ids.shape), IGNORE, np.float32)
    for row, both in enumerate(said):
        n = int(windows.attention_mask[row].sum())
        logits[:, row, :n] = both[:, :n]
    return Logits(*logits)


def _feature(windows: Windows, row: int) -> Feature:
    n = int(windows.attention_mask[row].sum())
    return Feature(
        windows.input_ids[row, :n].astype(np.int32),
        windows.token_type_ids[row, :n].astype(np.int8),
        ((0, 0),),
    )


def _fitted_f1(examples: Sequence[Item], readings: Sequence[AnyReading]) -> float:
    how = decoding.fit(examples, readings)
    return evaluate.mean_value(examples, evaluate.texts_of(examples, readings, how))
