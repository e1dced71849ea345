"""An elastic student: one set of weights of which every candidate of a space is a slice.

Heads and feed-forward neurons stand in the order of their importance, so a narrower candidate has
the first ones; a shallower one skips layers. Words of a lower rank are the first columns of those
of the highest, narrower states are the columns that matter most, and each layer has an early span head for candidates that drop tokens after it.
Training a few candidates a step trains them all.
Source: Cai et al. 2020, "Once-for-All"; Hou et al. 2020, "DynaBERT".

Legend: B batch, S tokens, H hidden width, W a candidate's, N its heads, D head size, A = N * D, F its
feed-forward width.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from optimizer.models import bert, heads, neurons, position_bias, widths
from optimizer.models.bert import Dropping
from optimizer.models.lowrank import ThinWords
from optimizer.models.neurons import Inputs
from optimizer.models.position_bias import Added
from optimizer.models.student import ModelError, bert_of, keep_layers
from optimizer.models.widths import Means, Width
from optimizer.study.space import Candidate, Space
from optimizer.training.loop import Batch, device
from optimizer.training.losses import Outputs, as_classes, as_outputs

T = TypeVar("T")
log = logging.getLogger(__name__)


class Supernet(nn.Module):
    """A copy of a teacher that answers as any of its slices."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        thin: ThinWords | None = None,
        *,
        early: bool = False,
        narrow: bool = False,
        probe: Sequence[Inputs] | None = None,
        measure: bool = True,
    ) -> None:
        """`teacher` has all its heads and embeddings that are quantized already, or frozen.

        `thin`: words for candidates of lower rank. `early`: some candidates drop tokens.
        `narrow`: some have narrower states. `probe`: what it is watched on to see what matters;
        none: random tokens. `measure`: find that out; not for weights that are loaded next, which
        come in their order.
        """
        super().__init__()
        self.model: Any = copy.deepcopy(teacher)
        for i, layer in enumerate(bert_of(self.model).encoder.layer):
            self.register_buffer(f"mean_{i}", torch.zeros(layer.attention.self.all_head_size))
            self.register_buffer(f"neuron_mean_{i}", torch.zeros(layer.output.dense.in_features))
            position_bias.number_heads(layer.attention.self)
        self.narrow = narrow
        if narrow:
            n, wide = self.n_layers, self.model.config.hidden_size
            self.register_buffer("columns", torch.arange(wide))  # the most important first
            self.register_buffer("mean_before", torch.zeros(n + 1, wide))
            self.register_buffer("mean_between", torch.zeros(n, wide))
        if measure:
            self._order(teacher, probe or neurons.random_probe(teacher))
        self.thin = thin
        head: Any = self.model.qa_outputs
        n_heads = self.n_layers if early else 0
        self.early = nn.ModuleList([copy.deepcopy(head) for _ in range(n_heads)])

    def _order(self, teacher: PreTrainedModel, probe: Sequence[Inputs]) -> None:
        """Put the heads and neurons that matter first, and keep what each says on average."""
        log.info("ordering the heads and neurons of %d layers by importance", self.n_layers)
        watched = neurons.measure(teacher, probe)
        teacher.to(device())  # type: ignore[arg-type]
        blocks = [layer.attention for layer in bert_of(teacher).encoder.layer]
        measured = [heads.measure(teacher, block) for block in blocks]
        teacher.cpu()
        for i, layer in enumerate(bert_of(self.model).encoder.layer):
            found = measured[i]
            columns = _sort_heads(layer.attention, found.importance)
            self._mean(i).copy_(found.mean[columns])
            order = watched[i].order
            self._neuron_mean(i).copy_(watched[i].mean[order])
            _sort_neurons(layer.intermediate.dense, layer.output.dense, order)
        if self.narrow:
            states = widths.measure(teacher, probe)
            self.get_buffer("columns").copy_(states.order)
            self.get_buffer("mean_before").copy_(states.means.before)
            self.get_buffer("mean_between").copy_(states.means.between)

    def forward(self, batch: Batch, candidate: Candidate) -> Outputs:
        """Return what a candidate says."""
        width = self._width(candidate)
        said = bert.run(
            self._embed(batch, candidate.rank, width),
            [partial(self._layer, i, candidate, width) for i in candidate.layers],
            self._reading(self.model.qa_outputs, candidate.layers[-1], width),
            batch.attention_mask,
            batch.token_type_ids,
            self._dropping(candidate, width),
            position_bias.bias_of(bert_of(self.model).encoder),
        )
        columns = None if width is None else width.kept
        if bert.classifies(self.model):
            return as_classes(said, columns)
        return as_outputs(said, batch, columns)

    def _width(self, candidate: Candidate) -> Width | None:
        return widths.first(self.get_buffer("columns"), candidate.hidden) if self.narrow else None

    def _reading(self, head: nn.Linear, i: int, width: Width | None) -> bert.Head:
        """Return a span head that reads what is left of the states after layer `i`."""
        if width is None:
            return head
        weight, bias = widths.reading(head.weight, head.bias, width, self._means.before[i + 1])
        return partial(linear, weight=weight, bias=bias)

    @property
    def _means(self) -> Means:
        return Means(self.get_buffer("mean_before"), self.get_buffer("mean_between"))

    def _dropping(self, candidate: Candidate, width: Width | None = None) -> list[Dropping]:
        found = []
        for after, keep in candidate.drops:
            last = candidate.layers[after - 1]
            head: Any = self.early[last]
            found.append(Dropping(after, keep, self._reading(head, last, width)))
        return found

    def cut(self, candidate: Candidate) -> PreTrainedModel:
        """Return a candidate as a model of its own."""
        student: PreTrainedModel = copy.deepcopy(self.model)
        for i, layer in keep_layers(student, candidate.layers).items():
            first = position_bias.first_heads(layer.attention.self, candidate.heads)
            heads.keep(layer.attention, first, self._mean(i))
            up, first = layer.intermediate.dense, torch.arange(candidate.ffn)
            neurons.keep(up, layer.output.dense, first, self._neuron_mean(i))
        student.config.intermediate_size = candidate.ffn
        if candidate.rank:
            assert self.thin is not None, "the rank was checked"
            student = self.thin.cut(student, candidate.rank)
        student = bert.with_dropping(student, self._dropping(candidate))
        width = self._width(candidate)
        return widths.keep(student, width, self._means.of(candidate.layers)) if width else student

    @property
    def n_layers(self) -> int:
        return len(bert_of(self.model).encoder.layer)

    def check(self, candidate: Candidate) -> None:
        """Raises: ModelError for a candidate that is no part of the teacher, or of this student."""
        layers = bert_of(self.model).encoder.layer
        config = self.model.config
        if (
            max(candidate.layers) >= len(layers)
            or candidate.heads > config.num_attention_heads
            or candidate.ffn > config.intermediate_size
        ):
            raise ModelError(
                f"{candidate}: the teacher has {len(layers)} layers of"
                f" {config.num_attention_heads} heads and width {config.intermediate_size}"
            )
        if candidate.hidden and (not self.narrow or candidate.hidden > config.hidden_size):
            has = f"{config.hidden_size} wide, and trained for no other width"
            raise ModelError(f"{candidate}: the student is {has if not self.narrow else has[:8]}")
        rank = 0 if self.thin is None else self.thin.table.width
        if candidate.rank > rank or (candidate.drops and not self.early):
            heads_ = "" if self.early else ", and no early heads"
            raise ModelError(f"{candidate}: the student has words of rank {rank}{heads_}")

    def _embed(self, batch: Batch, rank: int, width: Width | None) -> torch.Tensor:  # -> (B, S, W)
        parts = bert_of(self.model).embeddings
        places = parts.position_embeddings.weight[: batch.input_ids.shape[1]]
        types = embedding(batch.token_type_ids, parts.token_type_embeddings.weight)
        x = self._words(batch.input_ids, rank) + types + places
        return widths.normalized(x if width is None else x[..., width.kept], parts.LayerNorm, width)

    def _words(self, input_ids: torch.Tensor, rank: int) -> torch.Tensor:  # (B, S) -> (B, S, H)
        if not rank:
            rows: torch.Tensor = bert_of(self.model).embeddings.word_embeddings(input_ids)
            return rows
        assert self.thin is not None, "the rank was checked"
        found: torch.Tensor = self.thin(input_ids, rank)
        return found

    def _layer(
        self,
        i: int,
        candidate: Candidate,
        width: Width | None,
        x: torch.Tensor,
        added: Added,
    ) -> torch.Tensor:
        layer = bert_of(self.model).encoder.layer[i]
        mixed = self._attend(i, x, added, candidate, width)
        x = widths.normalized(x + mixed, layer.attention.output.LayerNorm, width)
        up, down, f = layer.intermediate.dense, layer.output.dense, candidate.ffn
        mean = self._means.between[i] if width else None
        wide = linear(x, *widths.reading(up.weight[:f], up.bias[:f], width, mean))
        wide = layer.intermediate.intermediate_act_fn(wide)
        silent = down.weight[:, f:] @ self._neuron_mean(i)[f:]  # likewise of the neurons left out
        written = linear(wide, *widths.writing(down.weight[:, :f], down.bias + silent, width))
        return widths.normalized(x + written, layer.output.LayerNorm, width)

    def _attend(
        self,
        i: int,
        x: torch.Tensor,
        added: Added,
        candidate: Candidate,
        width: Width | None,
    ) -> torch.Tensor:
        attention = bert_of(self.model).encoder.layer[i].attention
        block, out = attention.self, attention.output.dense
        size = block.attention_head_size
        a = candidate.heads * size
        mean = self._means.before[i] if width else None

        def split(part: Any) -> torch.Tensor:  # -> (B, N, S, D)
            projected = linear(x, *widths.reading(part.weight[:a], part.bias[:a], width, mean))
            return projected.view(*x.shape[:2], candidate.heads, size).transpose(1, 2)

        query, key, value = split(block.query), split(block.key), split(block.value)
        order = position_bias.heads_of(block)
        order = None if order is None else order[: candidate.heads]
        mixed = position_bias.attend(query, key, value, added.to(order))
        mixed = mixed.transpose(1, 2).flatten(-2)  # (B, S, A)
        silent = out.weight[:, a:] @ self._mean(i)[a:]  # what the heads left out give on average
        return linear(mixed, *widths.writing(out.weight[:, :a], out.bias + silent, width))

    def _mean(self, i: int) -> torch.Tensor:
        return self.get_buffer(f"mean_{i}")

    def _neuron_mean(self, i: int) -> torch.Tensor:
        return self.get_buffer(f"neuron_mean_{i}")


