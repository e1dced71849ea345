"""A study's stages, in order; each is a folder under the run folder that a rerun skips when done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gateway.published import Precision
from gateway.spans import SpanEncoder
from optimizer import data, distill, finish, stages, teacher_states, training
from optimizer.config import ELASTIC, StudentConfig, StudyConfig, TrainConfig
from optimizer.data import Feature
from optimizer.elastic import Elastic
from optimizer.exported import Exported
from optimizer.models import bert, lowrank, student, tokenizer, widths
from optimizer.questions import Questions
from optimizer.teacher_states import TeacherStates

TEACHER_BITS = 8
PROBE_ROWS, PROBE_BATCH = 64, 16


@dataclass(frozen=True)
class Study:
    """A study file, the data it reads, and the folder it writes to."""

    config: StudyConfig
    data_dir: Path
    folder: Path

    @property
    def teacher_folder(self) -> Path:
        return self.folder / "teacher"

    @property
    def tokenizer(self) -> Path:
        return self.teacher_folder / "tokenizer.json"

    @property
    def variant_names(self) -> tuple[str, ...]:
        return (self.config.teacher_name, *(s.name for s in self.students))

    @cached_property
    def questions(self) -> Questions:
        return Questions(self.config, self.data_dir)

    def train_features(self, fraction: float = 1.0) -> list[Feature]:
        """Return the training windows of this share of the contexts."""
        encoder = SpanEncoder.from_file(self.tokenizer).resized(self.config.max_tokens)
        return data.features(self.questions.train(fraction), encoder, self.config.seed)

    @property
    def front_file(self) -> Path:
        return self.folder / "search" / "front.json"

    @cached_property
    def members(self) -> dict[str, tuple[StudentConfig, float]]:
        """The members of the search's front that are finished, with their F1 as slices."""
        return finish.members(self.front_file, self.config.finish) if self.config.finish else {}

    @property
    def students(self) -> tuple[StudentConfig, ...]:
        """The students that the study file names, and those that its search found."""
        return (*self.config.students, *(config for config, _ in self.members.values()))

    def student(self, name: str) -> StudentConfig | None:
        """Return the student of this name; None: the teacher itself."""
        return next((s for s in self.students if s.name == name), None)

    # Teacher

    def teacher_inputs(self) -> dict[str, Any]:
        config = self.config
        return {
            "backbone": config.backbone,
            "teacher": config.teacher,
            "max_tokens": config.max_tokens,
            "train": [phase.model_dump() for phase in config.train],
            "data": [d.model_dump() for d in config.data],
            "seed": config.seed,
        }

    def train_teacher(self) -> dict[str, Any]:
        """Fine-tune the backbone phase by phase, or take the given teacher as it is."""
        return stages.run_stage(self.teacher_folder, self.teacher_inputs(), self._train_teacher)

    def _train_teacher(self) -> dict[str, Any]:
        config, folder = self.config, self.teacher_folder
        start = config.teacher or config.backbone
        model = student.load(start, answers=config.teacher is not None)  # refused at once or never
        tokenizer.save(start, folder)
        phases = [] if config.teacher else [self._train_phase(i) for i in range(len(config.train))]
        if phases:
            model = student.load(str(self._phase_folder(len(phases))), answers=True)
        model.save_pretrained(folder)
        loss = phases[-1]["final_loss"] if phases else None
        return {"final_loss": loss, "parameters": model.num_parameters()}

    def _train_phase(self, i: int) -> dict[str, Any]:
        """Train from where the phase before ended."""
        inputs = self.teacher_inputs()
        inputs["train"] = inputs["train"][: i + 1]
        folder = self._phase_folder(i + 1)

        def work() -> dict[str, Any]:
            how = self.config.train[i]
            start = str(self._phase_folder(i)) if i else self.config.backbone
            seed = self.config.seed if how.seed is None else how.seed
            torch.manual_seed(seed)
            model = student.load(start)
            rows = self._seeded(seed).train_features()
            loss = training.train(model, rows, distill.label_loss, how, folder, seed)
            if how.keep_start:
                student.average(model, student.load(start), how.keep_start)
            model.save_pretrained(folder)
            return {"final_loss": loss}

        return stages.run_stage(folder, inputs, work)

    def _phase_folder(self, number: int) -> Path:
        return self.teacher_folder / f"phase-{number}"

    def _seeded(self, seed: int) -> Study:
        """Return this study with another sample of its data."""
        if seed == self.config.seed:
            return self
        return replace(self, config=self.config.model_copy(update={"seed": seed}))

    # Students

    def teach(self) -> dict[str, Any]:
        """Ask the teacher about every training row, once."""
        inputs = {"teacher": self.teacher_inputs(), "fraction": self.config.distill.fraction}
        return stages.run_stage(self.states_folder, inputs, self._teach)

    def _teach(self) -> dict[str, Any]:
        rows = self.student_rows
        teacher = student.load(str(self.teacher_folder))
        teacher_states.write(teacher, rows, self.states_folder, teacher.config.hidden_size)
        return {"rows": len(rows), "width": teacher.config.hidden_size}

    def imitation(self, ask: distill.Ask | None = None) -> distill.Imitation:
        """Return the loss of a student, or of what `ask` asks it."""
        how = self.config.distill
        states = None if how.labels_only else self._states()
        return distill.Imitation(states, how, ask) if ask else distill.Imitation(states, how)

    def _states(self) -> TeacherStates:
        return TeacherStates.open(self.states_folder, self.student_rows, self.teach()["width"])

    @property
    def states_folder(self) -> Path:
        return self.folder / "teacher-states"

    @cached_property
    def student_rows(self) -> list[Feature]:
        """The training windows that students see."""
        return self.train_features(self.config.distill.fraction)

    @cached_property
    def word_counts(self) -> torch.Tensor:
        """How often each word occurs in what students see, (V,)."""
        vocabulary = student.load(str(self.teacher_folder)).config.vocab_size
        return lowrank.word_counts((row.input_ids for row in self.student_rows), vocabulary)

    @cached_property
    def probe(self) -> list[dict[str, torch.Tensor]]:
        """A few of these rows, short to long, for a model to be watched on."""
        rows = sorted(self.student_rows, key=lambda row: len(row.input_ids))
        some = rows[:: max(1, len(rows) // PROBE_ROWS)]
        parts = [some[i : i + PROBE_BATCH] for i in range(0, len(some), PROBE_BATCH)]
        return [training.batch_of(part, range(len(part))).inputs() for part in parts]

    @cached_property
    def elastic(self) -> Elastic:
        """The student that searched ones are cut from, where the study file has one."""
        assert self.config.elastic is not None, "the study file was checked"
        return Elastic(self, self.config.elastic)

    def train_student(self, config: StudentConfig) -> dict[str, Any]:
        """Distil one student, or take it as it was cut."""
        if config.train is None:
            return {
                "final_loss": None,
                "parameters": student.parameters_of(self.model(config.name)),
            }
        if not self.config.distill.labels_only:
            self.teach()
        inputs, how = self.student_inputs(config), config.train
        folder = self.folder / "students" / config.name
        return stages.run_stage(folder, inputs, lambda: self._train_student(config, how, folder))

    def student_inputs(self, config: StudentConfig) -> dict[str, Any]:
        inputs = {
            "teacher": self.teacher_inputs(),
            "student": config.model_dump(exclude_none=True, exclude={"precision"}),
            "distill": self.config.distill.model_dump(),
        }
        if config.start == ELASTIC and self.config.elastic:
            return inputs | {"start": self.elastic.inputs()}
        start = self.student(config.start) if config.start else None
        return inputs | ({"start": self.student_inputs(start)} if start else {})

    def _train_student(
        self, config: StudentConfig, how: TrainConfig, folder: Path
    ) -> dict[str, Any]:
        model, rows = self._new_student(config, to_train=True), self.student_rows
        final = training.train(model, rows, self.imitation(), how, folder, self.config.seed)
        torch.save(model.state_dict(), folder / "student.pt")
        if student.has_plain_form(model):
            student.save_plain(model, folder / "checkpoint")
        return {"final_loss": final, "parameters": student.parameters_of(model)}

    def _new_student(self, config: StudentConfig, *, to_train: bool = False) -> PreTrainedModel:
        """`to_train`: as for an elastic student."""
        if config.start == ELASTIC:
            heads = config.heads or self.elastic.net.model.config.num_attention_heads
            return self.elastic.slice(config.candidate(heads))
        base = self.model(config.start) if config.start else student.load(str(self.teacher_folder))
        probe = self.probe if to_train else None
        model = student.cut(base, config.layers, config.ffn, config.heads, probe)
        model = widths.narrowed(model, config.hidden, probe)
        found = self.word_counts if to_train and config.rank else None
        model = lowrank.with_rank(model, config.rank, config.embedding_bits, found)
        shape = config.candidate(min(student.heads_of(model)))
        return bert.with_dropping(model, bert.dropping_of(model, shape.keep, shape.drop_after))

    # Variants

    def exported(self, name: str) -> Exported:
        """Return a variant as it is exported, read and profiled."""
        return Exported(self, name)

    def inputs_of(self, name: str) -> dict[str, Any]:
        """Return what a variant's training depends on."""
        config = self.student(name)
        return self.student_inputs(config) if config else {"teacher": self.teacher_inputs()}

    def embedding_bits(self, name: str) -> int:
        config = self.student(name)
        return config.embedding_bits if config else TEACHER_BITS

    def precision(self, name: str) -> Precision:
        """Return what a variant is published in."""
        config = self.student(name)
        return config.precision if config else Precision.INT8_DYNAMIC

    def model(self, name: str) -> PreTrainedModel:
        """Return the trained PyTorch model of a variant, embeddings quantized."""
        config = self.student(name)
        if config is None:
            return student.with_low_bit_embeddings(
                student.load(str(self.teacher_folder)), TEACHER_BITS
            )
        model = self._new_student(config, to_train=config.train is None)
        if config.train is not None:
            model.load_state_dict(training.weights(self.folder / "students" / name / "student.pt"))
        return model
