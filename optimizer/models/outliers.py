"""What keeps the few large activations of a BERT from costing all others their precision in INT8.

One scale serves a whole activation, so a few neurons at 100 leave one code to all others at 2. In
MPNet they are always the same: of each layer 8 feed-forward neurons, computed in float beside the
others, and a few columns of the states, whose size moves into the weights that read them.
Sources: Dettmers et al. 2022, "LLM.int8()", section 3.2, with columns chosen once and for all; Xiao
et al. 2023, "SmoothQuant", equation 4, with alpha 0.5. What each gives: docs/experiments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gateway.domain import Bools, Floats
from optimizer.models.weights import GraphShape, layer_name

EXACT = 8  # neurons of a layer that are computed in float
ALPHA = 0.5  # share of the outliers that the weights take
LEAST = 1e-3  # a column without values has a scale, too

Ranges = Mapping[str, Floats]  # of what reads it: the largest |activation| of each column


def readers(layer: int) -> tuple[str, str, str]:
    """Return the names in `Ranges` of what a layer's products read: states twice, then neurons."""
    name = layer_name(layer)
    return f"{name}.attention.self", f"{name}.intermediate", f"{name}.output"


def level(shape: GraphShape) -> dict[str, Floats]:
    """Return ranges without outliers: the graph, and the time that it takes, is the same."""
    found = {}
    for i, ffn in enumerate(shape.ffn):
        for name, width in zip(readers(i), (shape.hidden, shape.hidden, ffn), strict=True):
            found[name] = np.ones(width, np.float32)
    return found


def exact_neurons(largest: Floats) -> Bools:  # (F,) each
    """Return which neurons are computed in float: those with the largest activations."""
    chosen = np.zeros(len(largest), bool)
    n = min(EXACT, len(largest) // 2)
    chosen[np.argsort(-largest, kind="stable")[:n]] = True
    return chosen


def smoothing(largest: Floats, weights: Sequence[Floats]) -> Floats:  # (in,), (in, out) each
    """Return what columns are divided by, and rows of the weights multiplied, 1 on average."""
    read = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    ratio = np.maximum(largest, LEAST) ** ALPHA / np.maximum(read, LEAST) ** (1 - ALPHA)
    return np.asarray(ratio / np.exp(np.log(ratio).mean()), np.float32)