def sandwich(space: Space, n_random: int, seed: int) -> list[Candidate]:
    """Return the largest candidate, the smallest, and some at random.

    Source: Yu & Huang 2019, "Universally Slimmable Networks", section 3.1 (the sandwich rule).
    """
    draws = torch.Generator().manual_seed(seed)

    def choose(_: str, values: Sequence[T]) -> T:
        return values[int(torch.randint(len(values), (), generator=draws))]

    space = space.trained
    drawn = [space.candidate(choose) for _ in range(n_random)]
    return list(dict.fromkeys([space.largest, space.smallest, *drawn]))


def ask_sandwich(space: Space, n_random: int, net: nn.Module, batch: Batch) -> list[Outputs]:
    """Return what the candidates drawn for a batch say to it: the same ones in all its parts."""
    return [net(batch, candidate) for candidate in sandwich(space, n_random, batch.seed)]


@torch.no_grad()
def _sort_heads(attention: Any, importance: torch.Tensor) -> torch.Tensor:  # (N,) -> (A,)
    """Put the most important heads first, in place; return the order of the columns."""
    block, out = attention.self, attention.output.dense
    order = importance.argsort(descending=True)
    size = block.attention_head_size
    columns: torch.Tensor = (order[:, None] * size + torch.arange(size)).reshape(-1)
    for part in (block.query, block.key, block.value):
        part.weight.copy_(part.weight[columns].clone())
        part.bias.copy_(part.bias[columns].clone())
    out.weight.copy_(out.weight[:, columns].clone())
    numbers = position_bias.heads_of(block)
    if numbers is not None:
        numbers.copy_(numbers[order].clone())
    return columns


@torch.no_grad()
def _sort_neurons(up: nn.Linear, down: nn.Linear, order: torch.Tensor) -> None:  # (F,)
    up.weight.copy_(up.weight[order].clone())
    up.bias.copy_(up.bias[order].clone())
    down.weight.copy_(down.weight[:, order].clone())
