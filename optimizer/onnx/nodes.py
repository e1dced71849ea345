"""Nodes and constants of an ONNX graph, and its matrix products in one of three precisions.

A value is known by its name. It knows ONNX Runtime's operators, nothing of BERT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.catalog.schema import Precision
from optimizer.models.weights import Array

OPSET = 17
IR_VERSION = 8
MICROSOFT = "com.microsoft"
CONTRIB = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "FusedMatMul", "Gelu", "FastGelu"}

Floats = npt.NDArray[np.float32]


PAIR = 127  # largest sum of two neighbouring codes: 127 * 255 is less than 2**15


def quantize(
    weight: Floats,  # (in, out)
    bits: int = 8,
) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return symmetric codes (in, out) of at most so many bits and the scale of each column (out,).

    A processor without VNNI multiplies activations 0..255 by codes two rows at a time and adds both
    products in 16 bits, which saturates. So scales are as large as it takes for no two codes of one
    sign in rows 2 i and 2 i + 1 to sum to more than PAIR: then every processor gives the same. With
    plain 8 bits MPNet's states are noise there; 7 bits are as safe and twice as coarse (docs/experiments).
    What was quantized is quantized to the same codes again.
    """
    largest = np.abs(weight).max(axis=0) / (2 ** (bits - 1) - 1)
    step = np.maximum(largest, _like_pairs(weight).max(axis=0) / PAIR)
    scale = np.where(step > 0, step, 1).astype(np.float32)
    codes = np.rint(weight / scale)
    over = _like_pairs(codes) > PAIR  # by rounding
    codes[: 2 * len(over) : 2] -= over * np.sign(codes[: 2 * len(over) : 2])
    return codes.astype(np.int8), scale


def _like_pairs(values: Floats) -> Floats:  # (in, out) -> (in / 2, out)
    """Return |a + b| of rows 2 i and 2 i + 1 where both have the same sign, else 0."""
    even = len(values) // 2 * 2
    a, b = values[0:even:2], values[1:even:2]
    return np.where(a * b > 0, np.abs(a + b), 0)


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix product with constants."""

    name: str
    weight: Floats  # (in, out)
    bias: Floats | None  # (out,)


class Nodes:
    """The nodes and constants of one graph.

    Activations are float16 in FP16, else float32; what is said to be `float` is float32 in all.
    """

    def __init__(self, precision: Precision, owners: Mapping[str, str] | None = None) -> None:
        """`owners`: where parts share constants, the part's name -> the name of the part that has them."""
        self.precision = precision
        self._owners = {f"{part}.": f"{owner}." for part, owner in (owners or {}).items()}
        half = precision == Precision.FP16
        self.floats = TensorProto.FLOAT16 if half else TensorProto.FLOAT  # of activations
        self._dtype = np.float16 if half else np.float32
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(
        self, inputs: Sequence[str], outputs: Sequence[str], columns: str = "tokens"
    ) -> onnx.ModelProto:
        """Return the model; inputs are integers (batch, tokens), outputs float32 (batch, `columns`)."""
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [_value(name, TensorProto.INT64) for name in inputs],
            [_value(name, TensorProto.FLOAT, columns) for name in outputs],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="bertier"
        )

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node of one output; return the output."""
        return self.add_many(op, inputs, [output], **attributes)[0]

    def add_many(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        domain = MICROSOFT if op in CONTRIB else ""
        node = helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attributes)
        self._nodes.append(node)
        return outputs

    def cast(self, x: str, kind: int, name: str) -> str:
        return self.add("Cast", [x], name, to=kind)

    def to_float(self, x: str) -> str:
        """Return activations as float32."""
        half = self.precision == Precision.FP16
        return self.cast(x, TensorProto.FLOAT, f"{x}/float") if half else x

    def from_float(self, x: str) -> str:
        """Return float32 as activations."""
        half = self.precision == Precision.FP16
        return self.cast(x, TensorProto.FLOAT16, f"{x}/half") if half else x

    # Constants

    def constant(self, name: str, values: Array) -> str:
        """Store it once; return its name. Of parts that share constants the first one's is stored."""
        part = next((part for part in self._owners if name.startswith(part)), None)
        if part:
            name = self._owners[part] + name.removeprefix(part)
        if name not in self._constants:
            array = np.ascontiguousarray(values).reshape(values.shape)
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, values: Array) -> str:
        """Return a constant as activations are."""
        return self.constant(name, _rounded(name, values, self._dtype))

    def stored(self, name: str, values: Array) -> str:
        """Return a float32 constant, stored in 16 bits by all precisions but FP32.

        A session widens it once, when it is loaded.
        """
        if self.precision == Precision.FP32:
            return self.constant(name, values.astype(np.float32))
        half = self.constant(name, _rounded(name, values, np.float16))
        return self.cast(half, TensorProto.FLOAT, f"{name}/float")

    def ints(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    # Matrix products

    def products(self, x: str, linears: Sequence[Linear]) -> list[str]:
        """Return x times each weight; x is quantized once for all of them."""
        if self.precision != Precision.INT8_DYNAMIC:
            return [self._plain_product(x, linear, self.weight) for linear in linears]
        if len(linears) == 1:
            return [self._int8_product(x, linears[0])]
        parts = f"{x}/codes", f"{x}/scale", f"{x}/zero_point"
        self.add_many("DynamicQuantizeLinear", [x], parts)
        return [self._shared_product(*parts, linear) for linear in linears]

    def float_product(self, x: str, linear: Linear) -> str:
        """Return x times the weight in float32, whatever the precision."""
        return self._plain_product(x, linear, self.constant)

    def _plain_product(self, x: str, linear: Linear, constant: Callable[[str, Array], str]) -> str:
        weight = constant(f"{linear.name}.weight", linear.weight)
        product = self.add("MatMul", [x, weight], f"{linear.name}/product")
        if linear.bias is None:
            return product
        bias = constant(f"{linear.name}.bias", linear.bias)
        return self.add("Add", [product, bias], f"{linear.name}/biased")

    def _int8_product(self, x: str, linear: Linear) -> str:
        weight, scale = self._codes(linear)
        inputs = [x, weight, scale, "", self._int8_bias(linear)]
        return self.add("DynamicQuantizeMatMul", inputs, f"{linear.name}/product")

    def _shared_product(self, codes: str, scale: str, zero_point: str, linear: Linear) -> str:
        weight, weight_scale = self._codes(linear)
        inputs = [codes, weight, scale, weight_scale, zero_point, "", self._int8_bias(linear)]
        return self.add("MatMulIntegerToFloat", inputs, f"{linear.name}/product")

    def _codes(self, linear: Linear) -> tuple[str, str]:
        codes, scale = quantize(linear.weight)
        name = linear.name
        return self.constant(f"{name}.codes", codes), self.constant(f"{name}.scale", scale)

    def _int8_bias(self, linear: Linear) -> str:
        return "" if linear.bias is None else self.constant(f"{linear.name}.bias", linear.bias)


def _rounded(name: str, values: Array, dtype: type[np.floating[Any]]) -> Array:
    """Raises: ValueError for weights that are too large."""
    largest = float(np.abs(values).max(initial=0))
    if largest > float(np.finfo(dtype).max):
        raise ValueError(f"{name}: {largest:.3g} does not fit in {np.dtype(dtype).name}")
    return values.astype(dtype)


def _value(name: str, kind: int, columns: str = "tokens") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", columns])
