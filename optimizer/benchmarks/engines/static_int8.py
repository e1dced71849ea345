"""Static INT8 of a graph that `optimizer.onnx.graph` wrote in fp32: scales from calibration, not from the call.

Not published (docs/decisions, 0006): here to be measured. Outliers of activations are moved into the
weights. Source: Xiao et al. 2023, "SmoothQuant" (arXiv 2211.10438), equation 4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from optimizer.models.weights import EARLY, Array
from optimizer.onnx.nodes import MICROSOFT, Floats, quantize

ALPHA = 0.8  # the paper's runs from 0.5 to 0.8; docs/experiments/engines.md has both
LEAST = 1e-5  # a channel without values has a scale, too
HEADS = ("qa_outputs", EARLY)  # stay in fp32, as in dynamic INT8

Ranges = dict[str, tuple[Floats, Floats]]  # by activation: least and greatest of each channel


def build(
    model: onnx.ModelProto, calibration: Sequence[Mapping[str, Array]], alpha: float | None = ALPHA
) -> onnx.ModelProto:
    """Return the model with its matrix products by constants in INT8: U8S8, weights per column.

    `calibration`: batches of one window, as they are served. `alpha`: share of the outliers that the
    weights take, 0..1; None: nothing is moved.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    writer = _Writer(made, ranges(model, calibration), alpha)
    nodes = [new for node in made.graph.node for new in writer.replaced(node)]
    used = {name for node in nodes for name in node.input}
    kept = [t for t in made.graph.initializer if t.name in used]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend([*kept, *writer.constants])
    return made


def ranges(model: onnx.ModelProto, calibration: Sequence[Mapping[str, Array]]) -> Ranges:
    """Return what each channel of each product's input lies between, padding left out."""
    names = list(dict.fromkeys(node.input[0] for node in _products(model)))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    found: dict[str, list[tuple[Floats, Floats]]] = defaultdict(list)
    for feed in calibration:
        seen = feed["attention_mask"][0] == 1  # (S,)
        for name, x in zip(names, session.run(names, dict(feed)), strict=True):
            rows = x[seen].reshape(-1, x.shape[-1])  # (S, 1, H) -> (tokens, H)
            found[name].append((rows.min(axis=0), rows.max(axis=0)))
    return {
        name: (np.min([low for low, _ in all_of], axis=0), np.max([h for _, h in all_of], axis=0))
        for name, all_of in found.items()
    }


def _products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in constants
        and not node.input[1].startswith(HEADS)
    ]


@dataclass(frozen=True, slots=True)
class _Input:
    """An activation that products share, and how it is quantized."""

    smooth: Floats | np.float32  # (H,) what channels are divided by, and rows of weights multiplied
    scale: np.float32
    zero_point: np.uint8


class _Writer:
    """Replaces products, each with the addition of its bias, by quantized ones."""

    def __init__(self, model: onnx.ModelProto, found: Ranges, alpha: float | None) -> None:
        self._alpha = alpha
        self.constants: list[onnx.TensorProto] = []
        self._weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._products = {node.output[0]: node for node in _products(model)}
        self._biased = {
            node.input[0]: node
            for node in model.graph.node
            if node.op_type == "Add" and node.input[0] in self._products
            if node.input[1] in self._weights
        }
        self._inputs = {name: self._input(name, *found[name]) for name in found}
        self._quantized: set[str] = set()

    def _input(self, name: str, low: Floats, high: Floats) -> _Input:
        smooth = (
            np.float32(1) if self._alpha is None else self._smooth(name, low, high, self._alpha)
        )
        least, greatest = min((low / smooth).min(), 0.0), max((high / smooth).max(), 0.0)
        scale = np.float32((greatest - least) / 255)
        return _Input(smooth, scale, np.uint8(np.rint(-least / scale)))

    def _smooth(self, name: str, low: Floats, high: Floats, alpha: float) -> Floats:  # -> (H,)
        shared = [self._weights[n.input[1]] for n in self._products.values() if n.input[0] == name]
        weights = np.max([np.abs(weight).max(axis=1) for weight in shared], axis=0)
        values = np.maximum(np.abs(low), np.abs(high))
        smooth = np.maximum(values, LEAST) ** alpha / np.maximum(weights, LEAST) ** (1 - alpha)
        return np.asarray(smooth, np.float32)

    def replaced(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return what stands in a node's place: itself, nothing, or its INT8 form."""
        if any(node.output[0] == add.output[0] for add in self._biased.values()):
            return []
        if node.output[0] not in self._products:
            return [node]
        before = [] if node.input[0] in self._quantized else self._quantize(node.input[0])
        return [*before, self._product(node)]

    def _quantize(self, x: str) -> list[onnx.NodeProto]:
        self._quantized.add(x)
        how, even, before = self._inputs[x], x, []
        if self._alpha is not None:
            even = f"{x}/even"
            smooth = self._constant(f"{x}/smooth", 1 / how.smooth)
            before = [helper.make_node("Mul", [x, smooth], [even], even)]
        scale = self._constant(f"{x}/scale", how.scale)
        zero_point = self._constant(f"{x}/zero_point", how.zero_point)
        codes = f"{x}/codes"
        return [
            *before,
            helper.make_node("QuantizeLinear", [even, scale, zero_point], [codes], codes),
        ]

    def _product(self, node: onnx.NodeProto) -> onnx.NodeProto:
        x, name = node.input
        codes, scale = quantize(self._weights[name] * np.reshape(self._inputs[x].smooth, (-1, 1)))
        add = self._biased.get(node.output[0])
        weight = self._constant(f"{name}.codes", codes)
        inputs = [f"{x}/codes", weight, f"{x}/scale", self._constant(f"{name}.scale", scale)]
        inputs += [f"{x}/zero_point", "", add.input[1] if add else ""]
        output = (add or node).output[0]
        return helper.make_node(
            "MatMulIntegerToFloat", inputs, [output], node.name, domain=MICROSOFT
        )

    def _constant(self, name: str, values: Array | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name
