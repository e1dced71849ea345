"""An exported model computes what PyTorch computes, and runs as fast as it was measured to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from transformers import BertConfig, PreTrainedModel

from gateway.embedded import open_session, run
from optimizer import export, student
from optimizer.export import ExportError
from optimizer.weights import ACTIVATIONS, HALVES, TABLE
from tests.optimizer import checkpoints
from tests.optimizer.checkpoints import SIZE


@pytest.fixture
def model(tiny_backbone: Path) -> PreTrainedModel:
    """Return a tiny BERT whose logits differ enough from token to token to be compared."""
    return louder(student.load(str(tiny_backbone)))


def louder(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:
            parameter.data *= 4
    return model


@pytest.mark.parametrize(
    ("layers", "ffn", "heads"), [((0, 1), 96, 2), ((0, 1), 40, 1), ((1,), 96, 2)]
)
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_every_shape_computes_what_pytorch_computes(
    model: PreTrainedModel, tmp_path: Path, layers: tuple[int, ...], ffn: int, heads: int, bits: int
) -> None:
    """The gates compare logits, padding included; they raise when they differ."""
    cut = student.cut(model, layers, ffn, heads)
    if bits < 32:
        student.with_low_bit_embeddings(cut, bits)
    export.to_onnx(cut, tmp_path / "fp32.onnx")
    export.to_int8(cut, tmp_path / "int8.onnx")


def test_scales_of_words_stay_in_16_bits(model: PreTrainedModel, tmp_path: Path) -> None:
    """Cast to 32 for the export they held the same values in twice the room: 0.7 MB of a model."""
    student.with_low_bit_embeddings(model, 4)
    export.write(model, tmp_path / "model.onnx", int8=True)
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    assert {kinds[TABLE + part] for part in HALVES} == {onnx.TensorProto.FLOAT16}


def test_only_int8_depends_on_its_batch_mates(model: PreTrainedModel, tmp_path: Path) -> None:
    """This is how a variant that must run alone is told from one that may be batched."""
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export.to_onnx(model, fp32)
    export.to_int8(model, int8)
    assert export.batch_variance(fp32, 30522) < 1e-5
    assert export.batch_variance(int8, 30522) > 1e-5


def test_what_a_padded_token_says_does_not_matter(model: PreTrainedModel, tmp_path: Path) -> None:
    """The mask is a column of the keys; it must hold as firmly as a mask on the scores."""
    path = tmp_path / "fp32.onnx"
    export.to_onnx(model, path)
    windows = export.random_windows(3, 64, 30522)
    padding = windows.attention_mask == 0
    before = run(open_session(path), windows).start
    windows.input_ids[padding] = 29999
    after = run(open_session(path), windows).start
    assert np.array_equal(before[~padding], after[~padding])


def test_other_logits_than_pytorchs_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """A wrong weight is found before anything is measured on it."""
    path = tmp_path / "fp32.onnx"
    export.to_onnx(model, path)
    change(path, "bert.encoder.layer.1.attention.self.value.bias", 1.0)
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        export.check_parity(model, path)


def test_int8_beyond_rounding_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """Rounding is a fraction of the logits' spread; a wrong weight is more."""
    path = tmp_path / "int8.onnx"
    export.to_int8(model, path)
    change(path, "qa_outputs.weight", 1.0)
    with pytest.raises(ExportError, match="INT8 logits differ"):
        export.check_rounding(model, path)


def change(path: Path, name: str, by: float) -> None:
    """Add a constant to the weights of this name in the file."""
    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(0).standard_normal(values.shape).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values + values.dtype.type(by) * noise, name))
    onnx.save(model, path)


def test_a_product_left_in_fp32_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """It would answer well, and slowly; only the operators that run tell."""
    export.to_onnx(model, tmp_path / "fp32.onnx")
    with pytest.raises(ExportError, match="a session runs"):
        export.check_products(tmp_path / "fp32.onnx", layers=2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_an_operator_of_its_own(activation: str, tmp_path: Path) -> None:
    """GELU by erf and by tanh differ by more than the gates allow."""
    config = BertConfig(vocab_size=300, hidden_act=activation, **SIZE)
    model = student.load(str(checkpoints.save(config, tmp_path)))
    export.to_onnx(model, tmp_path / "fp32.onnx")
    export.to_int8(model, tmp_path / "int8.onnx")


def test_another_activation_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """The message says which there are."""
    model.config.hidden_act = "silu"
    with pytest.raises(ExportError, match="silu: cannot be exported; these can: gelu,"):
        export.to_onnx(model, tmp_path / "fp32.onnx")
