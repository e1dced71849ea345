"""The part of the graph that adds a bias of relative positions to attention scores.

A session makes the bias of all positions once, when it is loaded, from a table of 32 buckets: the
file stays small. Each call takes the corner that its windows are long, once for all layers.

Legend: B batch, S tokens, K kept tokens, N heads of the table, M of a layer, P positions.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from optimizer.models.relative_position import buckets_to
from optimizer.models.weights import BIAS, BIAS_HEADS, GraphShape, Weights, layer_name
from optimizer.onnx.nodes import Nodes
from optimizer.onnx.token_dropping import POSITIONS


class PositionBias:
    """Writes the bias of one graph."""

    def __init__(self, nodes: Nodes, weights: Weights, shape: GraphShape) -> None:
        self._nodes, self._weights = nodes, weights
        self._positions = min(shape.positions, POSITIONS)

    def of_all(self, n_tokens: str) -> str:  # -> (N, S, S)
        """Return the bias of windows with all of their tokens, which stand in order."""
        nodes, numbers = self._nodes, np.arange(self._positions, dtype=np.int64)
        key = nodes.constant("bias/key", numbers[None, :])
        query = nodes.constant("bias/query", numbers[:, None])
        rows = nodes.add(
            "Gather", [self._by_distance, self._distance(key, query, "bias")], "bias/rows"
        )
        whole = nodes.add("Transpose", [rows], "bias/whole", perm=[2, 0, 1])  # (N, P, P)
        start, axes = nodes.ints("bias/start", 0, 0), nodes.ints("bias/axes", 1, 2)
        end = nodes.add("Concat", [n_tokens, n_tokens], "bias/end", axis=0)
        return nodes.add("Slice", [whole, start, end, axes], "bias/of_all")

    def of_kept(self, kept: str) -> str:  # (K, B) -> (B, N, K, K)
        """Return the bias of the tokens that go on, from where they stood."""
        nodes, at = self._nodes, kept.replace("early", "bias", 1)
        places = nodes.add("Transpose", [kept], at, perm=[1, 0])
        key = nodes.add("Unsqueeze", [places, nodes.ints("one", 1)], f"{at}/key")
        query = nodes.add("Unsqueeze", [places, nodes.ints("minus_one", -1)], f"{at}/query")
        distance = self._distance(key, query, at)  # (B, K, K)
        rows = nodes.add("Gather", [self._by_distance, distance], f"{at}/rows")
        return nodes.add("Transpose", [rows], at.replace("kept", "of_kept", 1), perm=[0, 3, 1, 2])

    def of_layer(self, i: int, bias: str) -> str:  # (.., N, S, S) -> (.., M, S, S)
        """Return the bias of a layer's heads."""
        heads = self._weights.get(f"{layer_name(i)}{BIAS_HEADS}")
        if heads is None:
            return bias
        name = self._nodes.constant(f"{layer_name(i)}{BIAS_HEADS}", heads)
        return self._nodes.add("Gather", [bias, name], f"{bias}/{i}", axis=-3)

    def _distance(self, key: str, query: str, name: str) -> str:
        """Return a row of the table by distance for each key and query."""
        nodes = self._nodes
        apart = nodes.add("Sub", [key, query], f"{name}/apart")
        return nodes.add(
            "Add", [apart, nodes.ints("bias/nearest", self._positions - 1)], f"{name}/row"
        )

    @cached_property
    def _by_distance(self) -> str:  # -> (2 P - 1, N)
        """What each distance adds, the most negative first."""
        bucket = self._nodes.constant("bias/buckets", buckets_to(self._positions))
        table = self._nodes.weight(BIAS, self._weights[BIAS])
        return self._nodes.add("Gather", [table, bucket], "bias/by_distance")
