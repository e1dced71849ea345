"""What the students of a study learn from: windows of its questions, and what the teacher says of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from optimizer import distill, stages, teacher_states, training
from optimizer.config import StudyConfig
from optimizer.data import Feature
from optimizer.models import lowrank
from optimizer.teacher import Teacher
from optimizer.teacher_states import TeacherStates

PROBE_ROWS, PROBE_BATCH = 64, 16


@dataclass(frozen=True)
class Lessons:
    """The same for all students of a study."""

    teacher: Teacher
    folder: Path  # what the teacher said

    @property
    def config(self) -> StudyConfig:
        return self.teacher.config

    def teach(self) -> dict[str, Any]:
        """Ask the teacher about every training row, once."""
        fraction = self.config.distill.fraction
        inputs = {"teacher": self.teacher.inputs(), "fraction": fraction}
        return stages.run_stage(self.folder, inputs, self._teach)

    def _teach(self) -> dict[str, Any]:
        teacher = self.teacher.load()
        teacher_states.write(teacher, self.rows, self.folder, teacher.config.hidden_size)
        return {"rows": len(self.rows), "width": teacher.config.hidden_size}

    def imitation(self, ask: distill.Ask | None = None) -> distill.Imitation:
        """Return the loss of a student, or of what `ask` asks it."""
        how = self.config.distill
        states = None if how.labels_only else self._states()
        return distill.Imitation(states, how, ask) if ask else distill.Imitation(states, how)

    def _states(self) -> TeacherStates:
        return TeacherStates.open(self.folder, self.rows, self.teach()["width"])

    @cached_property
    def rows(self) -> list[Feature]:
        """The training windows."""
        return self.teacher.features(self.config.distill.fraction)

    @cached_property
    def word_counts(self) -> torch.Tensor:
        """How often each word occurs in them, (V,)."""
        vocabulary = self.teacher.load().config.vocab_size
        return lowrank.word_counts((row.input_ids for row in self.rows), vocabulary)

    @cached_property
    def probe(self) -> list[dict[str, torch.Tensor]]:
        """A few of these rows, short to long, for a model to be watched on."""
        rows = sorted(self.rows, key=lambda row: len(row.input_ids))
        some = rows[:: max(1, len(rows) // PROBE_ROWS)]
        parts = [some[i : i + PROBE_BATCH] for i in range(0, len(some), PROBE_BATCH)]
        return [training.batch_of(part, range(len(part))).inputs() for part in parts]
