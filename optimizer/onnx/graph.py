"""The ONNX graph of a BERT that answers questions or classifies, written node by node from its weights.

No tracing and no pattern matching: each node is the fastest form measured on the CPU provider
(docs/experiments), in operators that ONNX Runtime 1.19 knows. It reads no file and knows no PyTorch.

Legend: B batch, S tokens, H hidden width, N heads, D head size, F feed-forward width, V vocabulary.
Activations are (S, B, ...): then both attention products read their heads in place, by strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto

from gateway.backends.embedded import INPUTS
from gateway.backends.protocol import LABEL_OUTPUTS, SPAN_OUTPUTS
from gateway.catalog.schema import Precision
from gateway.domain import Bools
from optimizer.models import outliers
from optimizer.models.outliers import Ranges
from optimizer.models.weights import (
    PROJECTION,
    TABLE,
    GraphShape,
    Weights,
    check,
    layer_name,
)
from optimizer.onnx.graph_bias import PositionBias
from optimizer.onnx.nodes import Linear, Nodes
from optimizer.onnx.token_dropping import POSITIONS, TokenDropping

MASKED = -1e3  # score of a padded token


def build(
    weights: Weights, shape: GraphShape, precision: Precision, ranges: Ranges | None = None
) -> onnx.ModelProto:
    """Return the model: FP32; INT8, dynamic, with attention scores and span heads in fp32; or FP16.

    FP16 is for a GPU: embeddings and span heads are computed in fp32, what lies between in fp16.
    It takes no longer windows than the gateway's longest length bucket.
    `ranges`: of activations, by which INT8 treats their outliers (`optimizer.models.outliers`); None: not.
    The same weights give the same bytes. Raises: ValueError for weights that are not of this shape.
    """
    check(weights, shape)
    return _Bert(weights, shape, precision, ranges).model()


class _Bert:
    """Writes the parts of BERT, each from the values before it."""

    def __init__(
        self, weights: Weights, shape: GraphShape, precision: Precision, ranges: Ranges | None
    ) -> None:
        self._weights, self._shape = weights, shape
        self._ranges = ranges if precision == Precision.INT8_DYNAMIC else None
        owners = {layer_name(i): layer_name(k) for i, k in enumerate(shape.shared) if i != k}
        self._nodes = Nodes(precision, owners)
        self._bias = PositionBias(self._nodes, weights, shape) if shape.bias_columns else None

    def model(self) -> onnx.ModelProto:
        nodes, shape = self._nodes, self._shape
        ids = nodes.add("Transpose", ["input_ids"], "ids", perm=[1, 0])
        types = nodes.add("Transpose", ["token_type_ids"], "types", perm=[1, 0])
        places, padding = self._places(types), self._padding()
        x = self._embeddings(ids, places)
        if not shape.drops:
            bias = self._bias.of_all("n_tokens") if self._bias else None
            x = self._layers(range(shape.layers), x, padding, bias)
            if shape.labels:
                self._classes(x)
                return nodes.model(INPUTS, LABEL_OUTPUTS, "labels")
            logits = self._span_head(x, "qa_outputs")
        else:
            logits = self._with_dropping(x, padding, places)
        self._output(logits)
        return nodes.model(INPUTS, SPAN_OUTPUTS)

    def _with_dropping(self, x: str, padding: str, places: str) -> str:  # -> (S, B, 2)
        nodes, shape = self._nodes, self._shape
        tokens = TokenDropping(nodes, padding, places, shape.types, self._positions)
        bias = self._bias.of_all("n_tokens") if self._bias else None
        done = 0
        for after, keep in shape.drops:
            x = self._layers(range(done, after), x, tokens.padding, bias)
            early = self._span_head(x, tokens.head)
            x, done = tokens.drop(keep, early, x, shape.hidden), after
            bias = self._bias.of_kept(tokens.kept) if self._bias else None
        x = self._layers(range(done, shape.layers), x, tokens.padding, bias)
        return tokens.restore(self._span_head(x, "qa_outputs"))

    def _layers(self, layers: Sequence[int], x: str, padding: str, bias: str | None) -> str:
        padding, heads = self._nodes.from_float(padding), {self._shape.heads[i] for i in layers}
        masks = {n: self._mask(padding, n) for n in sorted(heads)}
        for i in layers:
            own = None if self._bias is None or bias is None else self._bias.of_layer(i, bias)
            x = self._feed_forward(i, self._attention(i, x, masks[self._shape.heads[i]], own))
        return x

    def _embeddings(self, ids: str, places: str) -> str:  # (S, B) -> (S, B, H)
        nodes, name = self._nodes, "bert.embeddings.LayerNorm"
        rows = nodes.add("Gather", [self._table_of_places(), places], "places/rows")
        total = nodes.add("Add", [self._words(ids), rows], "embeddings/sum")
        scale, bias = self._raw(f"{name}.weight"), self._raw(f"{name}.bias")
        return nodes.from_float(self._norm(total, name, scale, bias))

    def _places(self, types: str) -> str:  # (S, B) -> (S, B)
        """Return each token's row in what there is for each type at each position."""
        nodes, n = self._nodes, self._positions
        n_tokens = nodes.add("Shape", [types], "n_tokens", start=0, end=1)
        zero, numbers = nodes.ints("zero", 0), np.arange(n, dtype=np.int64)[:, None]
        column = nodes.constant("places/numbers", numbers)
        column = nodes.add("Slice", [column, zero, n_tokens, zero], "places/number")
        first = nodes.add("Mul", [types, nodes.ints("places/of_type", n)], "places/first")
        return nodes.add("Add", [first, column], "places")

    def _table_of_places(self) -> str:  # -> (types * positions, H)
        """Return the sums of both embeddings, which a session makes once, when it is loaded."""
        nodes, embeddings = self._nodes, "bert.embeddings"
        name = f"{embeddings}.position_embeddings.weight"
        positions = nodes.stored(name, self._weights[name][: self._positions])
        types = self._raw(f"{embeddings}.token_type_embeddings.weight")
        types = nodes.add("Unsqueeze", [types, nodes.ints("one", 1)], "types/table")
        both = nodes.add("Add", [types, positions], "places/by_type")
        return nodes.add(
            "Reshape", [both, nodes.ints("flat/rows", -1, self._shape.hidden)], "places/table"
        )

    @property
    def _positions(self) -> int:
        return min(self._shape.positions, POSITIONS)

    def _words(self, ids: str) -> str:  # (S, B) -> (S, B, H)
        rows = self._rows(ids)
        if not self._shape.rank:
            return rows
        name = f"{PROJECTION}.weight"
        projection = self._nodes.stored(name, self._weights[name].T)
        return self._nodes.add("MatMul", [rows, projection], "words/projected")

    def _rows(self, ids: str) -> str:  # (S, B) -> (S, B, word width)
        nodes = self._nodes
        if self._shape.embedding_bits == 32:
            table = nodes.weight(f"{TABLE}.weight", self._weights[f"{TABLE}.weight"])
            return nodes.to_float(nodes.add("Gather", [table, ids], "words/rows"))
        codes = nodes.add("Gather", [self._raw(f"{TABLE}.codes"), ids], "words/bytes")
        codes = nodes.cast(codes, TensorProto.FLOAT, "words/bytes/float")
        if self._shape.embedding_bits == 4:
            codes = self._unpack(codes)
        grouped = nodes.ints("words/groups", 0, 0, -1, self._shape.group)
        codes = nodes.add("Reshape", [codes, grouped], "words/codes")
        scale, low = self._scales(ids)
        scaled = nodes.add("Mul", [codes, scale], "words/scaled")
        rows = nodes.add("Add", [scaled, low], "words/grouped")
        joined = nodes.ints("words/joined", 0, 0, self._shape.word_width)
        return nodes.add("Reshape", [rows, joined], "words/rows")

    def _scales(self, ids: str) -> Sequence[str]:  # (S, B) -> twice (S, B, groups, 1)
        """Return scale and offset of each word's groups; they are stored beside each other."""
        nodes, parts = self._nodes, [self._weights[f"{TABLE}.{part}"] for part in ("scale", "low")]
        found = nodes.constant(f"{TABLE}.scales", np.stack(parts, axis=-1))
        found = nodes.add("Gather", [found, ids], "words/scales/half")
        found = nodes.cast(found, TensorProto.FLOAT, "words/scales")
        outputs = ["words/scale", "words/low"]
        return nodes.add_many("Split", [found, nodes.ints("halves", 1, 1)], outputs, axis=-1)

    def _unpack(self, codes: str) -> str:
        """Return the high halves of all bytes of a row, then the low halves."""
        nodes = self._nodes
        sixteen = nodes.number("sixteen", 16)
        high = nodes.add("Div", [codes, sixteen], "words/sixteenths")
        high = nodes.add("Floor", [high], "words/high")
        rest = nodes.add("Mul", [high, sixteen], "words/high/shifted")
        rest = nodes.add("Sub", [codes, rest], "words/rest")
        return nodes.add("Concat", [high, rest], "words/unpacked", axis=-1)

    def _attention(self, i: int, x: str, mask: str, bias: str | None) -> str:
        """Return the block's output (S, B, H); `bias`: of its heads, (.., N, S, S).

        The mask costs no pass over the (S x S) scores: every head has one more column, in which a
        query is 1 and a padded key the score it gets. A key's bias adds the same to all scores of
        a query, which softmax does not see, so the mask is added in its place.
        """
        name, heads, size = layer_name(i), self._shape.heads[i], self._shape.head_size
        out = f"{name}.attention"
        query = _with_column(self._linear(f"{out}.self.query"), heads, bias=1.0)
        key = _with_column(self._linear(f"{out}.self.key"), heads, bias=None)
        reading, linears = self._smoothed(
            x, f"{out}.self", [query, key, self._linear(f"{out}.self.value")]
        )
        parts = self._nodes.products(reading, linears)
        parts[1] = self._nodes.add("Add", [parts[1], mask], f"{out}/masked_key")
        q, k, v = (self._split_heads(part, heads) for part in parts)
        strides = {"transBatchA": 1, "transBatchB": 1, "transB": 1}
        scores = self._nodes.add(
            "FusedMatMul", [q, k], f"{out}/scores", alpha=size**-0.5, **strides
        )
        if bias is not None:
            scores = self._nodes.add("Add", [scores, bias], f"{out}/biased")
        shares = self._nodes.add("Softmax", [scores], f"{out}/shares", axis=-1)  # (B, N, S, S)
        mixed = self._nodes.add("FusedMatMul", [shares, v], f"{out}/mixed", transBatchB=1)
        mixed = self._nodes.add("Transpose", [mixed], f"{out}/by_token", perm=[2, 0, 1, 3])
        joined = self._nodes.ints(f"join/{heads}", 0, 0, heads * size)
        mixed = self._nodes.add("Reshape", [mixed, joined], f"{out}/joined")
        dense = self._linear(f"{out}.output.dense")
        return self._add_and_norm(mixed, dense, [x], f"{out}.output")

    def _split_heads(self, x: str, heads: int) -> str:  # (S, B, ...) -> (S, B, N, ...)
        return self._nodes.add(
            "Reshape", [x, self._nodes.ints(f"split/{heads}", 0, 0, heads, -1)], f"{x}/heads"
        )

    def _mask(self, padding: str, heads: int) -> str:  # (S, B, 1) -> (S, B, N * (D + 1))
        """Return what is added to a key: nothing, and for a padded token MASKED per head."""
        size = self._shape.head_size
        column = np.zeros((heads, size + 1), np.float32)
        column[:, -1] = MASKED * size**0.5
        row = self._nodes.weight(f"mask/{heads}/row", column.reshape(-1))
        return self._nodes.add("Mul", [padding, row], f"{padding}/mask/{heads}")

    def _padding(self) -> str:  # -> (S, B, 1), 1 where there is padding
        nodes = self._nodes
        kept = nodes.add("Transpose", ["attention_mask"], "mask/kept", perm=[1, 0])
        kept = nodes.cast(kept, TensorProto.FLOAT, "mask/float")
        padding = nodes.add("Sub", [nodes.number("one/float", 1), kept], "mask/padding")
        return nodes.add("Unsqueeze", [padding, nodes.ints("minus_one", -1)], "padding")

    def _smoothed(
        self, x: str, name: str, linears: Sequence[Linear]
    ) -> tuple[str, Sequence[Linear]]:
        """Return what products read, and the products, outliers moved from the one to the others."""
        if self._ranges is None:
            return x, linears
        scale = outliers.smoothing(self._ranges[name], [linear.weight for linear in linears])
        even = self._nodes.constant(f"{name}.smooth", 1 / scale)
        larger = [replace(part, weight=part.weight * scale[:, None]) for part in linears]
        return self._nodes.add("Mul", [x, even], f"{name}/even"), larger

    def _feed_forward(self, i: int, x: str) -> str:
        name = layer_name(i)
        up, down = self._linear(f"{name}.intermediate.dense"), self._linear(f"{name}.output.dense")
        beside = []
        if self._ranges is not None:
            exact = outliers.exact_neurons(self._ranges[f"{name}.output"])
            beside = [self._exact_neurons(name, x, up, down, exact)]
            up, down = _columns(up, ~exact, up.name), _rows(down, ~exact, down.name)
        reading, (up,) = self._smoothed(x, f"{name}.intermediate", [up])
        (wide,) = self._nodes.products(reading, [up])
        active = self._nodes.add(self._shape.activation, [wide], f"{name}.intermediate/gelu")
        return self._add_and_norm(active, down, [x, *beside], f"{name}.output")

    def _exact_neurons(self, name: str, x: str, up: Linear, down: Linear, exact: Bools) -> str:
        """Return what some neurons write, computed in float."""
        wide = self._nodes.float_product(x, _columns(up, exact, f"{name}.intermediate.exact"))
        active = self._nodes.add(self._shape.activation, [wide], f"{name}.intermediate/exact/gelu")
        out = replace(_rows(down, exact, f"{name}.output.exact"), bias=None)
        return self._nodes.float_product(active, out)

    def _add_and_norm(self, x: str, linear: Linear, others: Sequence[str], name: str) -> str:
        """Return LayerNorm(linear(x) + others).

        Sum, not Add: ONNX Runtime fuses Add with LayerNormalization into SkipLayerNormalization,
        which takes five times as long as the two.
        """
        (dense,) = self._nodes.products(x, [linear])
        total = self._nodes.add("Sum", [dense, *others], f"{name}/residual")
        return self._norm_of(total, f"{name}.LayerNorm")

    def _norm_of(self, x: str, name: str) -> str:
        parts = (f"{name}.weight", f"{name}.bias")
        return self._norm(x, name, *(self._nodes.weight(p, self._weights[p]) for p in parts))

    def _norm(self, x: str, name: str, scale: str, bias: str) -> str:
        epsilon = self._shape.epsilon
        inputs = [x, scale, bias]
        return self._nodes.add("LayerNormalization", inputs, name, axis=-1, epsilon=epsilon)

    def _span_head(self, x: str, name: str) -> str:  # (S, B, H) -> (S, B, 2)
        return self._nodes.float_product(self._nodes.to_float(x), self._linear(name))

    def _classes(self, x: str) -> None:  # (S, B, H) -> (B, L)
        """Write the logits of the labels, read at the first token."""
        nodes = self._nodes
        zero = nodes.ints("zero", 0)
        first = nodes.add("Gather", [x, zero], "first_token", axis=0)  # (1, B, H)
        logits = self._span_head(first, "qa_outputs")
        nodes.add("Squeeze", [logits, zero], LABEL_OUTPUTS[0])

    def _output(self, logits: str) -> None:  # (S, B, 2)
        nodes = self._nodes
        logits = nodes.add("Transpose", [logits], "logits", perm=[2, 1, 0])
        rows = [f"{name}/row" for name in SPAN_OUTPUTS]
        nodes.add_many("Split", [logits, nodes.ints("halves", 1, 1)], rows, axis=0)
        for row, output in zip(rows, SPAN_OUTPUTS, strict=True):
            nodes.add("Squeeze", [row, nodes.ints("zero", 0)], output)

    def _raw(self, name: str) -> str:
        return self._nodes.constant(name, self._weights[name])

    def _linear(self, name: str) -> Linear:
        weight = self._weights[f"{name}.weight"].astype(np.float32)
        return Linear(name, weight.T, self._weights[f"{name}.bias"].astype(np.float32))


def _with_column(linear: Linear, heads: int, *, bias: float | None) -> Linear:
    """Give each head one more column of zeros, with this bias; None: no bias at all."""
    weight = linear.weight.reshape(len(linear.weight), heads, -1)
    wider = np.pad(weight, ((0, 0), (0, 0), (0, 1))).reshape(len(weight), -1)
    if bias is None or linear.bias is None:
        return Linear(linear.name, wider, None)
    biases = np.pad(linear.bias.reshape(heads, -1), ((0, 0), (0, 1)), constant_values=bias)
    return Linear(linear.name, wider, biases.reshape(-1))


def _columns(linear: Linear, which: Bools, name: str) -> Linear:
    """Return the part of a product that gives these columns."""
    bias = None if linear.bias is None else linear.bias[which]
    return Linear(name, linear.weight[:, which], bias)


def _rows(linear: Linear, which: Bools, name: str) -> Linear:
    """Return the part of a product that reads these columns."""
    return Linear(name, linear.weight[which], linear.bias)
