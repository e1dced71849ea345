"""The largest model of a study: an encoder fine-tuned phase by phase, or a given model as it is.

It is also the study's teacher, unless the study names other teachers: then it learns from their answers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gateway.qa.codec import SpanEncoder
from optimizer.data import question_sets, row_cache
from optimizer.data.items import Feature
from optimizer.data.splits import StudyQuestions
from optimizer.models import adapt, student, tokenizer
from optimizer.study import stages
from optimizer.study.config import PhaseConfig, StudyConfig
from optimizer.teachers.classifiers import ClassifierTeachers
from optimizer.teachers.outside_teachers import OutsideTeachers
from optimizer.training import loop, losses

ANSWERS, ROWS = "teacher-answers", "training-rows"  # folders beside the model's


@dataclass(frozen=True)
class LargestModel:
    """The largest model, trained or about to be."""

    questions: StudyQuestions
    folder: Path

    @property
    def config(self) -> StudyConfig:
        return self.questions.config

    @property
    def n_labels(self) -> int:
        """The number of labels of the study's task; 0: it answers questions. Raises: DataError."""
        return len(self.questions.labels)

    @property
    def tokenizer(self) -> Path:
        return stages.fetch(self.folder, self.inputs) / "tokenizer.json"

    def inputs(self) -> dict[str, Any]:
        """Return what its training depends on."""
        config = self.config
        found = {
            "backbone": config.encoder,
            "teacher": config.finished,
            "max_tokens": config.max_tokens,
            "train": [phase.model_dump() for phase in config.train],
            "data": [d.model_dump() for d in config.data],
            "augment": config.augment.model_dump(),
            "seed": config.seed,
            "split_version": question_sets.SPLIT_VERSION,
        }
        if config.largest_bits != 8:
            found["largest_bits"] = config.largest_bits
        if config.task is not None:
            named = config.task.model_dump(exclude={"name"})  # which trains nothing anew
            found["task"] = named | {"labels": self.questions.labels}
        if config.finished or not config.outside_teachers:
            return found
        return found | {"taught": self.outside.inputs(), "distill": config.distill.model_dump()}

    @property
    def outside(self) -> OutsideTeachers | ClassifierTeachers:
        """The study's teachers that are not published themselves."""
        config = self.config
        folder = self.folder.parent / ANSWERS
        if config.task is not None:
            named, labels = config.outside_teachers, self.questions.labels
            return ClassifierTeachers(named, config.teacher_tokens, folder, labels)
        return OutsideTeachers(config.outside_teachers, config.teacher_tokens, folder)

    def load(self) -> PreTrainedModel:
        """Return the trained model."""
        return student.load(str(stages.fetch(self.folder, self.inputs)), labels=self.n_labels)

    def features(self, fraction: float = 1.0, only: Collection[str] = ()) -> list[Feature]:
        """Return the training windows of this share of the contexts; `only`: sources, none: all."""
        examples, config = self.questions.train(fraction, only), self.config
        return row_cache.features(
            examples, self.tokenizer, config.max_tokens, config.seed, self.folder.parent / ROWS
        )

    @property
    def span_encoder(self) -> SpanEncoder:
        """The encoder that cuts questions into training windows."""
        return SpanEncoder.from_file(self.tokenizer).resized(self.config.max_tokens)

    def training_rows(self, how: PhaseConfig) -> tuple[list[Feature], loop.Loss]:
        """Return its own training rows, and its loss: on the labels, or on its teachers' answers."""
        found, config = self.features(only=how.sources), self.config
        if not config.outside_teachers or config.distill.labels_only:
            weight = how.answerability_weight
            return found, partial(losses.label_loss, answerability_weight=weight)
        examples = self.questions.train(only=how.sources)
        answers, _ = self.outside.answers(examples, found, self.span_encoder)
        return found, losses.Imitation(answers, config.distill)

    def train(self) -> dict[str, Any]:
        """Fine-tune the backbone phase by phase, or take the given checkpoint as it is."""
        return stages.run_stage(self.folder, self.inputs(), self._train)

    def _train(self) -> dict[str, Any]:
        config, folder = self.config, self.folder
        start = config.finished or config.encoder
        model = self._loaded(start)  # first, so that an unusable checkpoint fails at once
        tokenizer.save(start, folder)
        phases = [] if config.finished else [self._train_phase(i) for i in range(len(config.train))]
        if phases:
            folder_of_last = str(self._phase_folder(len(phases)))
            model = student.load(folder_of_last, answers=True, labels=self.n_labels)
        student.save_plain(model, folder)
        loss = phases[-1]["final_loss"] if phases else None
        return {"final_loss": loss, "parameters": model.num_parameters()}

    def _loaded(self, start: str) -> PreTrainedModel:
        finished = self.config.finished
        try:
            model = student.load(start, answers=finished is not None, labels=self.n_labels)
        except student.ModelError as exc:
            only_teaches = isinstance(exc.__cause__, adapt.NotBert)
            if not only_teaches or finished is None or self.config.largest:
                raise
            raise student.ModelError(
                f"{exc}; it can still be a teacher: name the weights that the study's models start from"
                " with --weights, such as minilm"
            ) from exc
        student.check_whole(start, model)
        return model

    def _train_phase(self, i: int) -> dict[str, Any]:
        """Train one phase, starting from the weights of the previous one."""
        inputs = self.inputs()
        inputs["train"] = inputs["train"][: i + 1]
        folder = self._phase_folder(i + 1)

        def work() -> dict[str, Any]:
            how = self.config.train[i]
            start = str(self._phase_folder(i)) if i else self.config.encoder
            seed = self.config.seed if how.seed is None else how.seed
            torch.manual_seed(seed)
            kept = how.keep_start > 0  # and a random head is not worth keeping
            n_labels = self.n_labels
            model = student.load(start, dropout=how.dropout, answers=kept, labels=n_labels)
            if i == len(self.config.train) - 1 and self.config.largest_bits < 8:
                model = student.with_low_bit_embeddings(model, self.config.largest_bits)
            rows, loss_of = self._seeded(seed).training_rows(how)
            loss = loop.train(model, rows, loss_of, how, folder, seed)
            if how.keep_start:
                student.average(model, student.load(start, labels=n_labels), how.keep_start)
            student.save_plain(model, folder)
            return {"final_loss": loss}

        return stages.run_stage(folder, inputs, work)

    def _phase_folder(self, number: int) -> Path:
        return self.folder / f"phase-{number}"

    def _seeded(self, seed: int) -> LargestModel:
        """Return this model with training data sampled by another seed."""
        if seed == self.config.seed:
            return self
        config = self.config.model_copy(update={"seed": seed})
        return replace(self, questions=replace(self.questions, config=config))
