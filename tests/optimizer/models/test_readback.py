"""A published INT8 variant can be a teacher: it is read back as what is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from gateway.qa.codec import SpanEncoder
from optimizer.models import bert, lowrank, neurons, readback, student, tokenizer
from optimizer.models.allocation import Widths
from optimizer.models.student import ModelError
from optimizer.models.weights import BIAS, TABLE, Array
from optimizer.onnx import export
from tests.fakes import TOKENIZER
from tests.optimizer import checkpoints


@pytest.fixture
def tiny(tiny_backbone: Path) -> PreTrainedModel:
    return student.load(str(tiny_backbone))


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    """Return the folder of a variant in a model repository that has no other files yet."""
    folder = tmp_path / "repository" / "bert-tiny-int8"
    (folder / "1").mkdir(parents=True)
    (folder.parent / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    return folder


def publish(model: PreTrainedModel, variant: Path, bits: int) -> Path:
    path = variant / "1" / "model.onnx"
    export.to_int8(student.with_low_bit_embeddings(model, bits), path)
    return path


def constants(path: Path) -> dict[str, Array]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def rewrite(path: Path, change: Callable[[dict[str, Array]], Mapping[str, Array]]) -> None:
    file = onnx.load(path)
    found = change(constants(path))
    del file.graph.initializer[:]
    file.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in found.items())
    onnx.save(file, path)


def test_students_can_be_cut_from_it(tiny: PreTrainedModel, variant: Path) -> None:
    """As `base` or `weights` its vocabulary is compared: its tokenizer lies in the repository."""
    publish(tiny, variant, bits=8)
    known = Tokenizer.from_file(str(TOKENIZER)).get_vocab()
    assert tokenizer.fast(str(variant)).get_vocab() == known


@pytest.mark.parametrize("bits", [4, 8])
def test_exported_again_it_is_the_same_model(
    tiny: PreTrainedModel, variant: Path, tmp_path: Path, bits: int
) -> None:
    """Codes times scales, rounded again, are the codes: nothing is lost on the way."""
    published = publish(tiny, variant, bits)
    again = tmp_path / "again.onnx"
    export.to_int8(student.with_low_bit_embeddings(student.load(str(variant)), bits), again)
    first, second = constants(published), constants(again)
    assert first.keys() == second.keys()
    for name, values in first.items():
        if name.endswith(".codes"):
            np.testing.assert_array_equal(values, second[name], err_msg=name)
        else:
            np.testing.assert_allclose(values, second[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_relative_positions_and_outliers_come_back(variant: Path, tmp_path: Path) -> None:
    """A whole MPNet, whose largest neurons lie beside the others and whose columns were smoothed."""
    model = student.with_low_bit_embeddings(checkpoints.loud_mpnet(tmp_path / "mpnet"), 8)
    export.to_int8(model, variant / "1" / "model.onnx", neurons.random_probe(model))
    found = student.load(str(variant), answers=True)
    table = found.state_dict()[BIAS]
    assert torch.equal(table, model.state_dict()[BIAS])
    windows = export.random_windows(3, 64, 900)
    names = ("input_ids", "attention_mask", "token_type_ids")
    batched = {name: torch.from_numpy(getattr(windows, name)) for name in names}
    with torch.no_grad():
        gap = (found(**batched).start_logits - model(**batched).start_logits)[
            batched["attention_mask"] == 1
        ]
    assert gap.square().mean().sqrt() < 0.1 * model(**batched).start_logits.std()


def test_scales_and_offsets_may_lie_apart(tiny: PreTrainedModel, variant: Path) -> None:
    """As in repositories that were published before they lay beside each other."""
    path = publish(tiny, variant, 4)
    wanted = student.bert_of(student.load(str(variant))).embeddings.word_embeddings.weight

    def apart(found: dict[str, Array]) -> dict[str, Array]:
        scale, low = np.moveaxis(found.pop(f"{TABLE}.scales"), -1, 0)
        return found | {f"{TABLE}.scale": scale, f"{TABLE}.low": low}

    rewrite(path, apart)
    found = student.bert_of(student.load(str(variant))).embeddings.word_embeddings.weight
    np.testing.assert_array_equal(wanted.detach().numpy(), found.detach().numpy())


def test_what_ships_can_be_read_back() -> None:
    """A study may start from it."""
    found = student.load(str(TOKENIZER.parent / "minilm-6"), answers=True)
    assert student.heads_of(found) == (12,) * 6
    assert (found.config.hidden_size, found.config.intermediate_size) == (384, 1536)


def test_the_newest_version_counts(tiny: PreTrainedModel, variant: Path) -> None:
    """As for a server; 10 is newer than 9."""
    path = publish(tiny, variant, 4)
    for version in ("9", "10"):
        (variant / version).mkdir()
        (variant / version / "model.onnx").write_bytes(path.read_bytes())
    assert readback.model_of(str(variant)) == variant / "10" / "model.onnx"


def test_shared_layers_are_not_read_back(tiny: PreTrainedModel, variant: Path) -> None:
    """As a model of fewer layers it would be another one, silently."""
    publish(student.cut(tiny, (0, 1, 1), 96, 2), variant, 8)
    with pytest.raises(student.ModelError, match="its layers share weights"):
        student.load(str(variant))


@pytest.mark.parametrize("name", ["no-such-folder", "."])
def test_other_folders_are_no_variants(tmp_path: Path, name: str) -> None:
    assert readback.model_of(str(tmp_path / name)) is None


def test_it_brings_the_repositorys_tokenizer(
    tiny: PreTrainedModel, variant: Path, tmp_path: Path
) -> None:
    publish(tiny, variant, 4)
    tokenizer.save(str(variant), tmp_path)
    found, wanted = (
        SpanEncoder.from_file(f / "tokenizer.json") for f in (tmp_path, TOKENIZER.parent)
    )
    batched = "Which colour has the cat?"
    assert found.tokenizer.encode(batched).ids == wanted.tokenizer.encode(batched).ids


def low_rank(model: PreTrainedModel) -> PreTrainedModel:
    return lowrank.with_rank(model, 64, 4)


def dropping(model: PreTrainedModel) -> PreTrainedModel:
    student.with_low_bit_embeddings(model, 4)
    return bert.with_dropping(model, bert.dropping_of(model, ((1, 0.5),)))


def dropping_twice(model: PreTrainedModel) -> PreTrainedModel:
    deep = student.with_low_bit_embeddings(student.cut(model, (0, 1, 1), None), 4)
    return bert.with_dropping(deep, bert.dropping_of(deep, ((1, 0.8), (2, 0.5))))


@pytest.mark.parametrize(
    ("ffn", "heads"), [((96, 40), (1, 2)), ((96, 40), 2), (96, (2, 1)), (40, 1)]
)
def test_layers_that_differ_come_back(
    tiny: PreTrainedModel,
    variant: Path,
    tmp_path: Path,
    ffn: int | tuple[int, ...],
    heads: int | tuple[int, ...],
) -> None:
    """A student may start from them, with the widths and heads that they have."""
    published = publish(student.cut(tiny, (0, 1), ffn, heads), variant, 4)
    found, again = student.load(str(variant)), tmp_path / "again.onnx"
    even = isinstance(heads, int)
    assert student.heads_of(found) == ((heads,) * 2 if even else heads)
    assert found.config.intermediate_size == (ffn if isinstance(ffn, int) else max(ffn))
    export.to_int8(student.with_low_bit_embeddings(found, 4), again)
    first, second = constants(published), constants(again)
    assert {n: v.shape for n, v in first.items()} == {n: v.shape for n, v in second.items()}
    name = "bert.encoder.layer.1.attention.self.value.codes"
    np.testing.assert_array_equal(first[name], second[name])


def test_heads_of_relative_positions_come_back(variant: Path, tmp_path: Path) -> None:
    """With the columns of the table that are theirs."""
    loud = checkpoints.loud_mpnet(tmp_path / "mpnet")
    model = student.with_low_bit_embeddings(student.cut(loud, (0, 1), 96, (1, 2)), 8)
    export.to_int8(model, variant / "1" / "model.onnx")
    found = student.load(str(variant)).state_dict()
    name = "bert.encoder.layer.0.attention.self.bias_heads"
    assert torch.equal(found[name], model.state_dict()[name])
    assert "bert.encoder.layer.1.attention.self.bias_heads" not in found


@pytest.mark.parametrize(("ffn", "heads"), [((96, 40), 2), (96, (2, 1)), (96, 1)])
def test_a_largest_model_is_whole(
    tiny: PreTrainedModel, variant: Path, ffn: Widths, heads: Widths
) -> None:
    """It is kept as a checkpoint that any program loads, and elastic students are cut from it."""
    publish(student.cut(tiny, (0, 1), ffn, heads), variant, 4)
    with pytest.raises(ModelError, match="small: heads are missing, or its layers differ in width"):
        student.check_whole("small", student.load(str(variant)))
    student.check_whole("whole", tiny)


@pytest.mark.parametrize(
    ("smaller", "why"),
    [(low_rank, "low rank"), (dropping, "drops tokens"), (dropping_twice, "drops tokens")],
)
def test_what_is_no_plain_bert_is_refused(
    tiny: PreTrainedModel,
    variant: Path,
    smaller: Callable[[PreTrainedModel], PreTrainedModel],
    why: str,
) -> None:
    """A teacher is a whole BERT; the message says what to give."""
    export.to_int8(smaller(tiny), variant / "1" / "model.onnx")
    with pytest.raises(ModelError, match=f"{why}.*give a"):
        student.load(str(variant))


def test_other_models_are_refused(tiny: PreTrainedModel, variant: Path) -> None:
    """Such as a plain FP32 export."""
    export.to_onnx(tiny, variant / "1" / "model.onnx")
    with pytest.raises(ModelError, match="not one of this project's INT8 models"):
        student.load(str(variant))
