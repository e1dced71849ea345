"""Runs a teacher on many questions, once: on CPU or GPU, resumable after any kill.

Legend: W windows of a batch, S tokens of the longest.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from optimizer.data.question_sets import Example
from optimizer.study.progress import Progress
from optimizer.teachers.checkpoint import QaCheckpoint, padded
from optimizer.teachers.mapping import Spread, spread_of
from optimizer.teachers.store import AnswerStore, key_of
from optimizer.teachers.windows import TeacherWindow, WindowEncoder
from optimizer.training import loop

log = logging.getLogger(__name__)

FULL_PRECISION = ("deberta",)  # hides padding by a number that bfloat16 has not

BATCH, BATCH_GPU = 8, 64  # questions; a GPU is idle with few
WRITE_EVERY_S = 30.0
LOADERS = 8  # processes that cut windows while a GPU computes; a CPU has none to spare


@dataclass(frozen=True, slots=True)
class _Batch:
    keys: list[bytes]
    windows: list[list[TeacherWindow]]  # by question; empty: the question is too long
    inputs: dict[str, torch.Tensor]  # (W, S)

    def pin_memory(self) -> _Batch:
        """Return it in memory that a GPU copies from by itself; the loader asks for it."""
        return replace(self, inputs={k: v.pin_memory() for k, v in self.inputs.items()})


class _Batches(Dataset[_Batch]):
    """Questions by length, cut into windows of the teacher's tokens."""

    def __init__(
        self,
        encoder: WindowEncoder,
        asked: Sequence[tuple[bytes, Example]],
        size: int,
        pad: Callable[[list[TeacherWindow]], dict[str, torch.Tensor]],
    ) -> None:
        ordered = sorted(asked, key=lambda pair: len(pair[1].context) + len(pair[1].question))
        self._parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        self._encoder, self._pad = encoder, pad

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, i: int) -> _Batch:
        part = self._parts[i]
        windows = [self._encoder.windows(e.question, e.context) for _, e in part]
        flat = [window for question in windows for window in question]
        return _Batch([key for key, _ in part], windows, self._pad(flat) if flat else {})


def ask(
    teacher: QaCheckpoint,
    examples: Sequence[Example],
    store: AnswerStore,
    write_every_s: float = WRITE_EVERY_S,
) -> None:
    """Compute the teacher's answers that the store does not have yet, and store them."""
    wanted = {key_of(e.question, e.context): e for e in examples}
    asked = [(key, e) for key, e in wanted.items() if key not in store]
    if not asked:
        return
    on_gpu = loop.device().type == "cuda"
    size = BATCH_GPU if on_gpu else BATCH
    pad = partial(padded, pad_id=teacher.pad_id, takes_types=teacher.takes_types)
    batches = _Batches(teacher.encoder, asked, size, pad)
    loader = DataLoader(
        batches, batch_size=None, num_workers=_loaders(on_gpu=on_gpu), pin_memory=on_gpu
    )
    model: torch.nn.Module = teacher.model
    model.to(loop.device()).eval()
    progress = Progress(f"asking {teacher.name}, batches of {size}", len(batches))
    waiting = _Waiting(store, write_every_s)
    try:
        for batch in loader:
            waiting.add(batch.keys, _answers(teacher, batch))
            progress.step()
    finally:  # store the finished answers whatever stops the rest
        waiting.write()
        model.to("cpu")


@torch.inference_mode()
def _answers(teacher: QaCheckpoint, batch: _Batch) -> list[Spread]:
    if not batch.inputs:
        return [Spread.unknown() for _ in batch.keys]
    where = loop.device()
    inputs = {name: value.to(where, non_blocking=True) for name, value in batch.inputs.items()}
    exact = teacher.model.config.model_type in FULL_PRECISION
    with nullcontext() if exact else loop.autocast():
        out = teacher.model(**inputs)
    logits = torch.stack([out.start_logits, out.end_logits]).float().cpu().numpy()  # (2, W, S)
    return _spreads(batch.windows, logits)


def _spreads(windows: list[list[TeacherWindow]], logits: np.ndarray) -> list[Spread]:
    found, first = [], 0
    for of_question in windows:
        rows = range(first, first + len(of_question))
        first = rows.stop
        starts, ends = (
            [
                logits[side, row, : len(w.input_ids)]
                for row, w in zip(rows, of_question, strict=True)
            ]
            for side in (0, 1)
        )
        found.append(spread_of(of_question, starts, ends) if of_question else Spread.unknown())
    return found


def _loaders(*, on_gpu: bool) -> int:
    return min(LOADERS, (os.cpu_count() or 1) - 1) if on_gpu else 0


class _Waiting:
    """Answers that are written to the store in batches."""

    def __init__(self, store: AnswerStore, every_s: float) -> None:
        self._store, self._every_s = store, every_s
        self._keys: list[bytes] = []
        self._spreads: list[Spread] = []
        self._written_s = time.monotonic()

    def add(self, keys: Sequence[bytes], spreads: Sequence[Spread]) -> None:
        self._keys += keys
        self._spreads += spreads
        if time.monotonic() - self._written_s >= self._every_s:
            self.write()

    def write(self) -> None:
        self._store.add(self._keys, self._spreads)
        self._keys, self._spreads = [], []
        self._written_s = time.monotonic()
