"""A classifier is the same BERT with another head: cut, saved, sliced and exported by the same code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from gateway.backends.embedded import open_session, run_labels
from optimizer.data.items import Feature
from optimizer.models import bert, student
from optimizer.models.student import ModelError
from optimizer.onnx import export
from optimizer.students.supernet import Supernet
from optimizer.study.config import DistillConfig
from optimizer.study.space import Candidate
from optimizer.training import loop, teacher_outputs
from optimizer.training.losses import Imitation, label_loss, outputs_of
from optimizer.training.teacher_outputs import TeacherStates
from tests.optimizer import checkpoints

LABELS = 3


@pytest.fixture(params=["bert", "mpnet"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    """Return a classifier of each kind of position, loud enough for logits to differ."""
    made = {"bert": checkpoints.loud_bert, "mpnet": checkpoints.loud_mpnet}[request.param]
    found = bert.as_classifier(made(tmp_path / "loud"), LABELS, None)
    torch.nn.init.normal_(found.qa_outputs.weight, std=0.15)
    found.eval()  # type: ignore[no-untyped-call]
    return found


def rows(n: int) -> list[Feature]:
    """Return training rows of random tokens, each with a label."""
    draw = torch.Generator().manual_seed(1)

    def row(i: int) -> Feature:
        ids = torch.randint(1, 900, (12 + i,), generator=draw).int().numpy()
        return Feature(ids, (ids % 2).astype("int8"), (), i % LABELS)

    return [row(i) for i in range(n)]


@torch.no_grad()
def test_a_saved_classifier_is_the_same(model: PreTrainedModel, tmp_path: Path) -> None:
    """Head and labels come back, also where the model is written as an MPNet."""
    batch = loop.batch_of(rows(4), [0, 3, 1])
    (before,) = outputs_of(model, batch).logits
    assert before.shape == (3, LABELS)
    student.save_plain(model, tmp_path / "saved")
    again = student.load(str(tmp_path / "saved"), answers=True, labels=LABELS).eval()  # type: ignore[no-untyped-call]
    (after,) = outputs_of(again, batch).logits
    assert torch.allclose(before, after, atol=1e-4)


def test_another_head_is_made_anew(model: PreTrainedModel, tmp_path: Path) -> None:
    """The encoder of a classifier is a start for other labels, and for questions."""
    student.save_plain(model, tmp_path / "saved")
    with pytest.raises(ModelError, match="not trained here to give one of 5 labels"):
        student.load(str(tmp_path / "saved"), answers=True, labels=5)
    assert student.load(str(tmp_path / "saved"), labels=5).config.num_labels == 5
    asked = student.load(str(tmp_path / "saved"))
    assert len(bert.said_by(asked(input_ids=torch.arange(5, 25)[None]))) == 2


def test_every_precision_computes_what_pytorch_computes(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    """The same gates as for spans; one row of logits comes out for each text."""
    cut = student.with_low_bit_embeddings(student.cut(model, (1,), 48, 2), 4)
    export.to_onnx(cut, tmp_path / "fp32.onnx")
    export.to_fp16(cut, tmp_path / "fp16.onnx")
    export.to_int8(cut, tmp_path / "int8.onnx")
    found = run_labels(open_session(tmp_path / "int8.onnx"), export.random_windows(2, 64, 900))
    assert found.labels.shape == (2, LABELS)


def test_a_wrong_head_does_not_pass_the_gate(model: PreTrainedModel, tmp_path: Path) -> None:
    """A gate that compares nothing would let any file out."""
    path = tmp_path / "fp32.onnx"
    export.to_onnx(model, path)
    head = model.qa_outputs
    assert isinstance(head, torch.nn.Linear)
    head.bias.data[0] += 1.0
    with pytest.raises(export.ExportError, match="logits differ"):
        export.check_parity(model, path)


@torch.no_grad()
def test_a_slice_says_the_same_alone(model: PreTrainedModel) -> None:
    """An elastic student of labels is cut as one of spans is."""
    candidate = Candidate(layers=(1,), heads=1, ffn=32)
    net = Supernet(student.with_low_bit_embeddings(model, 4)).eval()
    batch = loop.batch_of(rows(3), [0, 1, 2])
    (inside,) = net(batch, candidate).logits
    (alone,) = outputs_of(net.cut(candidate).eval(), batch).logits  # type: ignore[no-untyped-call]
    assert torch.allclose(inside, alone, atol=1e-4)


@pytest.mark.usefixtures("float32")
@torch.no_grad()
def test_a_teacher_s_logits_are_imitated(model: PreTrainedModel, tmp_path: Path) -> None:
    """Whoever says the same has no loss but that of the labels."""
    features = rows(5)
    teacher_outputs.write(model, features, tmp_path)
    states = TeacherStates.open(tmp_path, features, n_labels=LABELS)
    batch = loop.batch_of(features, [4, 0, 2])
    (wanted,) = states.of(batch).logits
    (said,) = outputs_of(model, batch).logits
    assert torch.allclose(wanted, said, atol=2e-2)
    same = Imitation(states, DistillConfig(label_weight=0.0))
    assert float(same(model, batch)) < 1e-3
    labels = Imitation(None, DistillConfig(labels_only=True))
    wanted_loss = torch.nn.functional.cross_entropy(said, batch.labels)  # type: ignore[arg-type]
    assert torch.allclose(labels(model, batch), wanted_loss, atol=1e-4)
    assert torch.allclose(label_loss(model, batch), wanted_loss, atol=1e-4)
