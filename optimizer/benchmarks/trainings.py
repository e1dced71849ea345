"""Candidates with a short training each, from a truncated teacher: how searches were made before.

Source: SigOpt's distillation of BERT (Harris 2020): Bayesian optimization in which each trial cuts a
student from its teacher, trains it on the teacher's outputs and the labels, and scores it.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from optimizer.models import bert, lowrank, student, widths
from optimizer.students.study import Study
from optimizer.study import stages
from optimizer.study.config import TrainConfig
from optimizer.study.space import Candidate
from optimizer.training import loop, losses

WEIGHTS = "student.pt"


def teacher_layers(layers: tuple[int, ...], of: int, n_teacher: int) -> tuple[int, ...]:
    """Return the teacher's layers for those of a model of `of` layers made from it, evenly spread."""
    return tuple(layer * n_teacher // of for layer in layers)


@dataclass
class Trainer:
    """Trains candidates on the teacher's outputs, and remembers the last until it is forgotten."""

    study: Study
    n_layers: int  # that the candidates' layers are counted in
    how: TrainConfig
    seed: int
    folder: Path
    _late_s: float = 0.0

    def __post_init__(self) -> None:
        """Output distillation alone: the teacher's states are no part of the protocol."""
        outputs = self.study.config.distill.model_copy(update={"hidden_weight": 0.0})
        config = self.study.config.model_copy(update={"distill": outputs})
        self.study = replace(self.study, config=config)
        self._loss: losses.Imitation | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what decides on a trained candidate, beside its shape."""
        return {
            **self.study.distillation.inputs(),
            "train": self.how.model_dump(),
            "distill": self.study.config.distill.model_dump(),
            "layers": self.n_layers,
            "seed": self.seed,
        }

    def student(self, candidate: Candidate) -> PreTrainedModel:
        """Return a trained candidate; a killed training goes on."""
        model, folder = self._cut(candidate), self._folder(candidate)
        weights = folder / WEIGHTS

        def work() -> dict[str, Any]:
            if self._loss is None:
                self._loss = self.study.distillation.imitation(model)
            rows = self.study.distillation.rows
            loss = loop.train(model, rows, self._loss, self.how, folder, self.seed)
            torch.save(model.state_dict(), weights)
            return {"final_loss": loss}

        was_done = weights.exists() and stages.read_manifest(folder) is not None
        stages.run_stage(folder, self.inputs | {"candidate": repr(candidate)}, work)
        if was_done:
            self._late_s += float((stages.read_manifest(folder) or {}).get("seconds", 0.0))
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model

    def late_s(self) -> float:
        """Return, once, the seconds of trainings that were done before they were asked for."""
        found, self._late_s = self._late_s, 0.0
        return found

    def forget(self, candidate: Candidate) -> None:
        """Give the room back that a trained candidate takes."""
        shutil.rmtree(self._folder(candidate), ignore_errors=True)

    def _folder(self, candidate: Candidate) -> Path:
        return self.folder / hashlib.sha256(repr(candidate).encode()).hexdigest()[:16]

    def _cut(self, candidate: Candidate) -> PreTrainedModel:
        torch.manual_seed(self.seed)
        teacher = self.study.distillation.start()
        layers = teacher_layers(candidate.layers, self.n_layers, teacher.config.num_hidden_layers)
        model = student.cut(
            teacher, layers, candidate.ffn, candidate.heads, self.study.distillation.probe
        )
        model = widths.narrowed(model, candidate.hidden or None, self.study.distillation.probe)
        counts = self.study.distillation.word_counts if candidate.rank else None
        model = lowrank.with_rank(model, candidate.rank, candidate.embedding_bits, counts)
        dropping = bert.dropping_of(model, candidate.keep, candidate.drop_after)
        return bert.with_dropping(model, dropping)
