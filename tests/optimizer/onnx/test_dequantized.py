"""Products of a published graph in float32: what is served but for the rounding of activations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gateway.backends import embedded
from gateway.catalog.schema import Precision
from optimizer.models import outliers, readback, student
from optimizer.onnx import dequantized, export, graph
from tests.end_to_end.conftest import REPOSITORY

INT8 = {dequantized.ALONE, dequantized.SHARED, dequantized.QUANTIZE}


@pytest.fixture(params=["plain", "outliers handled"])
def served(request: pytest.FixtureRequest, tiny_backbone: Path) -> onnx.ModelProto:
    model = student.with_low_bit_embeddings(student.load(str(tiny_backbone)), 4)
    shape = export.graph_shape_of(model)
    ranges = outliers.level(shape) if request.param == "outliers handled" else None
    return graph.build(export.weights_of(model), shape, Precision.INT8_DYNAMIC, ranges)


def test_it_is_the_model_that_is_read_back(served: onnx.ModelProto, tmp_path: Path) -> None:
    """Two ways to the same weights in float32, neither with INT8; outliers are handled or not."""
    file, whole = tmp_path / "served.onnx", tmp_path / "float.onnx"
    onnx.save(served, file)
    found = dequantized.in_float(served, range(2))
    onnx.save(found, whole)
    assert INT8.isdisjoint(node.op_type for node in found.graph.node)
    kept = [i.name for i in found.graph.initializer]
    assert not any(".layer." in name and name.endswith(".codes") for name in kept)
    model = readback.load(file)
    plain, rounded = (export.rounding(model, p, Precision.INT8_DYNAMIC) for p in (whole, file))
    assert plain < 1e-5 < 1e-4 < rounded


def test_only_the_named_layers_are_in_float(served: onnx.ModelProto) -> None:
    """A layer has three products that share what they read, and three alone; without any nothing changes."""
    ops = Counter(node.op_type for node in dequantized.in_float(served, {1}).graph.node)
    assert [ops[op] for op in (dequantized.QUANTIZE, dequantized.SHARED, dequantized.ALONE)] == [
        1,
        3,
        3,
    ]
    found = dequantized.in_float(served, {1})
    kept = {i.name for i in found.graph.initializer}
    assert "bert.encoder.layer.0.output.dense.codes" in kept
    assert "bert.encoder.layer.1.output.dense.codes/float" in kept
    assert dequantized.in_float(served, ()).SerializeToString() == served.SerializeToString()


def test_a_layer_without_integer_products_is_refused(served: onnx.ModelProto) -> None:
    with pytest.raises(ValueError, match="layer 1 has no product in INT8"):
        dequantized.in_float(dequantized.in_float(served, {1}), {0, 1})


def test_a_shipped_model_of_low_rank_can_be_in_float(tmp_path: Path) -> None:
    """What cannot be read back as a BERT is no obstacle here; its logits stay near."""
    file, whole = REPOSITORY / "minilm-2" / "1" / "model.onnx", tmp_path / "float.onnx"
    onnx.save(dequantized.in_float(onnx.load(file), range(2)), whole)
    windows = export.random_windows(1, 64, 1000)
    near, far = (embedded.run(embedded.open_session(path), windows) for path in (file, whole))
    gap = np.abs(near.start - far.start).max()
    assert 0 < gap < 0.5 * np.std(far.start)


def test_weights_drawn_anew_round_to_the_same_codes() -> None:
    """They may be what was rounded; the mask's columns of zeros were no weights."""
    model = onnx.load(REPOSITORY / "minilm-2" / "1" / "model.onnx")
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    query = "bert.encoder.layer.0.attention.self.query"
    codes, scale = constants[f"{query}.codes"], constants[f"{query}.scale"]
    drawn = dequantized.weights(codes, scale, np.random.default_rng(1))
    off = drawn / scale - codes
    assert np.abs(off).max() <= 0.501
    assert np.std(off[:, codes.any(axis=0)]) == pytest.approx(12**-0.5, rel=0.02)
    assert not drawn[:, ~codes.any(axis=0)].any()
    found = dequantized.in_float(model, range(2), np.random.default_rng(1)).graph.initializer
    written = {i.name: numpy_helper.to_array(i) for i in found}
    np.testing.assert_array_equal(written[f"{query}.codes/float"], drawn)
