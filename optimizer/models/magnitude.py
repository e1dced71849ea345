"""Single weights of a BERT that become 0 while it is trained, the smallest first.

All products of the layers are masked together, by one threshold. The model stays as large and as slow as it was: its
zeros are stored and multiplied like other values, since ONNX Runtime has no kernels for sparse matrices. So this
serves to ask how many weights a student needs; to make it smaller, cut neurons, heads or layers.

A mask may also come from another student, trained from the same weights: its largest weights choose those that
this one learns with from its first step on, which makes it a lottery ticket.

Sources: Zhu & Gupta 2017, "To prune, or not to prune" (the schedule; Rasa's pruning of BERT follows it too); Chen et
al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT Networks", section 3 (one threshold, tickets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from optimizer.models import movement
from optimizer.models.student import ModelError


@dataclass(frozen=True, slots=True)
class Magnitude:
    """What share of the weights becomes 0, and when."""

    share: float  # of all weights of the layers' products, in the end
    start: float  # share of the training's steps before any weight goes
    end: float  # share of the steps after which masks no longer change

    def attach(self, model: Any, chosen_by: Any = None) -> None:
        """Give a model its masks, in place: all open, or closed where another one's weights are smallest.

        Raises: ModelError for layers that share their weights, and for another model of another shape.
        """
        movement.refuse_shared(model)
        for layer in model.bert.encoder.layer:
            for parent, name, linear in _products(layer):
                setattr(parent, name, SparseLinear(linear))
        if chosen_by is not None:
            _close(_parts(model), self._n(model), _weights_like(model, chosen_by))

    @torch.no_grad()
    def step(self, model: Any, done: float) -> None:
        """Close masks as far as the schedule is, in place. `done`: share of the steps, this one included."""
        parts = _parts(model)
        passed, of = done - self.start, self.end - self.start
        wanted = round(movement.target(0.0, float(self._n(model)), passed, of))
        if wanted > sum(int((~part.mask).sum()) for part in parts):
            _close(parts, wanted, [part.weight for part in parts])

    @torch.no_grad()
    def cut(self, model: Any) -> None:
        """Set to 0 what the masks hide, in place, on the CPU: the model computes the same, without masks."""
        model.cpu()
        for layer in model.bert.encoder.layer:
            for parent, name, part in _products(layer):
                part.weight *= part.mask
                setattr(parent, name, movement.plain(part))

    def _n(self, model: Any) -> int:
        return round(self.share * sum(part.mask.numel() for part in _parts(model)))


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


def _parts(model: Any) -> list[SparseLinear]:
    return [part for layer in model.bert.encoder.layer for _, _, part in _products(layer)]


def _weights_like(model: Any, other: Any) -> list[torch.Tensor]:
    """Return another model's weights in the order of this one's masks. Raises: ModelError."""
    found = [p.weight for layer in other.bert.encoder.layer for _, _, p in _products(layer)]
    if [weight.shape for weight in found] != [part.weight.shape for part in _parts(model)]:
        raise ModelError(
            "prune: the ticket has other layers or widths than the student, so that its masks do not fit; give both"
            " the same layers, ffn, heads and hidden"
        )
    return found


@torch.no_grad()
def _close(parts: Sequence[SparseLinear], n: int, weights: Sequence[torch.Tensor]) -> None:
    """Mask the `n` smallest of all weights."""
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    open_ = torch.ones_like(sizes, dtype=torch.bool)
    open_[sizes.topk(n, largest=False, sorted=False).indices] = False
    pieces = torch.split(open_, [part.mask.numel() for part in parts])
    for part, piece in zip(parts, pieces, strict=True):
        part.mask.copy_(piece.reshape(part.mask.shape))
