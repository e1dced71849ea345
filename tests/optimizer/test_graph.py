"""The graph is written by hand, so it is held against what it replaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from optimizer import graph
from optimizer.weights import GraphShape, random_weights, weight_shapes

SHAPE = GraphShape(
    hidden=64, heads=(2, 1), head_size=16, ffn=(48, 96), vocabulary=50, embedding_bits=4
)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_a_graph_is_valid_onnx(bits: int, int8: bool) -> None:
    """The checker knows the standard operators; a session would load more than is allowed."""
    shape = GraphShape(64, (2, 1), 16, (48, 96), 50, bits)
    onnx.checker.check_model(graph.build(random_weights(shape), shape, int8=int8))


def test_the_same_weights_give_the_same_bytes() -> None:
    """A model is known by its hash: exporting it again must not change it."""
    first, again = (
        graph.build(random_weights(SHAPE), SHAPE, int8=True).SerializeToString() for _ in range(2)
    )
    assert first == again


def test_weights_of_another_shape_are_refused() -> None:
    """The message names the weight, not a node of the graph."""
    weights = random_weights(SHAPE) | {"qa_outputs.bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"qa_outputs.bias: is \(3,\), the shape asks for \(2,\)"):
        graph.build(weights, SHAPE, int8=True)


def test_every_weight_is_used() -> None:
    """A weight that the graph forgets is a bug that parity on small logits may not see."""
    weights = random_weights(SHAPE)
    before = graph.build(weights, SHAPE, int8=False).SerializeToString()
    ignored = {
        name
        for name in weight_shapes(SHAPE)
        if graph.build(weights | {name: weights[name] * 0}, SHAPE, int8=False).SerializeToString()
        == before
    }
    assert {name.split(".", 4)[-1] for name in ignored} == {"attention.self.key.bias"}


def test_int8_weights_are_those_of_onnxruntime(tmp_path: Path) -> None:
    """The quantizer is replaced for its speed and its graph, not for its numbers."""
    weight = np.random.default_rng(0).standard_normal((40, 8), np.float32)
    weight[:, 3] = 0
    codes, scale = graph.quantize(weight)
    wanted = _quantized_by_onnxruntime(weight, tmp_path)
    assert np.array_equal(codes, wanted["w_quantized"])
    assert np.allclose(np.delete(scale, 3), np.delete(wanted["w_scale"], 3), rtol=1e-6)


def _quantized_by_onnxruntime(weight: graph.Floats, folder: Path) -> dict[str, np.ndarray]:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(weight)])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    product = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(product, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "fp32.onnx")
    quantize_dynamic(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    stored = onnx.load(folder / "int8.onnx").graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in stored}
