"""The stages of a study, in order. Each writes one folder of the run folder; a rerun skips finished ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gateway.catalog.schema import Precision
from optimizer.data.splits import StudyQuestions
from optimizer.models import allocation, bert, layer_widths, lowrank, student, widths
from optimizer.models.magnitude import Magnitude
from optimizer.models.movement import Pruning
from optimizer.students import finish
from optimizer.students.distillation_batches import DistillationBatches
from optimizer.students.elastic import Elastic
from optimizer.study import stages
from optimizer.study.config import (
    DistillConfig,
    MeanWidth,
    PruneConfig,
    StudentConfig,
    StudyConfig,
    TrainConfig,
    Widths,
    search_folder,
)
from optimizer.teachers.largest_model import LargestModel
from optimizer.training import loop


@dataclass(frozen=True)
class Study:
    """A study file, the data it reads, and the folder it writes to."""

    config: StudyConfig
    data_dir: Path
    folder: Path

    @cached_property
    def questions(self) -> StudyQuestions:
        return StudyQuestions(self.config, self.data_dir, self.folder / "questions")

    @cached_property
    def largest(self) -> LargestModel:
        return LargestModel(self.questions, self.folder / "teacher")

    @cached_property
    def distillation(self) -> DistillationBatches:
        return DistillationBatches(self.largest, self.folder / "teacher-states")

    @cached_property
    def elastics(self) -> dict[str, Elastic]:
        """The elastic students that search candidates are cut from, by name."""
        return {
            config.name: Elastic(self.distillation, config, self.folder / config.name)
            for config in self.config.elastic
        }

    @property
    def sliced(self) -> frozenset[str]:
        """The elastic students that others are slices of; no others need be trained."""
        starts = {student.start for student in self.config.students}
        trained = self.config.trains_candidates
        return frozenset(name for name in self.elastics if not trained or name in starts)

    @property
    def elastic(self) -> Elastic:
        """The first elastic student; the study file must have one."""
        return next(iter(self.elastics.values()))

    @property
    def tokenizer(self) -> Path:
        return self.largest.tokenizer

    @property
    def variant_names(self) -> tuple[str, ...]:
        return (self.config.largest_name, *(s.name for s in self.students))

    def search_folder(self, elastic: str) -> Path:
        """Return the folder of the search among an elastic student's slices."""
        return self.folder / search_folder(elastic)

    @cached_property
    def members(self) -> dict[str, tuple[StudentConfig, float]]:
        """The members of the Pareto fronts of the searches that are finished, with their F1 as slices."""
        config = self.config
        if config.finish is None:
            return {}
        taken = (config.largest_name, *(s.name for s in config.students))
        return finish.members(
            self.folder,
            config.elastic,
            config.finish,
            taken,
            trained=config.trains_candidates,
            task=config.task.name if config.task else None,
        )

    @property
    def students(self) -> tuple[StudentConfig, ...]:
        """The students that the study file names, and those that its search found."""
        return (*self.config.students, *(config for config, _ in self.members.values()))

    def student(self, name: str) -> StudentConfig | None:
        """Return the student of this name; None: the name is the largest model's."""
        return next((s for s in self.students if s.name == name), None)

    def train_student(self, config: StudentConfig) -> dict[str, Any]:
        """Distil one student; without a `train` section it stays as it was cut."""
        if config.train is None:
            return {
                "final_loss": None,
                "parameters": student.parameters_of(self.model(config.name)),
            }
        inputs, how = self.student_inputs(config), config.train
        folder = self.folder / "students" / config.name
        return stages.run_stage(folder, inputs, lambda: self._train_student(config, how, folder))

    def student_inputs(self, config: StudentConfig) -> dict[str, Any]:
        inputs = {
            **self.distillation.inputs(),
            "student": config.model_dump(exclude_none=True, exclude={"precision"}),
            "distill": self._distill_of(config).model_dump(),
        }
        others = {"start": config.start, "ticket": config.prune and config.prune.ticket}
        for name, other in others.items():
            if elastic := self.elastics.get(other or ""):
                inputs[name] = elastic.inputs()
            elif found := self.student(other) if other else None:
                inputs[name] = self.student_inputs(found)
        return inputs

    def _distill_of(self, config: StudentConfig) -> DistillConfig:
        """Return how a student learns from its teacher: as the study's do, but for its own keys."""
        return self.config.distill.model_copy(update=config.distill or {})

    def _train_student(
        self, config: StudentConfig, how: TrainConfig, folder: Path
    ) -> dict[str, Any]:
        model, rows = self._new_student(config), self.distillation.rows
        pruning = self._prune(model, config.prune) if config.prune else None
        loss = self.distillation.imitation(model, how=self._distill_of(config))
        final = loop.train(model, rows, loss, how, folder, self.config.seed, pruning=pruning)
        if pruning:
            pruning.cut(model)
        torch.save(model.state_dict(), folder / "student.pt")
        if student.has_plain_form(model):
            student.save_plain(model, folder / "checkpoint")
        return {"final_loss": final, "parameters": student.parameters_of(model)}

    def _prune(self, model: PreTrainedModel, how: PruneConfig) -> Pruning | Magnitude:
        """Give a model its masks, in place, and return how they change. Raises: ModelError."""
        if how.weights is None:
            pruning = Pruning(how.method, how.ffn, how.heads, how.start, how.end)
            pruning.attach(model)
            return pruning
        sparse = Magnitude(how.weights, how.start, how.end)
        sparse.attach(model, self.model(how.ticket) if how.ticket else None)
        return sparse

    def _new_student(
        self, config: StudentConfig, trained: Mapping[str, torch.Tensor] | None = None
    ) -> PreTrainedModel:
        """Return a student as it is cut, or with the weights that it was trained to."""
        model = self._cut(config, measured=trained is None)
        if trained is not None:
            layer_widths.fit(model, trained)
            model.load_state_dict(trained)
        return model

    def _cut(self, config: StudentConfig, *, measured: bool) -> PreTrainedModel:
        """Return a student of its shape; not `measured`: layers are whole, and what stays is arbitrary."""
        if elastic := self.elastics.get(config.start or ""):
            net = elastic.net if measured else elastic.blank
            heads = net.model.config.num_attention_heads
            return elastic.slice(config.candidate(heads), blank=not measured)
        ffn, heads = (_widths(w) if measured else None for w in (config.ffn, config.heads))
        probe = self.distillation.probe if measured else None
        model = student.cut(self._base_of(config), config.layers, ffn, heads, probe)
        model = widths.narrowed(model, config.hidden, probe)
        found = self.distillation.word_counts if config.rank and measured else None
        model = lowrank.with_rank(model, config.rank, config.embedding_bits, found)
        return bert.with_dropping(model, bert.dropping_of(model, config.drops))

    def _base_of(self, config: StudentConfig) -> PreTrainedModel:
        if config.base:
            return self.distillation.checkpoint(config.base)
        return self.model(config.start) if config.start else self.distillation.start()

    def inputs_of(self, name: str) -> dict[str, Any]:
        """Return everything that a variant's training depends on."""
        config = self.student(name)
        return self.student_inputs(config) if config else {"teacher": self.largest.inputs()}

    def embedding_bits(self, name: str) -> int:
        config = self.student(name)
        return config.embedding_bits if config else self.config.largest_bits

    def precision(self, name: str) -> Precision:
        """Return the precision that a variant is published in."""
        config = self.student(name)
        return config.precision if config else Precision.INT8_DYNAMIC

    def model(self, name: str) -> PreTrainedModel:
        """Return the trained PyTorch model of a variant, embeddings quantized."""
        config = self.student(name)
        if config is None:
            return student.with_low_bit_embeddings(self.largest.load(), self.config.largest_bits)
        if config.train is None:
            return self._new_student(config)
        folder = stages.fetch(self.folder / "students" / name, partial(self.student_inputs, config))
        return self._new_student(config, loop.weights(folder / "student.pt"))


def _widths(given: Widths | None) -> allocation.Widths | None:
    return allocation.Mean(given.mean) if isinstance(given, MeanWidth) else given
