"""A published INT8 graph with the matrix products of some layers in float32, from the weights that it stores.

All else stays: words, smoothed columns, neurons in float. It knows the products that `optimizer.onnx.nodes` writes.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gateway.domain import Floats
from optimizer.models.weights import Array

QUANTIZE = "DynamicQuantizeLinear"
# INT8 products. ALONE quantizes its float input; SHARED reads codes that several products share.
ALONE, SHARED = "DynamicQuantizeMatMul", "MatMulIntegerToFloat"
PRODUCTS = (ALONE, SHARED)
LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.")


class _Product(NamedTuple):
    reads: str  # float activations
    codes: str
    scale: str
    bias: str  # empty: none


def in_float(
    served: onnx.ModelProto, layers: Collection[int], redraw: np.random.Generator | None = None
) -> onnx.ModelProto:
    """Return the graph with these layers' products in float32.

    `redraw`: draws each of their weights anew, uniformly among all values that are rounded to its code.
    """
    constants = {i.name: i for i in served.graph.initializer}
    sources = {n.output[0]: n.input[0] for n in served.graph.node if n.op_type == QUANTIZE}
    nodes: list[onnx.NodeProto] = []
    if missing := set(layers) - {_layer(n) for n in served.graph.node if n.op_type in PRODUCTS}:
        raise ValueError(f"layer {min(missing)} has no product in INT8")
    for node in served.graph.node:
        if node.op_type not in PRODUCTS or _layer(node) not in layers:
            nodes.append(node)
            continue
        product = _product(node, sources)
        codes, scale = (numpy_helper.to_array(constants[n]) for n in product[1:3])
        name = f"{product.codes}/float"
        if name not in constants:  # layers may share weights
            constants[name] = numpy_helper.from_array(weights(codes, scale, redraw), name)
        nodes += _float_nodes(product, name, node.output[0])
    return _with(served, nodes, constants)


def weights(codes: Array, scale: Floats, redraw: np.random.Generator | None = None) -> Floats:
    """Return codes (in, out) times the scale of each column; a column of zeros, such as a mask's, stays so."""
    if redraw is None:
        return np.asarray(codes * scale, np.float32)
    within = redraw.uniform(-0.5, 0.5, codes.shape) * codes.any(axis=0)
    return np.asarray((codes + within) * scale, np.float32)


def _layer(node: onnx.NodeProto) -> int | None:
    found = LAYER.match(node.output[0])
    return int(found[1]) if found else None


def _product(node: onnx.NodeProto, sources: dict[str, str]) -> _Product:
    if node.op_type == ALONE:
        x, codes, scale, _, bias = node.input
        return _Product(x, codes, scale, bias)
    x, codes, _, scale, _, _, bias = node.input
    return _Product(sources[x], codes, scale, bias)


def _float_nodes(product: _Product, weight: str, output: str) -> list[onnx.NodeProto]:
    if not product.bias:
        return [helper.make_node("MatMul", [product.reads, weight], [output], output)]
    plain = f"{output}/plain"
    return [
        helper.make_node("MatMul", [product.reads, weight], [plain], plain),
        helper.make_node("Add", [plain, product.bias], [output], output),
    ]


def _with(
    served: onnx.ModelProto,
    nodes: Collection[onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
) -> onnx.ModelProto:
    """Return the model with these nodes, without quantizing and constants that nothing reads."""
    read = {name for node in nodes for name in node.input}
    found = onnx.ModelProto()
    found.CopyFrom(served)
    del found.graph.node[:], found.graph.initializer[:]
    found.graph.node.extend(
        n for n in nodes if n.op_type != QUANTIZE or not read.isdisjoint(n.output)
    )
    read = {name for node in found.graph.node for name in node.input}
    found.graph.initializer.extend(c for name, c in constants.items() if name in read)
    return found
