"""How large the activations of a BERT become, column by column, while it reads a probe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from gateway.domain import Floats
from optimizer.models.neurons import Inputs
from optimizer.models.outliers import readers


class _Largest:
    """The largest |x| of each column of what a module reads."""

    def __init__(self, module: nn.Module) -> None:
        self.found: torch.Tensor | None = None
        self.handle = module.register_forward_pre_hook(self._hook)

    def _hook(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen = inputs[0].abs().flatten(0, -2).amax(0).float()
        self.found = seen if self.found is None else torch.maximum(self.found, seen)


@torch.no_grad()
def measure(model: Any, probe: Iterable[Inputs]) -> dict[str, Floats]:  # a BERT with a head
    """Return what `optimizer.models.outliers` must know; padding counts, as it does for dynamic scales."""
    seen = {}
    for i, layer in enumerate(model.bert.encoder.layer):
        parts = (layer.attention.self.query, layer.intermediate.dense, layer.output.dense)
        for name, part in zip(readers(i), parts, strict=True):
            seen[name] = _Largest(part)
    where, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for batch in probe:
            model(**{name: ids.to(where) for name, ids in batch.items()})
    finally:
        model.train(was_training)
        for largest in seen.values():
            largest.handle.remove()
    return {name: _array(largest.found) for name, largest in seen.items()}


def _array(found: torch.Tensor | None) -> Floats:
    assert found is not None, "a probe is not empty"
    return np.asarray(found.cpu().numpy(), np.float32)
