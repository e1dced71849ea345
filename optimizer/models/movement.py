"""Masks over the neurons and heads of a BERT, learned while it is trained, and the model without what they hide.

Each layer's two products that read neurons and heads get a mask. What a unit is worth is summed up step
by step from the gradient of its mask: `movement` adds -gradient, so units stay that training would make
larger; `taylor` adds |gradient|, the change of the loss without the unit to first order. Masks are
binary, and follow a schedule from all units to a mean width over the layers. A hidden unit has a score
too, and comes back if it earns it.

Everything that a killed training needs is in the model's `state_dict`.

Sources: Sanh et al. 2020, "Movement Pruning", section 4.1 (scores, straight through) and equation 2 (cubic
schedule); Lagunas et al. 2021, "Block Pruning", section 3, for heads and neurons; Michel et al. 2019, section
4.1 (`taylor`).

Legend: A attention width, F feed-forward width, U units (heads or neurons) of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from optimizer.models import allocation, heads, layer_widths, neurons
from optimizer.models.student import ModelError, report_clamped
from optimizer.models.weights import sharing

Method = Literal["movement", "taylor"]


@dataclass(frozen=True, slots=True)
class Pruning:
    """What is pruned, and when."""

    method: Method
    ffn: int | None  # mean width of the layers in the end; None: no neurons are pruned
    heads: int | None  # likewise of heads
    start: float  # share of the steps without masks
    end: float  # share of the steps after which masks no longer change

    @property
    def kinds(self) -> Iterator[tuple[str, int, int]]:
        """Yield the name, the mean width in the end and the block of all that is pruned."""
        if self.ffn is not None:
            yield "ffn", self.ffn, allocation.NEURONS
        if self.heads is not None:
            yield "heads", self.heads, allocation.HEADS

    def attach(self, model: Any) -> None:
        """Give a model its masks, in place, all open. Raises: ModelError for what cannot be pruned so."""
        refuse_shared(model, ", or give ffn and heads, which are cut before training")
        layers = model.bert.encoder.layer
        for layer in layers if self.ffn is not None else ():
            layer.output.dense = MaskedLinear(layer.output.dense, 1)
        for layer in layers if self.heads is not None else ():
            size = layer.attention.self.attention_head_size
            layer.attention.output.dense = MaskedLinear(layer.attention.output.dense, size)
        for name, final, _ in self.kinds:
            mean = _mean_width(_parts(model, name))
            if final >= mean:
                raise ModelError(
                    f"prune {name} {final}: the student's layers have {mean:g} on average before training; give less,"
                    f" or leave {name} of prune out"
                )

    @torch.no_grad()
    def step(self, model: Any, done: float) -> None:
        """Take the gradients of the masks into the scores, and set the masks, in place.

        For each step of the optimizer, before it and once gradients are complete. `done`: share of the
        steps, this one included.
        """
        for name, final, block in self.kinds:
            parts = _parts(model, name)
            for part in parts:
                assert part.gate.grad is not None, "a mask was not used"
                if done <= self.end:
                    found = part.gate.grad
                    part.score += found.abs() if self.method == "taylor" else -found
                part.gate.grad = None  # so that no optimizer moves it, and no norm counts it
            of = self.end - self.start
            mean = target(_mean_width(parts), final, done - self.start, of)
            scores = [part.score.cpu() for part in parts]
            for part, score, width in zip(
                parts, scores, allocation.spread(scores, mean, block), strict=True
            ):
                part.mask.zero_()[allocation.best(score, width).to(part.mask.device)] = 1.0

    @torch.no_grad()
    def cut(self, model: Any) -> None:
        """Cut off what the masks hide, in place, on the CPU: the model computes the same, and is smaller."""
        model.cpu()
        for name, final, block in self.kinds:
            parts = _parts(model, name)
            scores = [part.score for part in parts]
            units = "neurons" if name == "ffn" else name
            report_clamped(units, allocation.clamped(scores, final, block))
            for layer, part in zip(model.bert.encoder.layer, parts, strict=True):
                kept, nothing = part.mask.nonzero()[:, 0], torch.zeros(part.in_features)
                if name == "heads":
                    layer.attention.output.dense = plain(part)
                    heads.keep(layer.attention, kept, nothing)
                else:
                    layer.output.dense = plain(part)
                    neurons.keep(layer.intermediate.dense, layer.output.dense, kept, nothing)
        model.config.intermediate_size = max(layer_widths.ffn_of(model))


class MaskedLinear(nn.Linear):
    """A product that reads its columns through a mask; a unit is `size` columns beside each other.

    `gate` stays 0: it is a parameter for its gradient, which is the mask's, also where the mask is 0.
    """

    mask: torch.Tensor  # (U,) 0 or 1
    score: torch.Tensor  # (U,)

    def __init__(self, linear: nn.Linear, size: int) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias, self.size = linear.weight, linear.bias, size
        n_units, where = linear.in_features // size, linear.weight.device
        self.gate = nn.Parameter(torch.zeros(n_units, device=where))
        self.register_buffer("mask", torch.ones(n_units, device=where))
        self.register_buffer("score", torch.zeros(n_units, device=where))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (.., U * size)
        open_ = (self.mask + self.gate).repeat_interleave(self.size)
        return super().forward(x * open_)


def refuse_shared(model: Any, otherwise: str = "") -> None:
    """Raises: ModelError for a model whose layers share weights, with what to do `otherwise`."""
    if sharing(list(model.bert.encoder.layer)):
        raise ModelError(
            "prune: layers share their weights, so one mask would stand in two places; cut the student"
            f" from a model whose layers do not{otherwise}"
        )


def plain(masked: nn.Linear) -> nn.Linear:
    """Return a product with the same weights, and without a mask."""
    made = nn.Linear(masked.in_features, masked.out_features, device="meta")
    made.weight, made.bias = masked.weight, masked.bias
    return made


def target(first: float, final: float, passed: float, of: float) -> float:
    """Return the mean width when `passed` of the time that pruning takes is over.

    Source: Zhu & Gupta 2017, "To prune, or not to prune", equation 1.
    """
    left = 1 - min(1.0, max(0.0, passed / of))
    return final + (first - final) * left**3


def _parts(model: Any, name: str) -> list[MaskedLinear]:
    """Return the products of the layers that have a mask over neurons (`ffn`) or heads."""
    layers = model.bert.encoder.layer
    outputs = [layer.attention.output if name == "heads" else layer.output for layer in layers]
    return [output.dense for output in outputs]


def _mean_width(parts: list[MaskedLinear]) -> float:
    return sum(len(part.score) for part in parts) / len(parts)
