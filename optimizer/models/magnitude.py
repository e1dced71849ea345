"""Unstructured magnitude pruning: single weights of a BERT become 0 while it is trained, the smallest first.

All products of the layers are masked together, by one threshold. The model stays as large and as slow as it was: the
exported graph has dense products, which store zeros and multiply by them. So this serves to ask how many weights a
student needs; to make it smaller, cut neurons, heads or layers.

Masked weights have no gradient, but optimizers still move them, and until the end of the schedule one that has become
larger than others comes back. After the training they are 0.

A mask may also come from another student, trained from the same weights: its largest weights choose those that
this one has from its first step on. It is then a lottery ticket.

Sources: Zhu & Gupta 2017, "To prune, or not to prune" (the schedule, as in Rasa's gradual pruning of BERT); Chen et al.
2020, "The Lottery Ticket Hypothesis for Pre-trained BERT Networks", section 3 (one threshold, tickets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from optimizer.models import movement


@dataclass(frozen=True, slots=True)
class Magnitude:
    """What share of the weights becomes 0, and when."""

    share: float  # of all weights of the layers' products, in the end
    start: float  # share of the training's steps before any weight goes
    end: float  # share of the steps after which masks no longer change

    def attach(self, model: Any, chosen_by: Any = None) -> None:
        """Give a model its masks, in place: all open, or closed where another one's weights are smallest.

        `chosen_by`: of the same layers and widths. Raises: ModelError for layers that share their weights.
        """
        movement.refuse_shared(model)
        for layer in model.bert.encoder.layer:
            for parent, name, linear in _products(layer):
                setattr(parent, name, SparseLinear(linear))
        if chosen_by is not None:
            _close(_parts(model), self._n(model), _parts(chosen_by))

    @torch.no_grad()
    def step(self, model: Any, done: float) -> None:
        """Close masks as far as the schedule is, in place. `done`: share of the steps, this one included."""
        parts = _parts(model)
        passed, of = done - self.start, self.end - self.start
        wanted = round(movement.target(0.0, float(self._n(model)), passed, of))
        if wanted > sum(int((~part.mask).sum()) for part in parts):
            _close(parts, wanted, parts)

    @torch.no_grad()
    def cut(self, model: Any) -> None:
        """Set to 0 what the masks hide, in place, on the CPU: the model computes the same, without masks."""
        model.cpu()
        for layer in model.bert.encoder.layer:
            for parent, name, part in _products(layer):
                part.weight *= part.mask
                setattr(parent, name, movement.plain(part))

    def _n(self, model: Any) -> int:
        n: int = sum(part.mask.numel() for part in _parts(model))
        return round(self.share * n)


class SparseLinear(nn.Linear):
    """A product of which some weights count as 0; their gradients are 0 too."""

    mask: torch.Tensor  # (out, in) bool

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", torch.ones_like(linear.weight, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (.., in)
        return functional.linear(x, self.weight * self.mask, self.bias)


def _products(layer: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return a layer's products, each with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in layer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]


def _parts(model: Any) -> list[Any]:
    return [part for layer in model.bert.encoder.layer for _, _, part in _products(layer)]


@torch.no_grad()
def _close(parts: Sequence[SparseLinear], n: int, by: Sequence[nn.Linear]) -> None:
    """Mask the products where the `n` smallest of all weights of `by` are."""
    sizes = torch.cat([other.weight.abs().flatten() for other in by])
    open_ = torch.ones_like(sizes, dtype=torch.bool)
    open_[sizes.topk(n, largest=False, sorted=False).indices] = False
    pieces = torch.split(open_, [part.mask.numel() for part in parts])
    for part, piece in zip(parts, pieces, strict=True):
        part.mask.copy_(piece.reshape(part.mask.shape))
