"""What the students of a study learn from: windows of its questions, and what the teacher says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from optimizer.data.question_sets import Feature
from optimizer.models import lowrank, student, tokenizer
from optimizer.study import stages
from optimizer.study.config import StudyConfig
from optimizer.teachers.rows import MappedAnswers
from optimizer.teachers.teacher import Teacher
from optimizer.training import loop, losses, teacher_outputs
from optimizer.training.teacher_outputs import TeacherStates

PROBE_ROWS, PROBE_BATCH = 64, 16


@dataclass(frozen=True)
class Lessons:
    """The same for all students of a study."""

    teacher: Teacher  # the largest model
    folder: Path  # what the teacher said

    @property
    def config(self) -> StudyConfig:
        return self.teacher.config

    @property
    def maps(self) -> bool:
        """Say whether a teacher's answers are mapped: it is not what students are cut from.

        Else its logits and last hidden states are kept token by token.
        """
        return bool(self.config.outside_teachers or self.config.student_weights)

    def inputs(self) -> dict[str, Any]:
        """Return what the teacher's answers and the students' first weights depend on."""
        found: dict[str, Any] = {"teacher": self.teacher.inputs()}
        if self.config.student_weights:
            found["weights"] = self.config.student_weights
        if self.config.outside_teachers and not self.config.distill.labels_only:
            found["taught"] = self.teacher.outside.inputs()
        return found

    def start(self) -> PreTrainedModel:
        """Return what students are cut from. Raises: ModelError where its words are others."""
        weights = self.config.student_weights
        if weights is None:
            return self.teacher.load()
        self._check_words(weights)
        return student.load(weights)

    def _check_words(self, weights: str) -> None:
        known = Tokenizer.from_file(str(self.teacher.tokenizer)).get_vocab()
        if tokenizer.fast(weights).get_vocab() != known:
            raise student.ModelError(
                f"weights {weights}: its vocabulary is not that of the largest model, and all that is"
                " published together shares one tokenizer.json; give largest one with the same"
            )

    def teach(self) -> dict[str, Any]:
        """Ask the teacher about every training row, once."""
        if self.config.student_weights:
            self._check_words(self.config.student_weights)
        inputs = self.inputs() | {"fraction": self.config.distill.fraction}
        return stages.run_stage(self.folder, inputs, self._teach)

    def _teach(self) -> dict[str, Any]:
        if self.maps:
            return {"rows": len(self.rows), "mapped": self._answers[1]}
        teacher = self.teacher.load()
        teacher_outputs.write(teacher, self.rows, self.folder, teacher.config.hidden_size)
        return {"rows": len(self.rows), "width": teacher.config.hidden_size}

    def imitation(self, ask: losses.Ask | None = None) -> losses.Imitation:
        """Return the loss of a student, or of what `ask` asks it."""
        how = self.config.distill
        states = None if how.labels_only else self._targets()
        return losses.Imitation(states, how, ask) if ask else losses.Imitation(states, how)

    def _targets(self) -> losses.Targets:
        if self.maps:
            return self._answers[0]
        return TeacherStates.open(self.folder, self.rows, self.teach()["width"])

    @cached_property
    def _answers(self) -> tuple[MappedAnswers, dict[str, Any]]:
        """The teachers' answers for these rows; asks for what is missing."""
        teachers = self.teacher.outside
        if not teachers.names:  # the largest model teaches students that start from others
            teachers = replace(teachers, names=(str(self.teacher.folder),))
        examples = self.teacher.questions.train(self.config.distill.fraction)
        return teachers.answers(examples, self.rows, self.teacher.span_encoder)

    @cached_property
    def rows(self) -> list[Feature]:
        """The training windows."""
        return self.teacher.features(self.config.distill.fraction)

    @cached_property
    def word_counts(self) -> torch.Tensor:
        """How often each word occurs in them, (V,)."""
        vocabulary = self.start().config.vocab_size
        return lowrank.word_counts((row.input_ids for row in self.rows), vocabulary)

    @cached_property
    def probe(self) -> list[dict[str, torch.Tensor]]:
        """A few of these rows, short to long, for a model to be watched on."""
        rows = sorted(self.rows, key=lambda row: len(row.input_ids))
        some = rows[:: max(1, len(rows) // PROBE_ROWS)]
        parts = [some[i : i + PROBE_BATCH] for i in range(0, len(some), PROBE_BATCH)]
        return [loop.batch_of(part, range(len(part))).inputs() for part in parts]
