"""What a teacher said is kept on disk, and a student is pulled towards it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from optimizer.data.items import Feature
from optimizer.models import bert, student
from optimizer.models.bert import Dropping
from optimizer.study.config import DistillConfig
from optimizer.study.stages import CHECKPOINT
from optimizer.training import loop, losses, teacher_outputs
from optimizer.training.loop import Batch
from optimizer.training.losses import Imitation, label_loss, outputs_of
from optimizer.training.teacher_outputs import TeacherStates
from tests.optimizer.training.test_loop import rows

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
def test_cached_teacher_outputs_equal_the_models(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """To half precision, whatever rows a batch holds and however they are padded."""
    features = rows(70)
    teacher_outputs.write(teacher, features, tmp_path, WIDTH)
    batch = loop.batch_of(features, [3, 69, 11])
    targets = TeacherStates.open(tmp_path, features, WIDTH).of(batch)
    said = outputs_of(teacher, batch)
    real = batch.attention_mask == 1
    assert targets.hidden is not None
    assert torch.allclose(targets.start, said.start, atol=2e-3)
    assert torch.allclose(targets.end, said.end, atol=2e-3)
    assert torch.allclose(targets.hidden[real], said.hidden[real], atol=1e-2)


def test_a_killed_teacher_goes_on(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """Asking about all rows takes minutes to hours: what was said is not asked again."""
    features = rows(70)
    with pytest.raises(Killed):
        teacher_outputs.write(Dying(teacher, 2), features, tmp_path, WIDTH, flush_every=1)
    assert (tmp_path / CHECKPOINT).exists()
    teacher_outputs.write(Dying(teacher, 1), features, tmp_path, WIDTH)
    whole = tmp_path / "whole"
    whole.mkdir()
    teacher_outputs.write(teacher, features, whole, WIDTH)
    for name in (teacher_outputs.HIDDEN, teacher_outputs.LOGITS):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@torch.no_grad()
def test_a_student_that_is_its_teacher_has_no_loss(
    teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """Distillation pulls to the teacher and stops there."""
    features = rows(8)
    teacher_outputs.write(teacher, features, tmp_path, WIDTH)
    states = TeacherStates.open(tmp_path, features, WIDTH)
    batch = loop.batch_of(features, range(8))
    loss = Imitation(states, SOFT_ONLY)
    assert float(loss(teacher, batch)) == pytest.approx(0, abs=1e-4)
    torch.nn.init.normal_(teacher.get_parameter("qa_outputs.weight"))
    assert float(loss(teacher, batch)) > 0.1


@torch.no_grad()
def test_the_states_count_by_their_weight(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """A student that knows the answers but thinks otherwise is still taught."""
    features = rows(8)
    teacher_outputs.write(teacher, features, tmp_path, WIDTH)
    states = TeacherStates.open(tmp_path, features, WIDTH)
    batch = loop.batch_of(features, range(8))
    student.bert_of(teacher).encoder.layer[-1].output.LayerNorm.bias += 1.0

    def loss(hidden_weight: float) -> float:
        how = DistillConfig(label_weight=0.0, hidden_weight=hidden_weight)
        return float(Imitation(states, how)(teacher, batch))

    assert loss(0.0) < 0.1 < loss(1.0) < loss(2.0)


def answering(teacher: PreTrainedModel, tmp_path: Path) -> tuple[TeacherStates, Batch]:
    """Return what the teacher says to long rows, and those rows as a batch."""
    rng = np.random.default_rng(1)
    lengths = (120, 111, 97, 90)
    types = [(np.arange(n) > 8).astype(np.int8) for n in lengths]
    ids = [rng.integers(5, 500, n).astype(np.int32) for n in lengths]
    features = [Feature(row, kind, ((30, 33),)) for row, kind in zip(ids, types, strict=True)]
    teacher_outputs.write(teacher, features, tmp_path, WIDTH)
    states = TeacherStates.open(tmp_path, features, WIDTH)
    return states, loop.batch_of(features, range(4))


def dropping(teacher: PreTrainedModel) -> PreTrainedModel:
    head = copy.deepcopy(teacher.get_submodule("qa_outputs"))
    assert isinstance(head, torch.nn.Linear)
    return bert.with_dropping(copy.deepcopy(teacher), [Dropping(1, 0.4, head)])


@torch.no_grad()
def test_an_early_head_counts_by_its_weight(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """It is pulled to the teacher's spans as the last word is."""
    states, batch = answering(teacher, tmp_path)
    model = dropping(teacher)

    def loss(weight: float) -> float:
        how = DistillConfig(hidden_weight=0.0, early_weight=weight)
        return float(Imitation(states, how)(model, batch))

    assert loss(0.0) < loss(0.5)
    assert loss(1.0) - loss(0.5) == pytest.approx(loss(0.5) - loss(0.0), rel=1e-3)


