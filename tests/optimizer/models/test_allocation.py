"""A budget of neurons or heads goes to the layers where they matter, in whole blocks."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedModel

from optimizer.models import allocation, neurons, student
from optimizer.models.allocation import NEURONS, Mean, spread
from optimizer.models.layer_widths import ffn_of
from optimizer.models.student import ModelError
from optimizer.study.space import NEURON_STEP


def of(*layers: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(units) for units in layers]


@pytest.mark.parametrize(
    ("importance", "mean", "block", "widths"),
    [
        (of([1, 2, 3, 4], [5, 6, 7, 8]), 2, 1, (1, 3)),  # 4 stays: a layer keeps one
        (of([9, 2, 8, 1], [5, 6, 3, 7]), 2, 1, (2, 2)),
        (of([9, 9, 0, 0], [5, 5, 6, 6]), 2, 2, (2, 2)),  # the first blocks, whatever they are worth
        (of([9, 9, 8, 8], [5, 5, 6, 6], [1, 1, 1, 1]), 8 / 3, 2, (4, 2, 2)),
        (of([1, 2, 3], [4, 5, 6]), 2, 2, (2, 2)),  # the last block is what is left of a layer
        (of([1, 2, 3], [4, 5, 6]), 2.5, 2, (2, 3)),
        (of([1, 2, 3], [4, 5, 6]), 3, 2, (3, 3)),
        (of([-1, -2, -3], [-4, -5, -6]), 2, 1, (3, 1)),  # scores of movement may be negative
        (of([0, 0, 0], [0, 0, 0]), 2, 1, (2, 2)),  # of equals the layers take turns
    ],
)
def test_the_best_blocks_of_all_layers_stay(
    importance: list[torch.Tensor], mean: float, block: int, widths: tuple[int, ...]
) -> None:
    """In one ranking, and never more than the budget."""
    assert spread(importance, mean, block) == widths
    assert sum(widths) <= mean * len(importance)


def test_a_layer_that_would_lose_everything_is_named() -> None:
    """It keeps a block, as a layer must; who reads the log may leave it out instead."""
    assert allocation.clamped(of([1, 2], [5, 6], [7, 8]), 4 / 3, 1) == [0]
    assert allocation.clamped(of([1, 6], [5, 6], [7, 8]), 5 / 3, 1) == []


@pytest.fixture(scope="module")
def wide() -> PreTrainedModel:
    """Return a BERT of three layers, in the first of which a block of neurons and a head write anything."""
    torch.manual_seed(3)
    size: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}
    made = BertForQuestionAnswering(BertConfig(vocab_size=500, num_hidden_layers=3, **size))
    for name, parameter in made.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    first = student.bert_of(made).encoder.layer[0]
    first.output.dense.weight.data[:, 64:] = 0.0
    first.attention.output.dense.weight.data[:, 16:] = 0.0
    return made.eval()  # type: ignore[no-untyped-call, no-any-return]


def test_layers_that_matter_are_wider(
    wide: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """A mean is spread over the kept layers by what was measured, and what stays is the best."""
    caplog.set_level(logging.INFO)
    found = student.cut(wide, (0, 1), Mean(128), Mean(2))
    assert (ffn_of(found), student.heads_of(found)) == ((64, 192), (1, 3))
    assert "neurons of each layer, by importance: [64, 192]" in caplog.text
    listed = student.cut(wide, (0, 1), (64, 192), (1, 3))
    for name, weights in listed.state_dict().items():
        assert torch.equal(weights, found.state_dict()[name]), name


def test_a_clamped_layer_is_logged(wide: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    """Its width is not what importance alone says."""
    quiet = copy.deepcopy(wide)
    student.bert_of(quiet).encoder.layer[0].output.dense.weight.data *= 1e-3
    student.cut(quiet, (0, 1), Mean(64))
    assert "layer 0 of the student (from 0): all of its neurons matter less" in caplog.text
    assert "layer 1" not in caplog.text


@pytest.mark.parametrize(
    ("layers", "ffn", "said"),
    [
        ((0, 1), 320, "ffn on average 320: .* have 256 on average; give at most that"),
        ((0, 1, 1), 64, "layers that share weights have one width; give a number, or a list"),
    ],
)
def test_a_mean_that_cannot_be_is_refused(
    wide: PreTrainedModel, layers: tuple[int, ...], ffn: int, said: str
) -> None:
    """With what to do."""
    with pytest.raises(ModelError, match=said):
        student.cut(wide, layers, Mean(ffn))


def test_the_mean_of_whole_layers_is_all(wide: PreTrainedModel) -> None:
    """Nothing is measured, and nothing goes."""
    found = student.cut(wide, (0, 2), Mean(256), Mean(4))
    assert (ffn_of(found), student.heads_of(found)) == ((256, 256), (4, 4))


def test_a_study_file_knows_the_block_of_neurons() -> None:
    """It refuses other means before anything is trained."""
    assert NEURON_STEP == NEURONS


def test_one_ranking_loses_less_than_one_width(wide: PreTrainedModel) -> None:
    """Of the importance that was measured; both keep as many neurons."""
    watched = neurons.measure(wide, neurons.random_probe(wide))
    importance = [found.importance.sort(descending=True).values for found in watched]

    def kept(widths: tuple[int, ...]) -> float:
        pairs = zip(importance, widths, strict=True)
        return float(sum(units[:width].sum() for units, width in pairs))

    assert kept(spread(importance, 128, NEURONS)) > kept((128, 128, 128))


def test_a_start_is_left_as_it_was(wide: PreTrainedModel) -> None:
    """Importance is measured on the model that others are cut from, too."""
    before = {name: weights.clone() for name, weights in wide.state_dict().items()}
    student.cut(wide, (0, 1), Mean(128), Mean(2))
    assert all(torch.equal(before[name], weights) for name, weights in wide.state_dict().items())
