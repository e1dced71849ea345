"""The ONNX graph of a BERT question-answering model, written node by node from its weights.

No tracing and no pattern matching: each node is the fastest form measured on the CPU provider
(docs/log.md), in operators that ONNX Runtime 1.19 knows. It reads no file and knows no PyTorch.

Legend: B batch, S tokens, H hidden width, N heads, D head size, F feed-forward width, V vocabulary.
Activations are (S, B, ...): then both attention products read their heads in place, by strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.embedded import INPUTS, OUTPUTS
from optimizer.weights import TABLE, Array, GraphShape, Weights, check, layer_name

OPSET = 17
IR_VERSION = 8
MICROSOFT = "com.microsoft"
CONTRIB = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "FusedMatMul", "Gelu", "FastGelu"}
MASKED = -1e4  # score of a padded token

Floats = npt.NDArray[np.float32]


def build(weights: Weights, shape: GraphShape, *, int8: bool) -> onnx.ModelProto:
    """Return the model: fp32, or dynamic INT8 with the span head and attention scores in fp32.

    The same weights give the same bytes. Raises: ValueError for weights that are not of this shape.
    """
    check(weights, shape)
    return _Writer(weights, shape, int8).model()


def quantize(weight: Floats) -> tuple[npt.NDArray[np.int8], Floats]:  # (in, out)
    """Return symmetric 8-bit codes (in, out) and the scale of each column (out,)."""
    largest = np.abs(weight).max(axis=0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


@dataclass(frozen=True, slots=True)
class _Linear:
    name: str
    weight: Floats  # (in, out)
    bias: Floats | None  # (out,)


class _Writer:
    """Collects the nodes and constants of one graph; a value is known by its name."""

    def __init__(self, weights: Weights, shape: GraphShape, int8: bool) -> None:
        self._weights, self._shape, self._int8 = weights, shape, int8
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        x, padding = self._embeddings(), self._padding()
        masks = {heads: self._mask(padding, heads) for heads in sorted(set(self._shape.heads))}
        for i, heads in enumerate(self._shape.heads):
            x = self._feed_forward(i, self._attention(i, x, masks[heads]))
        self._span_head(x)
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [_value(name, TensorProto.INT64) for name in INPUTS],
            [_value(name, TensorProto.FLOAT) for name in OUTPUTS],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="bertier"
        )

    # Parts of BERT

    def _embeddings(self) -> str:  # -> (S, B, H)
        ids = self._node("Transpose", ["input_ids"], "ids", perm=[1, 0])
        types = self._node("Transpose", ["token_type_ids"], "types", perm=[1, 0])
        embeddings = "bert.embeddings"
        by_type = self._weight(f"{embeddings}.token_type_embeddings.weight")
        total = self._node(
            "Add", [self._words(ids), self._node("Gather", [by_type, types], "types/rows")], "words"
        )
        n_tokens = self._node("Shape", [ids], "n_tokens", start=0, end=1)
        by_position = self._weight(f"{embeddings}.position_embeddings.weight")
        first, axis = self._ints("zero", 0), self._ints("one", 1)
        rows = self._node("Slice", [by_position, first, n_tokens, first], "positions/rows")
        rows = self._node("Unsqueeze", [rows, axis], "positions")
        total = self._node("Add", [total, rows], "embeddings/sum")
        return self._norm(total, f"{embeddings}.LayerNorm")

    def _words(self, ids: str) -> str:  # (S, B) -> (S, B, H)
        if self._shape.embedding_bits == 32:
            return self._node("Gather", [self._weight(f"{TABLE}.weight"), ids], "words/rows")
        codes = self._gather_floats("codes", ids)
        if self._shape.embedding_bits == 4:
            codes = self._unpack(codes)
        grouped = self._ints("words/groups", 0, 0, -1, self._shape.group)
        last = self._ints("minus_one", -1)
        codes = self._node("Reshape", [codes, grouped], "words/codes")
        scale = self._node("Unsqueeze", [self._gather_floats("scale", ids), last], "words/scale")
        low = self._node("Unsqueeze", [self._gather_floats("low", ids), last], "words/low")
        scaled = self._node("Mul", [codes, scale], "words/scaled")
        rows = self._node("Add", [scaled, low], "words/grouped")
        joined = self._ints("words/joined", 0, 0, self._shape.hidden)
        return self._node("Reshape", [rows, joined], "words/rows")

    def _gather_floats(self, part: str, ids: str) -> str:
        found = self._node("Gather", [self._weight(f"{TABLE}.{part}"), ids], f"words/{part}/raw")
        return self._node("Cast", [found], f"words/{part}/float", to=TensorProto.FLOAT)

    def _unpack(self, codes: str) -> str:
        """Return the high halves of all bytes of a row, then the low halves."""
        sixteen = self._floats("sixteen", 16)
        high = self._node("Div", [codes, sixteen], "words/sixteenths")
        high = self._node("Floor", [high], "words/high")
        rest = self._node("Mul", [high, sixteen], "words/high/shifted")
        rest = self._node("Sub", [codes, rest], "words/rest")
        return self._node("Concat", [high, rest], "words/unpacked", axis=-1)

    def _attention(self, i: int, x: str, mask: str) -> str:
        """Return the block's output (S, B, H).

        The mask costs no pass over the (S x S) scores: every head has one more column, in which a
        query is 1 and a padded key the score it gets. A key's bias adds the same to all scores of
        a query, which softmax does not see, so the mask is added in its place.
        """
        name, heads, size = layer_name(i), self._shape.heads[i], self._shape.head_size
        out = f"{name}.attention"
        query = _with_column(self._linear(f"{out}.self.query"), heads, bias=1.0)
        key = _with_column(self._linear(f"{out}.self.key"), heads, bias=None)
        parts = self._products(x, [query, key, self._linear(f"{out}.self.value")])
        parts[1] = self._node("Add", [parts[1], mask], f"{out}/masked_key")
        q, k, v = (self._split_heads(part, heads) for part in parts)
        strides = {"transBatchA": 1, "transBatchB": 1, "transB": 1}
        scores = self._node("FusedMatMul", [q, k], f"{out}/scores", alpha=size**-0.5, **strides)
        shares = self._node("Softmax", [scores], f"{out}/shares", axis=-1)  # (B, N, S, S)
        mixed = self._node("FusedMatMul", [shares, v], f"{out}/mixed", transBatchB=1)
        mixed = self._node("Transpose", [mixed], f"{out}/by_token", perm=[2, 0, 1, 3])
        joined = self._ints(f"join/{heads}", 0, 0, heads * size)
        mixed = self._node("Reshape", [mixed, joined], f"{out}/joined")
        return self._add_and_norm(mixed, x, f"{out}.output")

    def _split_heads(self, x: str, heads: int) -> str:  # (S, B, ...) -> (S, B, N, ...)
        return self._node(
            "Reshape", [x, self._ints(f"split/{heads}", 0, 0, heads, -1)], f"{x}/heads"
        )

    def _mask(self, padding: str, heads: int) -> str:  # (S, B, 1) -> (S, B, N * (D + 1))
        """Return what is added to a key: nothing, and for a padded token MASKED per head."""
        size = self._shape.head_size
        column = np.zeros((heads, size + 1), np.float32)
        column[:, -1] = MASKED * size**0.5
        row = self._constant(f"mask/{heads}/row", column.reshape(-1))
        return self._node("Mul", [padding, row], f"mask/{heads}")

    def _padding(self) -> str:  # -> (S, B, 1), 1 where there is padding
        kept = self._node("Transpose", ["attention_mask"], "mask/kept", perm=[1, 0])
        kept = self._node("Cast", [kept], "mask/float", to=TensorProto.FLOAT)
        padding = self._node("Sub", [self._floats("one/float", 1), kept], "mask/padding")
        return self._node("Unsqueeze", [padding, self._ints("minus_one", -1)], "padding")

    def _feed_forward(self, i: int, x: str) -> str:
        name = layer_name(i)
        (wide,) = self._products(x, [self._linear(f"{name}.intermediate.dense")])
        active = self._node(self._shape.activation, [wide], f"{name}.intermediate/gelu")
        return self._add_and_norm(active, x, f"{name}.output")

    def _add_and_norm(self, x: str, residual: str, name: str) -> str:
        """Return LayerNorm(dense(x) + residual).

        Sum, not Add: ONNX Runtime fuses Add with LayerNormalization into SkipLayerNormalization,
        which takes five times as long as the two.
        """
        (dense,) = self._products(x, [self._linear(f"{name}.dense")])
        total = self._node("Sum", [dense, residual], f"{name}/residual")
        return self._norm(total, f"{name}.LayerNorm")

    def _norm(self, x: str, name: str) -> str:
        inputs = [x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        epsilon = self._shape.epsilon
        return self._node("LayerNormalization", inputs, name, axis=-1, epsilon=epsilon)

    def _span_head(self, x: str) -> None:
        logits = self._float_product(x, self._linear("qa_outputs"))  # (S, B, 2)
        logits = self._node("Transpose", [logits], "logits", perm=[2, 1, 0])
        names = [f"{name}/row" for name in OUTPUTS]
        halves = self._ints("halves", 1, 1)
        self._nodes.append(helper.make_node("Split", [logits, halves], names, "split", axis=0))
        for row, output in zip(names, OUTPUTS, strict=True):
            self._node("Squeeze", [row, self._ints("zero", 0)], output)

    # Matrix products

    def _products(self, x: str, linears: Sequence[_Linear]) -> list[str]:
        """Return x times each weight; x is quantized once for all of them."""
        if not self._int8:
            return [self._float_product(x, linear) for linear in linears]
        if len(linears) == 1:
            return [self._int8_product(x, linears[0])]
        parts = codes, scale, zero_point = f"{x}/codes", f"{x}/scale", f"{x}/zero_point"
        self._nodes.append(helper.make_node("DynamicQuantizeLinear", [x], parts, f"{x}/quantize"))
        return [self._shared_product(codes, scale, zero_point, linear) for linear in linears]

    def _int8_product(self, x: str, linear: _Linear) -> str:
        weight, scale = self._codes(linear)
        inputs = [x, weight, scale, "", self._bias(linear)]
        return self._node("DynamicQuantizeMatMul", inputs, f"{linear.name}/product")

    def _shared_product(self, codes: str, scale: str, zero_point: str, linear: _Linear) -> str:
        weight, weight_scale = self._codes(linear)
        inputs = [codes, weight, scale, weight_scale, zero_point, "", self._bias(linear)]
        return self._node("MatMulIntegerToFloat", inputs, f"{linear.name}/product")

    def _codes(self, linear: _Linear) -> tuple[str, str]:
        codes, scale = quantize(linear.weight)
        name = linear.name
        return self._constant(f"{name}.codes", codes), self._constant(f"{name}.scale", scale)

    def _float_product(self, x: str, linear: _Linear) -> str:
        weight = self._constant(f"{linear.name}.weight", linear.weight)
        product = self._node("MatMul", [x, weight], f"{linear.name}/product")
        bias = self._bias(linear)
        return self._node("Add", [product, bias], f"{linear.name}/biased") if bias else product

    def _bias(self, linear: _Linear) -> str:
        return "" if linear.bias is None else self._constant(f"{linear.name}.bias", linear.bias)

    def _linear(self, name: str) -> _Linear:
        weight = self._weights[f"{name}.weight"].astype(np.float32)
        return _Linear(name, weight.T, self._weights[f"{name}.bias"].astype(np.float32))

    # Nodes and constants

    def _node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        domain = MICROSOFT if op in CONTRIB else ""
        node = helper.make_node(op, inputs, [output], output, domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _ints(self, name: str, *values: int) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _floats(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _constant(self, name: str, values: Array) -> str:
        if name not in self._constants:
            array = np.ascontiguousarray(values).reshape(values.shape)
            self._constants[name] = numpy_helper.from_array(array, name)
        return name


def _with_column(linear: _Linear, heads: int, *, bias: float | None) -> _Linear:
    """Give each head one more column of zeros, with this bias; None: no bias at all."""
    weight = linear.weight.reshape(len(linear.weight), heads, -1)
    wider = np.pad(weight, ((0, 0), (0, 0), (0, 1))).reshape(len(weight), -1)
    if bias is None or linear.bias is None:
        return _Linear(linear.name, wider, None)
    biases = np.pad(linear.bias.reshape(heads, -1), ((0, 0), (0, 1)), constant_values=bias)
    return _Linear(linear.name, wider, biases.reshape(-1))


def _value(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", "tokens"])