@torch.no_grad()
def test_early_heads_count_by_their_mean(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """However often tokens are dropped, `early_weight` is what all heads together weigh."""
    states, batch = answering(teacher, tmp_path)
    said = outputs_of(teacher, batch)
    how = DistillConfig(hidden_weight=0.0, early_weight=2.0)

    def loss(*factors: float) -> float:
        early = tuple(tuple(x * factor for x in said.logits) for factor in factors)
        out = said._replace(early=early)
        return float(Imitation(states, how, lambda _model, _batch: [out])(teacher, batch))

    assert loss(300.0) != pytest.approx(loss(0.5), rel=1e-2)
    assert loss(300.0, 0.5) == pytest.approx((loss(300.0) + loss(0.5)) / 2)


@torch.no_grad()
def test_the_states_of_dropped_tokens_do_not_count(
    teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """They are an earlier layer's, which is no layer of the teacher's to be like."""
    states, batch = answering(teacher, tmp_path)
    targets, said = states.of(batch), outputs_of(dropping(teacher), batch)
    assert said.kept is not None
    found = said.hidden.clone()

    def loss() -> float:
        out = said._replace(hidden=found)
        return float(Imitation(states, SOFT_ONLY, lambda _model, _batch: [out])(teacher, batch))

    before = loss()
    found[~said.kept] += 7.0
    assert loss() == before
    assert targets.hidden is not None
    found[said.kept] = targets.hidden[said.kept]
    assert loss() < before
    assert not said.kept.all()


@torch.no_grad()
def test_with_labels_only_the_teacher_has_no_say(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """A student without a teacher learns from the same rows in the same steps."""
    states, batch = answering(teacher, tmp_path)
    alone = DistillConfig(labels_only=True)
    torch.nn.init.normal_(teacher.get_parameter("qa_outputs.weight"))
    for model in (teacher, dropping(teacher)):
        found = float(Imitation(None, alone)(model, batch))
        assert found == pytest.approx(float(label_loss(model, batch)), abs=1e-6)
        assert found == float(Imitation(states, alone)(model, batch))
        assert found != pytest.approx(float(Imitation(states, DistillConfig())(model, batch)))


def test_any_gold_answer_will_do() -> None:
    """With one gold position the loss is cross-entropy; with more, their probabilities add up."""
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    one, two = (
        torch.tensor([[False, True, False, False]]),
        torch.tensor([[False, True, True, False]]),
    )
    share = torch.softmax(logits, -1)[0]
    assert float(losses.any_of(logits, one)) == pytest.approx(-float(share[1].log()))
    assert float(losses.any_of(logits, two)) == pytest.approx(-float((share[1] + share[2]).log()))


def test_abstaining_is_learnt_from_the_difference_that_decoding_uses() -> None:
    """The loss falls when position 0 gains on the context for an unanswerable question, and rises for others."""
    types = np.array([0, 0, 1, 1], np.int8)
    ids = np.array([5, 6, 7, 8], np.int32)
    features = [Feature(ids, types, ((0, 0),)), Feature(ids, types, ((2, 3),))]
    unanswerable, answerable = (loop.batch_of(features, [i]) for i in range(2))

    def loss(batch: Batch, null: float) -> float:
        logits = torch.tensor([[null, 0.0, 1.0, 1.0]])
        return float(losses.answerability_loss(batch, (logits, logits)))

    assert loss(unanswerable, 4.0) < loss(unanswerable, 0.0)
    assert loss(answerable, 4.0) > loss(answerable, 0.0)
