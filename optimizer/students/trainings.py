"""Candidates with a training each, from weights cut to their shape.

Source: SigOpt, "Efficient BERT" (Ravikumar 2020): Bayesian optimization in which each trial cuts a student,
trains it on its teacher's outputs and the labels by a recipe of its own, and scores it.
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
from optimizer.study import recipes, stages
from optimizer.study.config import TrainConfig
from optimizer.study.space import Candidate
from optimizer.training import loop, losses

WEIGHTS = "student.pt"


def teacher_layers(layers: tuple[int, ...], of: int, n_teacher: int) -> tuple[int, ...]:
    """Return the teacher's layers for those of a model of `of` layers made from it, evenly spread."""
    return tuple(layer * n_teacher // of for layer in layers)


def outputs_only(study: Study) -> Study:
    """Return the study in which students learn from their teacher's outputs, and not from its states."""
    outputs = study.config.distill.model_copy(update={"hidden_weight": 0.0})
    return replace(study, config=study.config.model_copy(update={"distill": outputs}))


@dataclass
class Trainer:
    """Trains candidates by their recipes, and remembers the last until it is forgotten."""

    study: Study
    n_layers: int  # that the candidates' layers are counted in
    how: TrainConfig
    seed: int
    folder: Path
    base: str | None = None  # checkpoint that they are cut from; None: the study's students' start
    _late_s: float = 0.0

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what decides on a trained candidate, beside its shape and its recipe."""
        based = {} if self.base is None else {"base": self.base}
        return {
            **self.study.distillation.inputs(),
            **based,
            "train": self.how.model_dump(),
            "distill": self.study.config.distill.model_dump(),
            "layers": self.n_layers,
            "seed": self.seed,
        }

    def student(self, candidate: Candidate) -> PreTrainedModel:
        """Return a trained candidate; a killed training goes on. Raises: ModelError."""
        model, folder = self._cut(candidate), self._folder(candidate)
        weights = folder / WEIGHTS

        def work() -> dict[str, Any]:
            loss_of, how = self.training_of(candidate, model)
            rows = self.study.distillation.rows
            loss = loop.train(model, rows, loss_of, how, folder, self.seed)
            torch.save(model.state_dict(), weights)
            return {"final_loss": loss}

        was_done = weights.exists() and stages.read_manifest(folder) is not None
        stages.run_stage(folder, self.inputs | {"candidate": repr(candidate)}, work)
        if was_done:
            self._late_s += float((stages.read_manifest(folder) or {}).get("seconds", 0.0))
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model

    def training_of(
        self, candidate: Candidate, model: PreTrainedModel
    ) -> tuple[losses.Imitation, TrainConfig]:
        """Return the loss and the settings that a candidate's recipe asks for. Raises: ModelError."""
        distill, how = recipes.applied(candidate.recipe, self.study.config.distill, self.how)
        batches = self.study.distillation
        wanted = dict(candidate.recipe).get("hidden_weight")
        if wanted and not batches.imitates_states(model, distill):
            raise student.ModelError(
                f"hidden_weight: the teacher's states are not as wide as those of {self.base}, so they cannot"
                " be compared; remove it from [search.training] space, or base from [elastic]"
            )
        return batches.imitation(model, how=distill), how

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
        batches = self.study.distillation
        teacher = batches.checkpoint(self.base) if self.base else batches.start()
        layers = teacher_layers(candidate.layers, self.n_layers, teacher.config.num_hidden_layers)
        model = student.cut(
            teacher, layers, candidate.ffn, candidate.heads, self.study.distillation.probe
        )
        model = widths.narrowed(model, candidate.hidden or None, self.study.distillation.probe)
        counts = self.study.distillation.word_counts if candidate.rank else None
        model = lowrank.with_rank(model, candidate.rank, candidate.embedding_bits, counts)
        return bert.with_dropping(model, bert.dropping_of(model, candidate.drops))
