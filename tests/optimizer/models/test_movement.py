"""Neurons and heads go while a student learns, those first that it does without."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedModel

from optimizer.models import adapt, movement, student
from optimizer.models.layer_widths import ffn_of
from optimizer.models.movement import MaskedLinear, Pruning
from optimizer.models.student import ModelError
from optimizer.onnx import export
from optimizer.study.config import TrainConfig
from optimizer.training import loop
from optimizer.training.losses import label_loss
from tests.optimizer import checkpoints
from tests.optimizer.training.test_loop import Killed, dying_after, rows

PRUNING = Pruning("movement", ffn=128, heads=2, start=0.1, end=0.6)
CONFIG = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3)  # 12 steps


def wide() -> PreTrainedModel:
    """Return a BERT of three layers with four blocks of neurons and four heads each."""
    torch.manual_seed(3)
    size: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}
    made = BertForQuestionAnswering(BertConfig(vocab_size=500, num_hidden_layers=3, **size))
    made.set_attn_implementation(adapt.attention())
    for name, parameter in made.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.08)
    return made.eval()  # type: ignore[no-untyped-call, no-any-return]


def masked(pruning: Pruning = PRUNING) -> PreTrainedModel:
    model = wide()
    pruning.attach(model)
    return model


def neurons_of(model: PreTrainedModel, layer: int) -> MaskedLinear:
    found = student.bert_of(model).encoder.layer[layer].output.dense
    assert isinstance(found, MaskedLinear)
    return found


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.arange(5, 65).reshape(3, 20)).start_logits
    return logits


def backward(model: PreTrainedModel) -> None:
    batch = loop.batch_of(rows(), range(8))
    label_loss(model.to(loop.device()), batch).backward()  # type: ignore[no-untyped-call, arg-type]


def test_open_masks_change_nothing() -> None:
    """A student begins as what it was cut to."""
    assert torch.equal(logits_of(wide()), logits_of(masked()))


@pytest.mark.parametrize(("method", "sign"), [("movement", -1), ("taylor", 0)])
def test_a_score_is_what_the_weights_say(method: movement.Method, sign: int) -> None:
    """A neuron's is the sum of weight times gradient over what it writes; no other pass is needed."""
    pruning = replace(PRUNING, method=method)
    model = masked(pruning)
    backward(model)
    part = neurons_of(model, 1)
    assert part.weight.grad is not None
    product = (part.weight * part.weight.grad).sum(0).detach()
    pruning.step(model, done=0.05)
    wanted = sign * product if sign else product.abs()
    assert torch.allclose(part.score, wanted, atol=1e-6)
    assert part.gate.grad is None
    assert bool((part.mask == 1).all()), "nothing goes before the start"


def test_a_hidden_neuron_comes_back_if_it_earns_it() -> None:
    """It has a gradient although it writes nothing."""
    model = masked()
    part = neurons_of(model, 0)
    part.mask[:64] = 0.0
    backward(model)
    assert part.weight.grad is not None
    assert not part.weight.grad[:, :64].any()
    assert part.gate.grad is not None
    assert bool((part.gate.grad[:64] != 0).all())
    part.score[:64] = 1e3
    PRUNING.step(model, done=0.6)
    assert bool((part.mask[:64] == 1).all())


def test_the_schedule_is_cubic() -> None:
    """Most goes early, while there is time to learn without it."""
    found = [movement.target(256, 128, passed, 0.5) for passed in (-0.1, 0, 0.25, 0.5, 0.9)]
    assert found == [256, 256, 144, 128, 128]


def test_masks_no_longer_change_after_the_end() -> None:
    """The rest of the training is for what is left."""
    model = masked()
    backward(model)
    PRUNING.step(model, done=0.6)
    before = {name: x.clone() for name, x in model.state_dict().items() if "dense." in name}
    backward(model)
    PRUNING.step(model, done=0.7)
    for name, values in before.items():
        if name.endswith((".mask", ".score")):
            assert torch.equal(values, model.state_dict()[name]), name


def trained(folder: Path, pruning: Pruning = PRUNING) -> PreTrainedModel:
    model = masked(pruning)
    loop.train(model, rows(), label_loss, CONFIG, folder, 1, pruning=pruning)
    return model


