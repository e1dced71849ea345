"""An exported model computes what PyTorch computes, and runs as fast as it was measured to."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import BertConfig, PreTrainedModel

from gateway.backends.embedded import open_session, run
from gateway.backends.protocol import SPAN_OUTPUTS
from gateway.catalog.schema import Precision
from optimizer.models import bert, lowrank, student
from optimizer.models.allocation import Widths
from optimizer.models.weights import ACTIVATIONS, FORCED, TABLE, Drops
from optimizer.onnx import export
from optimizer.onnx.export import ExportError
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
    ("layers", "ffn", "heads"),
    [
        ((0, 1), 96, 2),
        ((0, 1), 40, 1),
        ((1,), 96, 2),
        ((0, 1, 1), 40, 1),
        ((0, 1), (64, 16), (1, 2)),
        ((0, 1, 1), (96, 24, 24), (2, 1, 1)),
    ],
)
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_every_shape_computes_what_pytorch_computes(
    model: PreTrainedModel,
    tmp_path: Path,
    layers: tuple[int, ...],
    ffn: Widths,
    heads: Widths,
    bits: int,
) -> None:
    """The gates compare logits, padding included; they raise when they differ."""
    cut = student.cut(model, layers, ffn, heads)
    if bits < 32:
        student.with_low_bit_embeddings(cut, bits)
    export.to_onnx(cut, tmp_path / "fp32.onnx")
    export.to_int8(cut, tmp_path / "int8.onnx")
    export.to_fp16(cut, tmp_path / "fp16.onnx")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("rank", "drops"),
    [
        (64, ()),
        (0, ((1, 0.5),)),
        (0, ((1, 0.3),)),
        (64, ((1, 0.4),)),
        (0, ((1, 0.8), (2, 0.6), (3, 0.4))),
        (64, ((1, 0.6), (3, 0.3))),
    ],
)
def test_ranks_and_dropped_tokens_are_exported(
    model: PreTrainedModel, tmp_path: Path, rank: int, drops: Drops, bits: int
) -> None:
    """The shape is read off the model, and all three files say what PyTorch says."""
    layers = (0, 1) if len(drops) < 2 else (0, 1, 0, 1)
    small = smaller(student.cut(model, layers, None), rank, bits, drops)
    shape = export.graph_shape_of(small)
    assert (shape.rank, shape.drops) == (rank, drops)
    for name, to in export.TO.items():
        to(small, tmp_path / f"{name}.onnx")


def smaller(
    model: PreTrainedModel, rank: int = 0, bits: int = 4, drops: Drops = ((1, 0.5),)
) -> PreTrainedModel:
    """Return a student with early heads of its own."""
    found = lowrank.with_rank(model, rank, bits)
    torch.manual_seed(3)
    heads = [torch.nn.Linear(found.config.hidden_size, 2) for _ in drops]
    each = zip(drops, heads, strict=True)
    return bert.with_dropping(found, [bert.Dropping(*drop, head) for drop, head in each])


@pytest.mark.parametrize("head", ["early_outputs", "early_outputs_2"])
def test_a_wrong_early_head_is_refused(model: PreTrainedModel, tmp_path: Path, head: str) -> None:
    """It would drop other tokens, and say other things of them."""
    drops = ((1, 0.8), (2, 0.5))
    small, path = smaller(student.cut(model, (0, 1, 0), None), drops=drops), tmp_path / "fp32.onnx"
    export.to_onnx(small, path)
    change(path, f"{head}.weight", 1.0)
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        export.check_parity(small, path)
    export.to_int8(small, path)
    change(path, f"{head}.weight", 1.0)
    with pytest.raises(ExportError, match="int8-dynamic logits differ"):
        export.check_rounding(small, path, Precision.INT8_DYNAMIC)


def test_other_tokens_than_pytorchs_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """All weights are right, only that the least important tokens are kept."""
    small, path = smaller(model), tmp_path / "fp32.onnx"
    export.to_onnx(small, path)
    file = onnx.load(path)
    (chosen,) = (node for node in file.graph.node if node.op_type == "TopK")
    (largest,) = (a for a in chosen.attribute if a.name == "largest")
    largest.i = 0
    onnx.save(file, path)
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        export.check_parity(small, path)


def test_a_model_that_cannot_be_compared_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """To an early head that finds all tokens alike, rounding decides which are kept: no proof."""
    small, path = smaller(model), tmp_path / "model.onnx"
    for values in small.early_outputs.parameters():  # type: ignore[union-attr]
        torch.nn.init.zeros_(values)
    export.write(small, path, Precision.FP32)
    with pytest.raises(ExportError, match="not compared"):
        export.check_parity(small, path, [(1, 96), (2, 128)])
    export.write(small, path, Precision.INT8_DYNAMIC)
    with pytest.raises(ExportError, match="not compared"):
        export.check_rounding(small, path, Precision.INT8_DYNAMIC)


def test_a_file_that_keeps_all_tokens_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """It would answer as well, and take longer than was measured."""
    path = tmp_path / "int8.onnx"
    student.with_low_bit_embeddings(model, 4)
    export.to_int8(model, path)
    with pytest.raises(ExportError, match="'TopK': 1"):
        export.check_products(path, export.graph_shape_of(smaller(model)))


def test_logits_that_are_no_numbers_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """Half precision ends at 65504, for weights and for what is computed with them."""
    for layer in student.bert_of(model).encoder.layer:
        layer.output.dense.weight.data *= 1e5
    with pytest.raises(ExportError, match="fp16 logits are not finite"):
        export.to_fp16(model, tmp_path / "fp16.onnx")
    for layer in student.bert_of(model).encoder.layer:
        layer.output.dense.weight.data *= 1e5
    with pytest.raises(ExportError, match=r"output.dense.weight: .* does not fit in float16"):
        export.to_fp16(model, tmp_path / "fp16.onnx")


def test_random_windows_look_like_questions() -> None:
    """A question at the front, longer and shorter than what is always kept; padding at the end."""
    windows = export.random_windows(4, 96, 100)
    asked = (windows.token_type_ids == 0) & (windows.attention_mask == 1)
    lengths = asked.sum(1)
    assert lengths.min() < FORCED < lengths.max()
    assert all(row[:n].all() for row, n in zip(asked, lengths, strict=True))
    assert (windows.token_type_ids[windows.attention_mask == 0] == 0).all()
    assert windows.is_context.any(1).all()


def test_scales_of_words_stay_in_16_bits(model: PreTrainedModel, tmp_path: Path) -> None:
    """A model cast to 32 for the export has them as they were made."""
    student.with_low_bit_embeddings(model, 4)
    export.write(model, tmp_path / "model.onnx", Precision.INT8_DYNAMIC)
    graph = onnx.load(tmp_path / "model.onnx").graph
    (scales,) = (t for t in graph.initializer if t.name == f"{TABLE}.scales")
    made = student.bert_of(model).embeddings.word_embeddings
    assert np.array_equal(numpy_helper.to_array(scales)[..., 0], made.scale.half().numpy())


def test_only_int8_depends_on_its_batch_mates(model: PreTrainedModel, tmp_path: Path) -> None:
    """This is how a variant that must run alone is distinguished from one that may be batched."""
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export.to_onnx(model, fp32)
    export.to_int8(model, int8)
    fp32_session, int8_session = (
        open_session(path, precision=Precision.INT8_DYNAMIC) for path in (fp32, int8)
    )
    assert export.batch_variance(partial(fp32_session.run, SPAN_OUTPUTS), 30522) < 1e-5
    assert export.batch_variance(partial(int8_session.run, SPAN_OUTPUTS), 30522) > 1e-5


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
    with pytest.raises(ExportError, match="int8-dynamic logits differ"):
        export.check_rounding(model, path, Precision.INT8_DYNAMIC)


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
        export.check_products(tmp_path / "fp32.onnx", export.graph_shape_of(model))


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
