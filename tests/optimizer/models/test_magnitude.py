"""Single weights become 0 while a student learns, the smallest first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import PreTrainedModel

from gateway.catalog.schema import Precision
from optimizer.models import student
from optimizer.models.magnitude import Magnitude, SparseLinear
from optimizer.models.student import ModelError
from optimizer.onnx import export
from optimizer.training import loop
from optimizer.training.losses import label_loss
from tests.optimizer.models.test_movement import CONFIG, backward, logits_of, wide
from tests.optimizer.training.test_loop import Killed, dying_after, rows

HALF = Magnitude(0.5, start=0.1, end=0.6)


def masked(how: Magnitude = HALF) -> PreTrainedModel:
    model = wide()
    how.attach(model)
    return model


def trained(folder: Path, how: Magnitude = HALF) -> PreTrainedModel:
    model = masked(how)
    loop.train(model, rows(), label_loss, CONFIG, folder, 1, pruning=how)
    return model


def products(model: PreTrainedModel) -> torch.Tensor:
    """Return the weights of all products of the layers, one after the other."""
    layers = student.bert_of(model).encoder.layer
    found = [
        m.weight for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear)
    ]
    return torch.cat([weight.detach().flatten() for weight in found])


def test_open_masks_change_nothing() -> None:
    """A student begins as what it was cut to."""
    assert torch.equal(logits_of(wide()), logits_of(masked()))


def test_what_is_masked_is_zero_in_the_end(tmp_path: Path) -> None:
    """The student computes the same, half of its weights are 0, and it knows of no masks."""
    model = trained(tmp_path)
    model.cpu()
    model.eval()  # type: ignore[no-untyped-call]
    before = logits_of(model)
    HALF.cut(model)
    weights = products(model)
    assert int((weights == 0).sum()) == round(0.5 * weights.numel())
    assert torch.equal(before, logits_of(model))
    assert not any(isinstance(part, SparseLinear) for part in model.modules())
    assert not [name for name in model.state_dict() if name.endswith(".mask")]


def test_the_smallest_weights_of_all_layers_go_first() -> None:
    """One threshold holds for all of them, so a layer of small weights loses more."""
    model = masked()
    with torch.no_grad():
        student.bert_of(model).encoder.layer[0].output.dense.weight *= 0.01
    sizes = products(model).abs()
    HALF.step(model, done=1.0)
    HALF.cut(model)
    gone = products(model) == 0
    assert sizes[gone].max() <= sizes[~gone].min()
    assert bool((student.bert_of(model).encoder.layer[0].output.dense.weight == 0).all())


def test_masks_follow_the_schedule_and_then_stay() -> None:
    """None before the start; the cubic's share between; after the end those that are there."""
    model, shares = masked(), []
    for done in (0.1, 0.35, 0.6):
        HALF.step(model, done=done)
        gone = [~m.mask for m in model.modules() if isinstance(m, SparseLinear)]
        shares.append(sum(int(g.sum()) for g in gone) / sum(g.numel() for g in gone))
    assert shares == pytest.approx([0.0, 0.5 * (1 - 0.5**3), 0.5], abs=1e-4)
    before = {name: x.clone() for name, x in model.state_dict().items() if name.endswith(".mask")}
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, SparseLinear):
                part.weight.copy_(part.weight.flip(0))
    HALF.step(model, done=0.7)
    for name, mask in before.items():
        assert torch.equal(mask, model.state_dict()[name]), name


def test_a_masked_weight_has_no_gradient() -> None:
    """Unlike a masked neuron, which has a score to earn."""
    model = masked()
    HALF.step(model, done=1.0)
    backward(model)
    part = student.bert_of(model).encoder.layer[1].output.dense
    assert not part.weight.grad[~part.mask].any()
    assert part.weight.grad[part.mask].any()


def test_a_killed_training_prunes_as_if_it_was_not(tmp_path: Path) -> None:
    """Masks are in the checkpoint, in the middle of the schedule too."""
    whole, killed, again = trained(tmp_path / "whole"), masked(), masked()
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        loop.train(
            killed, rows(), dying_after(3), CONFIG, folder, 1, checkpoint_every_s=0, pruning=HALF
        )
    loop.train(again, rows(), label_loss, CONFIG, folder, 1, pruning=HALF)
    for name, weights in whole.state_dict().items():
        assert torch.allclose(weights.float(), again.state_dict()[name].float(), atol=1e-6), name


def test_a_ticket_has_the_masks_of_another_student(tmp_path: Path) -> None:
    """Its own weights are those that the other began with; the other's largest say which it keeps."""
    other = wide()
    loop.train(other, rows(), label_loss, CONFIG, tmp_path / "other", 1)
    model = wide()
    HALF.attach(model, other)
    parts = [m for m in model.modules() if isinstance(m, SparseLinear)]
    kept = torch.cat([part.mask.flatten() for part in parts]).cpu()
    sizes = products(other).abs().cpu()
    assert int(kept.sum()) == round(0.5 * kept.numel())
    assert sizes[kept].min() >= sizes[~kept].max()
    loop.train(model, rows(), label_loss, CONFIG, tmp_path / "ticket", 1, pruning=HALF)
    HALF.cut(model)
    assert bool((products(model)[~kept] == 0).all())


def test_a_sparse_student_is_exported(tmp_path: Path) -> None:
    """Its zeros stay zeros in INT8, and the exports are compared with PyTorch."""
    how = replace(HALF, share=0.8)
    model = trained(tmp_path, how)
    how.cut(model)
    for name, to in export.TO.items():
        to(student.with_low_bit_embeddings(model, 4), tmp_path / f"{name}.onnx")
    graph = onnx.load(tmp_path / f"{Precision.INT8_DYNAMIC}.onnx").graph
    matrices = [onnx.numpy_helper.to_array(t) for t in graph.initializer]
    products_ = [m for m in matrices if m.dtype == np.int8 and m.ndim == 2]
    zero = sum(int((m == 0).sum()) for m in products_) / sum(m.size for m in products_)
    assert zero > 0.8


def test_shared_layers_are_not_pruned() -> None:
    with pytest.raises(
        ModelError, match=r"prune: layers share their weights.*whose layers do not$"
    ):
        HALF.attach(student.cut(wide(), (0, 1, 1), None))
