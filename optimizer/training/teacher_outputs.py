"""A teacher's logits and hidden states for the training rows.

They are computed once and cached on disk as float16: logits take 4 bytes a token (a classifier's 2 bytes a
label and row), hidden states at width 384 another 768, and both save the teacher's forward pass in every epoch. Where hidden states are
wanted on a GPU, the teacher is asked again for every batch: that is faster than reading gigabytes.
Legend: R rows, T tokens of all rows, B rows of a batch, S tokens of its longest, H hidden width, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from optimizer.data.items import Feature
from optimizer.models.bert import IGNORE, as_student, classifies, said_by
from optimizer.models.student import ModelError
from optimizer.study.progress import Progress
from optimizer.study.stages import CHECKPOINT, write_json
from optimizer.training.intermediate import Place, watched
from optimizer.training.loop import Batch, autocast, batch_of, device

HIDDEN, LOGITS = "hidden.f16", "logits.f16"
BATCH, GPU_BATCH = 32, 128
FLUSH_EVERY = 50  # batches


@dataclass(frozen=True, slots=True)
class TeacherOutputs:
    """The teacher's logits for a batch (IGNORE at padding) and its last hidden states."""

    logits: tuple[torch.Tensor, ...]  # start and end, (B, S) each; of a classifier one, (B, L)
    hidden: torch.Tensor | None  # (B, S, H); None: the student does not imitate hidden states
    inner: Mapping[Place, torch.Tensor] = field(default_factory=dict)  # what was watched

    @property
    def start(self) -> torch.Tensor:  # (B, S)
        return self.logits[0]

    @property
    def end(self) -> torch.Tensor:  # (B, S)
        return self.logits[1]


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """A teacher that is asked for every batch."""

    model: torch.nn.Module
    places: tuple[Place, ...] = ()  # that are watched

    @classmethod
    def of_model(cls, model: PreTrainedModel, places: Sequence[Place] = ()) -> LiveTeacher:
        asked = as_student(model).to(device()).eval()  # type: ignore[arg-type] # stubs of torch
        return cls(asked, tuple(places))

    @torch.no_grad()
    def of(self, batch: Batch) -> TeacherOutputs:
        """Return the teacher outputs for the rows of a batch."""
        with autocast(), watched(self.model, self.places) as inner:
            out = self.model(**batch.inputs(), output_hidden_states=True)
        said = tuple(logits.float() for logits in said_by(out))
        if batch.labels is None:
            padding = batch.attention_mask == 0
            said = tuple(logits.masked_fill(padding, IGNORE) for logits in said)
        return TeacherOutputs(said, out.hidden_states[-1].float(), inner)


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """The cached rows, concatenated without padding."""

    firsts: np.ndarray  # (R + 1,) first token of each row
    hidden: np.ndarray | None  # (T, H) float16; None: only logits are kept
    logits: np.ndarray  # (T, 2) float16; of a classifier (R, L)
    n_labels: int = 0  # of a classifier

    @classmethod
    def open(
        cls,
        folder: Path,
        features: Sequence[Feature],
        width: int = 0,
        mode: str = "r",
        n_labels: int = 0,
    ) -> TeacherStates:
        """Map the files of these rows; `width`: of the hidden states, 0: only logits are kept.

        Raises: FileNotFoundError when they were never written.
        """
        lengths = [len(f.input_ids) for f in features]
        firsts = np.concatenate([[0], np.cumsum(lengths)])
        n_tokens = int(firsts[-1])

        def mapped(name: str, *shape: int) -> np.ndarray:
            return np.memmap(folder / name, np.float16, mode, shape=shape)  # type: ignore[call-overload, no-any-return]

        logits = (len(features), n_labels) if n_labels else (n_tokens, 2)
        hidden = mapped(HIDDEN, n_tokens, width) if width else None
        return cls(firsts, hidden, mapped(LOGITS, *logits), n_labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process: the logits by value, the gigabytes of hidden states by their file."""
        hidden: Any = self.hidden
        file = None if hidden is None else (str(hidden.filename), hidden.shape)
        return _received, (self.firsts, file, np.array(self.logits), self.n_labels)

    def of(self, batch: Batch) -> TeacherOutputs:
        """Return the teacher outputs for the rows of a batch."""
        b, s = batch.input_ids.shape
        width = 0 if self.hidden is None else self.hidden.shape[1]
        hidden = np.zeros((b, s, width), np.float16)
        logits = np.full((2, b, s), IGNORE, np.float32)
        for i, row in enumerate(batch.rows):
            part = slice(self.firsts[row], self.firsts[row + 1])
            n = part.stop - part.start
            if self.hidden is not None:
                hidden[i, :n] = self.hidden[part]
            if not self.n_labels:
                logits[:, i, :n] = self.logits[part].T
        if self.n_labels:
            logits = self.logits[list(batch.rows)].astype(np.float32)[None]  # (1, B, L)
        where = batch.input_ids.device
        states = torch.from_numpy(hidden).to(where).float() if width else None
        return TeacherOutputs(tuple(torch.from_numpy(logits).to(where)), states)

    def put(self, batch: Batch, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        """Store the teacher outputs of a batch: hidden (B, S, H), logits (B, S, 2) or (B, L)."""
        kept = None if self.hidden is None else hidden.half().cpu().numpy()
        halves = logits.half().cpu().numpy()
        for i, row in enumerate(batch.rows):
            part = slice(self.firsts[row], self.firsts[row + 1])
            n = part.stop - part.start
            if self.hidden is not None and kept is not None:
                self.hidden[part] = kept[i, :n]
            if not self.n_labels:
                self.logits[part] = halves[i, :n]
        if self.n_labels:
            self.logits[list(batch.rows)] = halves


def _received(
    firsts: np.ndarray, file: tuple[str, tuple[int, int]] | None, logits: np.ndarray, n_labels: int
) -> TeacherStates:
    if file is None:
        return TeacherStates(firsts, None, logits, n_labels)
    try:
        hidden = np.memmap(file[0], np.float16, "r", shape=file[1])
        return TeacherStates(firsts, hidden, logits, n_labels)
    except OSError as exc:
        raise ModelError(
            f"{file[0]}: not on this machine ({exc.strerror}); without GPUs all processes of torchrun"
            " read the teacher's hidden states: share the run folder, or set hidden_weight = 0"
        ) from exc


@torch.no_grad()
def write(
    teacher: torch.nn.Module,
    features: Sequence[Feature],
    folder: Path,
    width: int = 0,
    flush_every: int = FLUSH_EVERY,
) -> None:
    """Run the teacher on every row; resumes where a killed run stopped.

    `width`: of the hidden states that are kept, too; 0: none.
    """
    ordered = sorted(range(len(features)), key=lambda row: len(features[row].input_ids))
    size = GPU_BATCH if device().type == "cuda" else BATCH
    plan = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    checkpoint = folder / CHECKPOINT
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    config: Any = getattr(teacher, "config", None)
    n_labels = config.num_labels if classifies(teacher) else 0
    mode = "r+" if done else "w+"
    states = TeacherStates.open(folder, features, width, mode, n_labels)
    progress = Progress("teacher states", len(plan) - done)
    teacher.to(device()).eval()
    for step in range(done, len(plan)):
        batch = batch_of(features, plan[step])
        with autocast():
            out = teacher(**batch.inputs(), output_hidden_states=True)
        said = said_by(out)
        logits = said[0] if n_labels else torch.stack(said, dim=-1)
        states.put(batch, out.hidden_states[-1], logits)
        progress.step()
        if step % flush_every == flush_every - 1 or step == len(plan) - 1:
            for array in (states.hidden, states.logits):
                if array is not None:
                    array.flush()  # type: ignore[attr-defined]
            write_json(checkpoint, step + 1)
    checkpoint.unlink(missing_ok=True)
