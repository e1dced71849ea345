"""What a teacher said is kept on disk, and a student is pulled towards it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from optimizer import student, teacher_states, training
from optimizer.config import DistillConfig
from optimizer.distill import Imitation, outputs_of
from optimizer.stages import CHECKPOINT
from optimizer.teacher_states import TeacherStates
from tests.optimizer.test_training import rows

WIDTH = 64  # of the tiny backbone
SOFT_ONLY = DistillConfig(label_weight=0.0)


class Killed(Exception):
    """Stands for a signal."""


class Dying(torch.nn.Module):
    """A teacher that is killed after some batches."""

    def __init__(self, model: PreTrainedModel, batches: int) -> None:
        super().__init__()
        self.model, self.left = model, batches

    def forward(self, **inputs: object) -> object:
        if not self.left:
            raise Killed
        self.left -= 1
        return self.model(**inputs)


@pytest.fixture
def teacher(tiny_backbone: Path) -> PreTrainedModel:
    return student.load(str(tiny_backbone)).eval()  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def test_what_was_kept_is_what_was_said(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """To half precision, whatever rows a batch holds and however they are padded."""
    features = rows(70)
    teacher_states.write(teacher, features, tmp_path, WIDTH)
    batch = training.batch_of(features, [3, 69, 11])
    told = TeacherStates.open(tmp_path, features, WIDTH).of(batch)
    said = outputs_of(teacher, batch)
    real = batch.attention_mask == 1
    assert torch.allclose(told.start, said.start, atol=2e-3)
    assert torch.allclose(told.end, said.end, atol=2e-3)
    assert torch.allclose(told.hidden[real], said.hidden[real], atol=1e-2)


def test_a_killed_teacher_goes_on(
    teacher: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking about all rows takes minutes to hours: what was said is not asked again."""
    features = rows(70)
    monkeypatch.setattr(teacher_states, "FLUSH_EVERY", 1)
    with pytest.raises(Killed):
        teacher_states.write(Dying(teacher, 2), features, tmp_path, WIDTH)
    assert (tmp_path / CHECKPOINT).exists()
    teacher_states.write(Dying(teacher, 1), features, tmp_path, WIDTH)
    whole = tmp_path / "whole"
    whole.mkdir()
    teacher_states.write(teacher, features, whole, WIDTH)
    for name in (teacher_states.HIDDEN, teacher_states.LOGITS):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@torch.no_grad()
def test_a_student_that_is_its_teacher_has_no_loss(
    teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """Distillation pulls to the teacher and stops there."""
    features = rows(8)
    teacher_states.write(teacher, features, tmp_path, WIDTH)
    states = TeacherStates.open(tmp_path, features, WIDTH)
    batch = training.batch_of(features, range(8))
    loss = Imitation(states, SOFT_ONLY)
    assert float(loss(teacher, batch)) == pytest.approx(0, abs=1e-4)
    torch.nn.init.normal_(teacher.get_parameter("qa_outputs.weight"))
    assert float(loss(teacher, batch)) > 0.1


@torch.no_grad()
def test_the_states_count_by_their_weight(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """A student that knows the answers but thinks otherwise is still taught."""
    features = rows(8)
    teacher_states.write(teacher, features, tmp_path, WIDTH)
    states = TeacherStates.open(tmp_path, features, WIDTH)
    batch = training.batch_of(features, range(8))
    student.bert_of(teacher).encoder.layer[-1].output.LayerNorm.bias += 1.0

    def loss(hidden_weight: float) -> float:
        how = DistillConfig(label_weight=0.0, hidden_weight=hidden_weight)
        return float(Imitation(states, how)(teacher, batch))

    assert loss(0.0) < 0.1 < loss(1.0) < loss(2.0)
