"""The training windows of a study's students, and the teacher's outputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedModel

from optimizer.data.items import Feature
from optimizer.models import lowrank, student, tokenizer
from optimizer.study import stages
from optimizer.study.config import DistillConfig, StudyConfig
from optimizer.teachers.classifiers import MeanClasses
from optimizer.teachers.largest_model import LargestModel
from optimizer.teachers.rows import MappedAnswers
from optimizer.training import intermediate, loop, losses, teacher_outputs
from optimizer.training.intermediate import Inside, Match, Place
from optimizer.training.teacher_outputs import LiveTeacher, TeacherStates

PROBE_ROWS, PROBE_BATCH = 64, 16
LOGITS_FOLDER = "teacher-logits"  # beside the folder that holds hidden states, too


@dataclass(frozen=True)
class DistillationBatches:
    """Training windows, teacher outputs and initial weights; all students of a study share them."""

    largest: LargestModel
    folder: Path  # of the cached teacher outputs

    @property
    def config(self) -> StudyConfig:
        return self.largest.config

    @property
    def maps(self) -> bool:
        """Return whether teacher answers are mapped to the students' tokens.

        True when the teacher is not the model that students are cut from. Otherwise, and where labels are
        learned from the largest model, its logits and last hidden states are cached row by row: all read the same tokens.
        """
        if self.config.task is not None:
            return bool(self.config.outside_teachers)
        return self.config.maps_answers

    def inputs(self) -> dict[str, Any]:
        """Return everything that the teacher outputs and the initial weights depend on."""
        found: dict[str, Any] = {"teacher": self.largest.inputs()}
        if self.config.student_weights:
            found["weights"] = self.config.student_weights
        if self.config.outside_teachers and not self.config.distill.labels_only:
            found["taught"] = self.largest.outside.inputs()
        return found

    def start(self) -> PreTrainedModel:
        """Return the model that students are cut from.

        Raises: ModelError when its vocabulary differs from the largest model's.
        """
        weights = self.config.student_weights
        if weights is None:
            return self.largest.load()
        return self.checkpoint(weights)

    def checkpoint(self, name: str) -> PreTrainedModel:
        """Return another model that students are cut from.

        Raises: ModelError when its vocabulary differs from the largest model's.
        """
        self._check_words(name)
        return student.load(name, labels=self.largest.n_labels)

    def _check_words(self, weights: str) -> None:
        known = Tokenizer.from_file(str(self.largest.tokenizer)).get_vocab()
        if tokenizer.fast(weights).get_vocab() != known:
            raise student.ModelError(
                f"weights {weights}: its vocabulary differs from the largest model's, but all published"
                " variants share one tokenizer.json; give a largest model with the same vocabulary"
            )

    def teach(self, *, hidden: bool = False) -> dict[str, Any]:
        """Compute the teacher outputs of every training row, once; `hidden`: the last states, too."""
        if self.config.student_weights:
            self._check_words(self.config.student_weights)
        inputs = self.inputs() | {"fraction": self.config.distill.fraction}
        folder = self.folder if hidden or self.maps else self.folder.with_name(LOGITS_FOLDER)
        return stages.run_stage(folder, inputs, lambda: self._teach(folder, hidden=hidden))

    def _teach(self, folder: Path, *, hidden: bool) -> dict[str, Any]:
        if self.maps:
            return {"rows": len(self.rows), "mapped": self._answers[1]}
        teacher = self.largest.load()
        width = teacher.config.hidden_size if hidden else 0
        teacher_outputs.write(teacher, self.rows, folder, width)
        return {"rows": len(self.rows), "width": width}

    def imitation(
        self,
        model: PreTrainedModel,
        ask: losses.Ask | None = None,
        how: DistillConfig | None = None,
    ) -> losses.Imitation:
        """Return the distillation loss of a student; `ask` runs it and returns the outputs to score.

        `how`: None: the study's.
        """
        how = how or self.config.distill
        matched = self._matched(model, how) if ask is None else ()
        places = tuple(match.teacher for match in matched)
        return losses.Imitation(self._targets(model, how, places), how, ask, matched)

    def _matched(self, model: PreTrainedModel, how: DistillConfig) -> tuple[Match, ...]:
        """Return what is compared inside a student and its teacher. Raises: ModelError."""
        if how.labels_only or not how.intermediate or not how.intermediate_weight:
            return ()
        ours, theirs = Inside.of(model), Inside.of(self._teacher)
        return intermediate.matches(how.intermediate, ours, theirs)

    def _targets(
        self, model: PreTrainedModel, how: DistillConfig, places: Sequence[Place]
    ) -> losses.Targets | None:
        """Return what a student is pulled towards; None: it learns from labels alone.

        `places`: of the teacher, which are watched: too much to be kept on disk.
        """
        if how.labels_only:
            return None
        if places:
            return LiveTeacher.of_model(self._teacher, places)
        if self.maps:
            self.teach()
            return self._answers[0]
        if not self.imitates_states(model, how):
            self.teach()
            n_labels = self.largest.n_labels
            folder = self.folder.with_name(LOGITS_FOLDER)
            return TeacherStates.open(folder, self.rows, n_labels=n_labels)
        if loop.device().type == "cuda":
            return LiveTeacher.of_model(self._teacher)
        width = self.teach(hidden=True)["width"]
        return TeacherStates.open(self.folder, self.rows, width, n_labels=self.largest.n_labels)

    def imitates_states(self, model: PreTrainedModel, how: DistillConfig) -> bool:
        """Return whether a student is pulled towards its teacher's hidden states: of one width."""
        others = self.maps or self.config.student_weights is not None
        if others or how.hidden_weight == 0:
            return False
        width = AutoConfig.from_pretrained(self.largest.folder).hidden_size
        return bool(model.config.hidden_size == width)

    @cached_property
    def _teacher(self) -> PreTrainedModel:
        """The largest model as students' teacher."""
        return self.largest.load()

    @cached_property
    def _answers(self) -> tuple[MappedAnswers | MeanClasses, dict[str, Any]]:
        """The teachers' answers for these rows; missing answers are computed."""
        teachers = self.largest.outside
        if not teachers.names:  # the largest model teaches students that start from others
            teachers = replace(teachers, names=(str(self.largest.folder),))
        examples = self.largest.questions.train(self.config.distill.fraction)
        return teachers.answers(examples, self.rows, self.largest.span_encoder)

    @cached_property
    def rows(self) -> list[Feature]:
        """The training windows."""
        return self.largest.features(self.config.distill.fraction)

    @cached_property
    def word_counts(self) -> torch.Tensor:
        """Count of each vocabulary word in the training windows, (V,)."""
        vocabulary = self.start().config.vocab_size
        return lowrank.word_counts((row.input_ids for row in self.rows), vocabulary)

    @cached_property
    def probe(self) -> list[dict[str, torch.Tensor]]:
        """A few batches of training windows, short to long, for measuring activations."""
        rows = sorted(self.rows, key=lambda row: len(row.input_ids))
        some = rows[:: max(1, len(rows) // PROBE_ROWS)]
        parts = [some[i : i + PROBE_BATCH] for i in range(0, len(some), PROBE_BATCH)]
        return [loop.batch_of(part, range(len(part))).inputs() for part in parts]
