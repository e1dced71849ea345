"""Which columns of a BERT's states matter, and a model without the others.

A column matters by how much what is read from it varies: its standard deviation times the norm of
the weights that read it. What the columns left out hold on average stays, as a bias of each reader;
normalizations go over the columns that are left.

Legend: B batch, S tokens, L layers, H hidden width, W columns kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import layer_norm
from transformers import PreTrainedModel

from optimizer.models import bert, neurons
from optimizer.models.neurons import Inputs
from optimizer.models.student import LowBitEmbedding, ModelError
from optimizer.models.weights import sharing


class Width(NamedTuple):
    """A choice of columns."""

    kept: torch.Tensor  # (W,) ascending
    gone: torch.Tensor  # (H - W,)


@dataclass(frozen=True)
class Means:
    """What the states hold on average, at each place where they are read, of a model of L layers."""

    before: torch.Tensor  # (L + 1, H) each layer, and the span head
    between: torch.Tensor  # (L, H) a layer's attention and its feed-forward

    def of(self, layers: Sequence[int]) -> Means:
        """Return those of a model that has these layers alone."""
        chosen = torch.tensor(layers)
        ends = torch.cat([chosen, chosen[-1:] + 1])
        return Means(self.before[ends], self.between[chosen])


@dataclass(frozen=True)
class Columns:
    """What was measured of a model's columns."""

    importance: torch.Tensor  # (H,)
    means: Means

    @property
    def order(self) -> torch.Tensor:
        """Return the columns, the most important first."""
        return self.importance.argsort(descending=True)


def first(order: torch.Tensor, n: int) -> Width | None:
    """Return the best `n` columns of an order, (H,); None: all, for 0 or as many as there are."""
    if not 0 < n < len(order):
        return None
    return Width(order[:n].sort().values, order[n:].sort().values)


@torch.no_grad()
def measure(model: Any, probe: Iterable[Inputs]) -> Columns:  # a BERT with a head
    """Watch the states of every layer while the model reads `probe`; padding is left out.

    Each place where states are read has the same say in what a column is worth.
    Source: as for neurons, the deviation of what is read; for columns of all layers at once as in
    Xia et al. 2022 (CoFi), section 3.1, whose masks are learned instead.
    """
    layers = list(model.bert.encoder.layer)
    norms = [model.bert.embeddings.LayerNorm, *(layer.output.LayerNorm for layer in layers)]
    seen = neurons.watch(
        model, probe, [*norms, *(layer.attention.output.LayerNorm for layer in layers)]
    )
    blocks = [layer.attention.self for layer in layers]
    readers = [
        *([block.query, block.key, block.value] for block in blocks),
        [model.qa_outputs],
        *([layer.intermediate.dense] for layer in layers),
    ]
    said = [
        found.deviation * torch.cat([part.weight for part in parts]).norm(dim=0).cpu()
        for found, parts in zip(seen, readers, strict=True)
    ]
    means, n = torch.stack([found.mean for found in seen]), len(norms)
    return Columns(sum(x / x.sum() for x in said), Means(means[:n], means[n:]))


def reading(
    weight: torch.Tensor,  # (out, H)
    bias: torch.Tensor,  # (out,)
    width: Width | None,
    mean: torch.Tensor | None,  # (H,) what it reads on average; none: it reads all
) -> tuple[torch.Tensor, torch.Tensor]:  # (out, W), (out,)
    """Return a product that reads the columns kept alone."""
    if width is None:
        return weight, bias
    assert mean is not None, "a narrower reader needs the mean of what is left out"
    return weight[:, width.kept], bias + weight[:, width.gone] @ mean[width.gone]


