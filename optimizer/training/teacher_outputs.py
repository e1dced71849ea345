"""A teacher's logits and hidden states for every training row: computed once, cached on disk as float16.

A row takes about 770 bytes a token at width 384, and saves the teacher's forward pass in every epoch.
Legend: R rows, T tokens of all rows, B rows of a batch, S tokens of its longest, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from optimizer.data.question_sets import Feature
from optimizer.models.bert import IGNORE
from optimizer.study.progress import Progress
from optimizer.study.stages import CHECKPOINT, write_json
from optimizer.training.loop import Batch, autocast, batch_of, device

HIDDEN, LOGITS = "hidden.f16", "logits.f16"
BATCH = 32
FLUSH_EVERY = 50  # batches


@dataclass(frozen=True, slots=True)
class TeacherOutputs:
    """The teacher's logits for a batch (IGNORE at padding) and its last hidden states."""

    start: torch.Tensor  # (B, S)
    end: torch.Tensor  # (B, S)
    hidden: torch.Tensor | None  # (B, S, H); None: the student does not imitate hidden states


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """The cached rows, concatenated without padding."""

    firsts: np.ndarray  # (R + 1,) first token of each row
    hidden: np.ndarray  # (T, H) float16
    logits: np.ndarray  # (T, 2) float16

    @classmethod
    def open(
        cls, folder: Path, features: Sequence[Feature], width: int, mode: str = "r"
    ) -> TeacherStates:
        """Map the files of these rows. Raises: FileNotFoundError when they were never written."""
        lengths = [len(f.input_ids) for f in features]
        firsts = np.concatenate([[0], np.cumsum(lengths)])
        n_tokens = int(firsts[-1])

        def mapped(name: str, columns: int) -> np.ndarray:
            return np.memmap(folder / name, np.float16, mode, shape=(n_tokens, columns))  # type: ignore[call-overload, no-any-return]

        return cls(firsts, mapped(HIDDEN, width), mapped(LOGITS, 2))

    def of(self, batch: Batch) -> TeacherOutputs:
        """Return the teacher outputs for the rows of a batch."""
        b, s = batch.input_ids.shape
        hidden = np.zeros((b, s, self.hidden.shape[1]), np.float16)
        logits = np.full((2, b, s), IGNORE, np.float32)
        for i, row in enumerate(batch.rows):
            part = slice(self.firsts[row], self.firsts[row + 1])
            n = part.stop - part.start
            hidden[i, :n] = self.hidden[part]
            logits[:, i, :n] = self.logits[part].T
        where = batch.input_ids.device
        start, end = torch.from_numpy(logits).to(where)
        return TeacherOutputs(start, end, torch.from_numpy(hidden).to(where).float())

    def put(self, batch: Batch, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        """Store the teacher outputs of a batch: hidden (B, S, H), logits (B, S, 2)."""
        for i, row in enumerate(batch.rows):
            part = slice(self.firsts[row], self.firsts[row + 1])
            n = part.stop - part.start
            self.hidden[part] = hidden[i, :n].half().cpu().numpy()
            self.logits[part] = logits[i, :n].half().cpu().numpy()


@torch.no_grad()
def write(
    teacher: torch.nn.Module,
    features: Sequence[Feature],
    folder: Path,
    width: int,
    flush_every: int = FLUSH_EVERY,
) -> None:
    """Run the teacher on every row; resumes where a killed run stopped."""
    ordered = sorted(range(len(features)), key=lambda row: len(features[row].input_ids))
    plan = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
    checkpoint = folder / CHECKPOINT
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    states = TeacherStates.open(folder, features, width, mode="r+" if done else "w+")
    progress = Progress("teacher states", len(plan) - done)
    teacher.to(device()).eval()
    for step in range(done, len(plan)):
        batch = batch_of(features, plan[step])
        with autocast():
            out = teacher(**batch.inputs(), output_hidden_states=True)
        logits = torch.stack([out.start_logits, out.end_logits], dim=-1)
        states.put(batch, out.hidden_states[-1], logits)
        progress.step()
        if step % flush_every == flush_every - 1 or step == len(plan) - 1:
            for array in (states.hidden, states.logits):
                array.flush()  # type: ignore[attr-defined]
            write_json(checkpoint, step + 1)
    checkpoint.unlink(missing_ok=True)