def test_what_is_hidden_is_cut_off(tmp_path: Path) -> None:
    """The student that is left computes the same, has the widths asked for, and knows of no masks."""
    model = trained(tmp_path)
    model.cpu()
    model.eval()  # type: ignore[no-untyped-call]
    before = logits_of(model)
    PRUNING.cut(model)
    assert (sum(ffn_of(model)), sum(student.heads_of(model))) == (3 * 128, 3 * 2)
    assert all(width % 64 == 0 for width in ffn_of(model))
    assert torch.allclose(before, logits_of(model), atol=1e-5)
    assert not [name for name in model.state_dict() if name.endswith((".mask", ".gate", ".score"))]
    assert not any(isinstance(part, MaskedLinear) for part in model.modules())


def test_a_pruned_student_is_exported_as_it_is_left(tmp_path: Path) -> None:
    """Its layers differ, and its INT8 file says what it says: the exports are compared with PyTorch."""
    model = trained(tmp_path, replace(PRUNING, method="taylor"))
    PRUNING.cut(model)
    shape = export.graph_shape_of(student.with_low_bit_embeddings(model, 4))
    assert (shape.ffn, shape.heads) == (ffn_of(model), student.heads_of(model))
    for name, to in export.TO.items():
        to(model, tmp_path / f"{name}.onnx")


def test_neurons_alone_may_be_pruned(tmp_path: Path) -> None:
    """Then all heads stay."""
    pruning = replace(PRUNING, heads=None)
    model = trained(tmp_path, pruning)
    pruning.cut(model)
    assert (sum(ffn_of(model)), student.heads_of(model)) == (3 * 128, (4, 4, 4))


def test_a_killed_training_prunes_as_if_it_was_not(tmp_path: Path) -> None:
    """Scores and masks are in the checkpoint, in the middle of the schedule too."""
    whole, killed, again = trained(tmp_path / "whole"), masked(), masked()
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        loop.train(
            killed, rows(), dying_after(3), CONFIG, folder, 1, checkpoint_every_s=0, pruning=PRUNING
        )
    open_ = sum(float(neurons_of(killed, i).mask.sum()) for i in range(3))
    assert 3 * 128 < open_ < 3 * 256, "it was killed between start and end"
    loop.train(again, rows(), label_loss, CONFIG, folder, 1, pruning=PRUNING)
    for name, weights in whole.state_dict().items():
        assert torch.allclose(weights, again.state_dict()[name], atol=1e-6), name


def test_an_average_of_the_weights_has_whole_masks(tmp_path: Path) -> None:
    """A mask between 0 and 1 could not be cut off."""
    model = masked()
    config = CONFIG.model_copy(update={"average": 0.9})
    loop.train(model, rows(), label_loss, config, tmp_path, 1, pruning=PRUNING)
    part = neurons_of(model, 0)
    assert set(part.mask.tolist()) <= {0.0, 1.0}
    assert not part.gate.any()


def test_heads_of_relative_positions_are_pruned(tmp_path: Path) -> None:
    """What is left keeps its own columns of the table."""
    model = checkpoints.loud_mpnet(tmp_path / "mpnet")
    pruning = Pruning("movement", None, heads=1, start=0.0, end=0.5)
    pruning.attach(model)
    for layer, gone in zip(student.bert_of(model).encoder.layer, (0, 1), strict=True):
        layer.attention.output.dense.mask[gone] = 0.0
    before = logits_of(model)
    pruning.cut(model)
    assert student.heads_of(model) == (1, 1)
    assert torch.allclose(before, logits_of(model), atol=1e-4)


def test_a_layer_of_which_nothing_matters_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """It keeps its least width, and the log says so."""
    caplog.set_level(logging.WARNING)
    model = masked()
    for i in range(3):
        neurons_of(model, i).score += 10.0 * i
    backward(model)
    PRUNING.step(model, done=1.0)
    PRUNING.cut(model)
    assert ffn_of(model)[0] == 64
    assert "layer 0 of the student (from 0): all of its neurons matter less" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ffn": 256}, "prune ffn 256: the student's layers have 256 on average .* give less"),
        ({"heads": 4}, "prune heads 4: the student's layers have 4 on average"),
    ],
)
def test_what_prunes_nothing_is_refused(change: dict[str, Any], said: str) -> None:
    """A schedule to where it begins would only cost time."""
    with pytest.raises(ModelError, match=said):
        replace(PRUNING, **change).attach(wide())


def test_shared_layers_are_not_pruned() -> None:
    """One mask would be learned in two places; the message says what to do."""
    shared = student.cut(wide(), (0, 1, 1), None)
    with pytest.raises(
        ModelError, match=r"prune: layers share their weights.*or give ffn and heads"
    ):
        PRUNING.attach(shared)
