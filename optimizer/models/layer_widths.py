"""The widths of a BERT's layers, which need not be the same: read off a model or its weights, and set.

Legend: F feed-forward width, A attention width (heads times their size).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optimizer.models import heads, neurons
from optimizer.models.weights import layer_name, sharing


def ffn_of(model: Any) -> tuple[int, ...]:
    """Return the feed-forward width of each layer."""
    return tuple(layer.intermediate.dense.out_features for layer in model.bert.encoder.layer)


def owners(model: Any) -> list[int]:
    """Return the layers that have weights of their own; the others share those of one of them."""
    layers = list(model.bert.encoder.layer)
    return sorted(set(sharing(layers) or range(len(layers))))


def fit(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give each layer the widths that these weights have, in place, and no sense: load them next."""
    layers = model.bert.encoder.layer
    ffn = [len(weights[f"{layer_name(i)}.intermediate.dense.weight"]) for i in range(len(layers))]
    attention = [
        len(weights[f"{layer_name(i)}.attention.self.value.weight"]) for i in range(len(layers))
    ]
    sizes = [layer.attention.self.attention_head_size for layer in layers]
    narrow(model, ffn, [a // size for a, size in zip(attention, sizes, strict=True)])


def narrow(model: Any, ffn: Sequence[int], n_heads: Sequence[int]) -> None:
    """Keep the first so many neurons and heads of each layer, in place; the others leave nothing."""
    for i in owners(model):
        layer = model.bert.encoder.layer[i]
        attention, up, down = layer.attention, layer.intermediate.dense, layer.output.dense
        if n_heads[i] < attention.self.num_attention_heads:
            nothing = torch.zeros(attention.output.dense.in_features)
            heads.keep(attention, torch.arange(n_heads[i]), nothing)
        if ffn[i] < up.out_features:
            neurons.keep(up, down, torch.arange(ffn[i]), torch.zeros(up.out_features))
    model.config.intermediate_size = max(ffn)