def writing(
    weight: torch.Tensor,  # (H, in)
    bias: torch.Tensor,  # (H,)
    width: Width | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # (W, in), (W,)
    """Return a product that writes the columns kept alone."""
    return (weight, bias) if width is None else (weight[width.kept], bias[width.kept])


def normalized(x: torch.Tensor, norm: Any, width: Width | None) -> torch.Tensor:  # (.., W)
    """Return the normalization over the columns kept, `norm` being that over all."""
    scale, bias = writing(norm.weight, norm.bias, width)
    return layer_norm(x, (len(scale),), scale, bias, norm.eps)


@torch.no_grad()
def keep(model: PreTrainedModel, width: Width | None, means: Means) -> PreTrainedModel:
    """Keep these columns, in place; return the model, a `StudentBert`; None: the model as it is.

    `means`: of a model with its layers. Low-bit words in full width are rounded a second time.
    """
    if width is None:
        return model
    made: Any = bert.as_student(model)
    _narrow_embeddings(made.bert.embeddings, width)
    layers = list(made.bert.encoder.layer)
    for i in sorted(set(sharing(layers) or range(len(layers)))):  # shared ones once
        layer = layers[i]
        block, out = layer.attention.self, layer.attention.output
        for part in (block.query, block.key, block.value):
            _set(part, *reading(part.weight, part.bias, width, means.before[i]))
        up, down = layer.intermediate.dense, layer.output
        _set(out.dense, *writing(out.dense.weight, out.dense.bias, width))
        _set(up, *reading(up.weight, up.bias, width, means.between[i]))
        _set(down.dense, *writing(down.dense.weight, down.dense.bias, width))
        for norm in (out.LayerNorm, down.LayerNorm):
            _narrow_norm(norm, width)
    _set(made.qa_outputs, *_head(made.qa_outputs, width, means.before[-1]))
    for dropping in made.dropping:  # maybe of a model that had more layers
        mean = means.before[min(dropping.after, len(layers))]
        _set(dropping.head, *_head(dropping.head, width, mean))
    made.columns = width.kept
    narrow: PreTrainedModel = made
    return narrow


def columns_of(model: Any) -> torch.Tensor:  # -> (W,)
    """Return the columns that a narrower model kept."""
    columns: torch.Tensor = model.columns
    return columns


def narrowed(
    model: PreTrainedModel, n: int | None, probe: Sequence[Inputs] | None
) -> PreTrainedModel:
    """Measure a model and keep its best `n` columns, in place; None: the model as it is."""
    if not n or n == bert.width_of(model):
        return model
    seeing_all = bert.with_dropping(copy.deepcopy(model), ())
    found = measure(seeing_all, probe or neurons.random_probe(model))
    if n > len(found.order):
        raise ModelError(f"hidden {n}: its states are {len(found.order)} wide")
    return keep(model, first(found.order, n), found.means)


def _head(head: Any, width: Width, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return reading(head.weight, head.bias, width, mean)


def _narrow_embeddings(parts: Any, width: Width) -> None:
    words, kept = parts.word_embeddings, width.kept
    if parts.projection is not None:
        parts.projection = bert.linear_of(parts.projection.weight[kept])
    elif isinstance(words, LowBitEmbedding):
        exact = bert.words_of(parts, torch.arange(len(words.codes), device=words.codes.device))
        parts.word_embeddings = LowBitEmbedding(exact[:, kept], words.bits)
    else:
        _narrow_table(words, kept)
    for table in (parts.position_embeddings, parts.token_type_embeddings):
        _narrow_table(table, kept)
    _narrow_norm(parts.LayerNorm, width)


def _narrow_table(table: nn.Embedding, kept: torch.Tensor) -> None:
    learns = table.weight.requires_grad
    table.weight = nn.Parameter(table.weight[:, kept].clone(), requires_grad=learns)
    table.embedding_dim = len(kept)


def _narrow_norm(norm: Any, width: Width) -> None:
    scale, bias = writing(norm.weight, norm.bias, width)
    norm.weight, norm.bias = nn.Parameter(scale.clone()), nn.Parameter(bias.clone())
    norm.normalized_shape = (len(scale),)


def _set(product: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    product.weight, product.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    product.out_features, product.in_features = weight.shape
