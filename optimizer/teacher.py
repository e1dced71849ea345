"""The teacher of a study: its backbone fine-tuned phase by phase, or a given model as it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gateway.spans import SpanEncoder
from optimizer import data, distill, stages, training
from optimizer.config import StudyConfig
from optimizer.data import Feature
from optimizer.models import student, tokenizer
from optimizer.questions import Questions


@dataclass(frozen=True)
class Teacher:
    """The teacher, trained or about to be."""

    questions: Questions
    folder: Path

    @property
    def config(self) -> StudyConfig:
        return self.questions.config

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    def inputs(self) -> dict[str, Any]:
        """Return what its training depends on."""
        config = self.config
        return {
            "backbone": config.backbone,
            "teacher": config.teacher,
            "max_tokens": config.max_tokens,
            "train": [phase.model_dump() for phase in config.train],
            "data": [d.model_dump() for d in config.data],
            "augment": config.augment.model_dump(),
            "seed": config.seed,
            "split_version": data.SPLIT_VERSION,
        }

    def load(self) -> PreTrainedModel:
        """Return the trained model."""
        return student.load(str(self.folder))

    def features(self, fraction: float = 1.0, only: Collection[str] = ()) -> list[Feature]:
        """Return the training windows of this share of the contexts; `only`: sources, none: all."""
        encoder = SpanEncoder.from_file(self.tokenizer).resized(self.config.max_tokens)
        return data.features(self.questions.train(fraction, only), encoder, self.config.seed)

    def train(self) -> dict[str, Any]:
        """Fine-tune the backbone phase by phase, or take the given teacher as it is."""
        return stages.run_stage(self.folder, self.inputs(), self._train)

    def _train(self) -> dict[str, Any]:
        config, folder = self.config, self.folder
        start = config.teacher or config.backbone
        model = student.load(start, answers=config.teacher is not None)  # refused at once or never
        tokenizer.save(start, folder)
        phases = [] if config.teacher else [self._train_phase(i) for i in range(len(config.train))]
        if phases:
            model = student.load(str(self._phase_folder(len(phases))), answers=True)
        student.save_plain(model, folder)
        loss = phases[-1]["final_loss"] if phases else None
        return {"final_loss": loss, "parameters": model.num_parameters()}

    def _train_phase(self, i: int) -> dict[str, Any]:
        """Train from where the phase before ended."""
        inputs = self.inputs()
        inputs["train"] = inputs["train"][: i + 1]
        folder = self._phase_folder(i + 1)

        def work() -> dict[str, Any]:
            how = self.config.train[i]
            start = str(self._phase_folder(i)) if i else self.config.backbone
            seed = self.config.seed if how.seed is None else how.seed
            torch.manual_seed(seed)
            model = student.load(start, dropout=how.dropout)
            rows = self._seeded(seed).features(only=how.sources)
            weight = how.answerability_weight
            loss_of = partial(distill.label_loss, answerability_weight=weight)
            loss = training.train(model, rows, loss_of, how, folder, seed)
            if how.keep_start:
                student.average(model, student.load(start), how.keep_start)
            student.save_plain(model, folder)
            return {"final_loss": loss}

        return stages.run_stage(folder, inputs, work)

    def _phase_folder(self, number: int) -> Path:
        return self.folder / f"phase-{number}"

    def _seeded(self, seed: int) -> Teacher:
        """Return this teacher with another sample of its data."""
        if seed == self.config.seed:
            return self
        config = self.config.model_copy(update={"seed": seed})
        return replace(self, questions=replace(self.questions, config=config))
