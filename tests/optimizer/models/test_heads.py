"""Heads go in the order of what they do to the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from optimizer.models import heads, student

SIZE = 32  # of a head of the tiny backbone


@pytest.fixture
def model(tiny_backbone: Path) -> PreTrainedModel:
    """Return a BERT of two layers with two heads each, loud enough that every head matters."""
    found = student.load(str(tiny_backbone))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found.eval()  # type: ignore[no-untyped-call, no-any-return]


def attention_of(model: PreTrainedModel, layer: int) -> Any:
    return student.bert_of(model).encoder.layer[layer].attention


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(5, 25)[None]).start_logits
    return logits


@pytest.mark.parametrize("silent", [0, 1])
def test_a_head_that_writes_nothing_goes_first(model: PreTrainedModel, silent: int) -> None:
    """And what is left computes the same."""
    attention, columns = attention_of(model, 0), slice(silent * SIZE, (silent + 1) * SIZE)
    attention.output.dense.weight.data[:, columns] = 0.0
    before = logits_of(model)
    heads.behead(attention, heads.measure(model, attention), 1)
    assert attention.self.query.weight.shape == (SIZE, 64)
    assert torch.allclose(before, logits_of(model), atol=1e-5)


def test_a_head_that_writes_a_constant_becomes_a_bias(model: PreTrainedModel) -> None:
    """Large weights are no importance: what a head always says needs no head."""
    attention = attention_of(model, 1)
    attention.self.value.weight.data[:SIZE] = 0.0
    attention.self.value.bias.data[:SIZE] = 3.0
    before = logits_of(model)
    heads.behead(attention, heads.measure(model, attention), 1)
    assert torch.allclose(before, logits_of(model), atol=1e-4)


def test_measuring_leaves_the_model_as_it_was(model: PreTrainedModel) -> None:
    """It runs inside of a cut, on a teacher that others are cut from."""
    model.train()
    first = heads.measure(model, attention_of(model, 0))
    again = heads.measure(model, attention_of(model, 0))
    assert torch.equal(first.importance, again.importance)
    assert model.training
