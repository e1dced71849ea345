"""Losses: gold spans, and a student's output pulled towards its teacher's.

Legend: B rows, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from gateway.domain import Logits, Windows
from gateway.embedded import open_session, run
from gateway.host import usable_cores
from optimizer.config import DistillConfig
from optimizer.data import Feature
from optimizer.progress import Progress
from optimizer.space import Candidate
from optimizer.supernet import Outputs
from optimizer.training import IGNORE, Batch, device


def span_logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return start and end logits, each (B, S), with padding set to IGNORE."""
    out = model(**batch.inputs())
    padding = batch.attention_mask == 0
    return (
        out.start_logits.float().masked_fill(padding, IGNORE),
        out.end_logits.float().masked_fill(padding, IGNORE),
    )


def label_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of the gold start and end. Source: Devlin et al. 2019."""
    start, end = span_logits(model, batch)
    return (cross_entropy(start, batch.start) + cross_entropy(end, batch.end)) / 2


class DistillationLoss:
    """Soft targets from a teacher's cached logits, mixed with the gold labels.

    Source: Hinton et al. 2015, section 2, on the start and the end distribution each.
    """

    def __init__(self, teacher: TeacherLogits, temperature: float, label_weight: float) -> None:
        self._teacher = teacher
        self._temperature = temperature
        self._label_weight = label_weight

    def __call__(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        start, end = span_logits(model, batch)
        wanted_start, wanted_end = self._teacher.of(batch)
        t = self._temperature
        soft = soft_loss(start, wanted_start, t) + soft_loss(end, wanted_end, t)
        hard = cross_entropy(start, batch.start) + cross_entropy(end, batch.end)
        return ((1 - self._label_weight) * soft + self._label_weight * hard) / 2


class Imitation:
    """A teacher's outputs and last hidden states, mixed with the gold labels, for several candidates.

    No layer of a student is mapped to one of the teacher's: the last states are the span head's
    whole input, whatever came before. The teacher runs beside the student.
    Source: Hinton et al. 2015, section 2; Jiao et al. 2020 (TinyBERT), equation 8.
    """

    def __init__(
        self,
        teacher: torch.nn.Module,
        how: DistillConfig,
        hidden_weight: float,
        draw: Callable[[], Sequence[Candidate]],
    ) -> None:
        self._teacher = teacher.to(device()).eval()
        self._how = how
        self._hidden_weight = hidden_weight
        self._draw = draw

    def __call__(self, supernet: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean loss of the candidates drawn for this batch."""
        with torch.no_grad():
            told = self._teacher(**batch.inputs(), output_hidden_states=True)
        real = batch.attention_mask == 1
        states = told.hidden_states[-1].float()[real]  # (tokens, H)
        wanted = [
            logits.float().masked_fill(~real, IGNORE)
            for logits in (told.start_logits, told.end_logits)
        ]
        losses = []
        for candidate in self._draw():
            out: Outputs = supernet(batch, candidate)
            spans = self._spans(out, wanted, batch)
            gap = (out.hidden.float()[real] - states).square().mean() / states.var()
            losses.append(spans + self._hidden_weight * gap)
        return torch.stack(losses).mean()

    def _spans(self, out: Outputs, wanted: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
        t, label_weight = self._how.temperature, self._how.label_weight
        soft = soft_loss(out.start, wanted[0], t) + soft_loss(out.end, wanted[1], t)
        hard = cross_entropy(out.start, batch.start) + cross_entropy(out.end, batch.end)
        return ((1 - label_weight) * soft + label_weight * hard) / 2


def soft_loss(found: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the divergence from the wanted distribution, both (B, S) logits, softened alike."""
    t = temperature
    wanted_p = softmax(wanted / t, dim=-1)
    return kl_div(log_softmax(found / t, dim=-1), wanted_p, reduction="batchmean") * t * t


@dataclass(frozen=True, slots=True)
class TeacherLogits:
    """The teacher's logits of every row, computed once, without padding."""

    start: Sequence[np.ndarray]  # each (S,) float16
    end: Sequence[np.ndarray]

    def of(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return start and end logits, each (B, S), of a batch's rows."""
        shape = batch.input_ids.shape
        start, end = np.full(shape, IGNORE, np.float32), np.full(shape, IGNORE, np.float32)
        for i, row in enumerate(batch.rows):
            n = len(self.start[row])
            start[i, :n], end[i, :n] = self.start[row], self.end[row]
        where = batch.input_ids.device
        return torch.from_numpy(start).to(where), torch.from_numpy(end).to(where)

    def save(self, path: Path) -> None:
        lengths = np.array([len(row) for row in self.start])
        part = path.with_name("part.npz")
        start, end = np.concatenate(self.start), np.concatenate(self.end)
        np.savez(part, lengths=lengths, start=start, end=end)
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> TeacherLogits:
        with np.load(path) as stored:
            cuts = np.cumsum(stored["lengths"])[:-1]
            return cls(np.split(stored["start"], cuts), np.split(stored["end"], cuts))


def ask_teacher(model: Path, features: Sequence[Feature]) -> TeacherLogits:
    """Return the logits of the exported teacher for every row, each asked alone: as it serves.

    The exported model is several times faster than PyTorch on a CPU.
    """
    progress = Progress("teacher logits", len(features))

    def ask(session: ort.InferenceSession, part: Sequence[Feature]) -> list[Logits]:
        found = []
        for feature in part:
            found.append(run(session, _as_windows(feature)))
            progress.step()
        return found

    sessions = [open_session(model) for _ in range(usable_cores())]
    n = len(sessions)
    with ThreadPoolExecutor(n) as pool:
        parts = list(pool.map(ask, sessions, [features[i::n] for i in range(n)]))
    logits = [parts[i % n][i // n] for i in range(len(features))]
    half = [(row.start[0].astype(np.float16), row.end[0].astype(np.float16)) for row in logits]
    return TeacherLogits([start for start, _ in half], [end for _, end in half])


def _as_windows(feature: Feature) -> Windows:
    ids = feature.input_ids[None].astype(np.int64)
    types = feature.token_type_ids[None].astype(np.int64)
    offsets = np.zeros((*ids.shape, 2), np.int64)
    return Windows(ids, np.ones_like(ids), types, offsets, types == 1, ids.shape[1])
