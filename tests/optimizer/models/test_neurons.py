"""Neurons go in the order of how much what they write varies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from optimizer.models import neurons, student
from optimizer.students.supernet import Supernet
from optimizer.study.space import Candidate
from optimizer.training.loop import Batch

WIDTH = 96  # feed-forward, of the tiny backbone


@pytest.fixture
def model(tiny_backbone: Path) -> PreTrainedModel:
    """Return a BERT of two layers, loud enough that every neuron matters."""
    found = student.load(str(tiny_backbone))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found.eval()  # type: ignore[no-untyped-call, no-any-return]


def probe(padding: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 45).reshape(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 20 - padding :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def products(model: PreTrainedModel, layer: int) -> tuple[Any, Any]:
    found = student.bert_of(model).encoder.layer[layer]
    return found.intermediate.dense, found.output.dense


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**probe()).start_logits
    return logits


def test_neurons_that_always_say_the_same_become_a_bias(model: PreTrainedModel) -> None:
    """They have the largest weights of all, which is no importance; without them nothing changes."""
    up, down = products(model, 0)
    constant = torch.arange(0, WIDTH, 3)
    up.weight.data[constant] = 0.0
    up.bias.data[constant] = 2.0
    down.weight.data[:, constant] *= 10
    before = logits_of(model)

    found = neurons.measure(model, [probe()])[0]
    n_kept = WIDTH - len(constant)
    assert set(found.order[n_kept:].tolist()) == set(constant.tolist())
    neurons.keep(up, down, found.order[:n_kept], found.mean)
    assert (up.out_features, down.in_features) == (n_kept, n_kept)
    assert torch.allclose(before, logits_of(model), atol=1e-4)


def test_a_neuron_that_nobody_reads_goes_first(model: PreTrainedModel) -> None:
    """However lively it is."""
    up, down = products(model, 1)
    up.weight.data[7] *= 10
    down.weight.data[:, 7] = 0.0
    found = neurons.measure(model, [probe()])[1]
    assert int(found.order[-1]) == 7
    assert found.importance[7] == 0


def test_padding_says_nothing_of_a_neuron(model: PreTrainedModel) -> None:
    """Whatever stands in padded places; and several batches count like one."""
    padded = probe(padding=8)
    noisy = padded | {
        "input_ids": torch.where(padded["attention_mask"] == 1, probe()["input_ids"], 3)
    }
    first, second = neurons.measure(model, [padded]), neurons.measure(model, [noisy])
    rows = [
        {name: row[None] for name, row in zip(padded, rows, strict=True)}
        for rows in zip(*padded.values(), strict=True)
    ]
    for a, b, c in zip(first, second, neurons.measure(model, rows), strict=True):
        assert torch.allclose(a.mean, b.mean, atol=1e-5)
        assert torch.allclose(a.importance, b.importance, atol=1e-5)
        assert torch.allclose(a.importance, c.importance, atol=1e-5)


def test_measuring_leaves_the_model_as_it_was(model: PreTrainedModel) -> None:
    """It runs on a teacher that others are cut from."""
    before, _ = logits_of(model), model.train()
    neurons.measure(model, [probe()])
    assert model.training
    model.eval()  # type: ignore[no-untyped-call]
    assert torch.equal(before, logits_of(model))
    assert not any(
        layer.intermediate._forward_hooks for layer in student.bert_of(model).encoder.layer
    )


def test_a_slice_without_neurons_says_what_they_said_on_average(model: PreTrainedModel) -> None:
    """In an elastic student a narrower slice has the others' mean, before and after it is cut."""
    for i in range(2):
        up, _ = products(model, i)
        up.weight.data[::2], up.bias.data[::2] = 0.0, 2.0
    net = Supernet(model, probe=[probe()])
    ids = probe()
    gold = torch.zeros_like(ids["input_ids"], dtype=torch.bool)
    inputs = (ids["input_ids"], ids["attention_mask"], ids["token_type_ids"])
    batch = Batch(*inputs, starts=gold, ends=gold, rows=(0, 1))
    with torch.no_grad():
        whole = net(batch, Candidate((0, 1), 2, WIDTH))
        half = net(batch, Candidate((0, 1), 2, WIDTH // 2))
        cut = net.cut(Candidate((0, 1), 2, WIDTH // 2)).eval()(**ids)  # type: ignore[no-untyped-call]
    assert torch.allclose(whole.start, half.start, atol=1e-4)
    assert torch.allclose(half.start, cut.start_logits, atol=1e-4)
