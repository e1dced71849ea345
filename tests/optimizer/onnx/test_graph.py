"""The graph is written by hand, so it is held against a BERT that is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.backends.embedded import INPUTS
from gateway.catalog.schema import Precision
from optimizer.models import outliers
from optimizer.models.weights import (
    FORCED,
    MIN_KEPT,
    PROJECTION,
    TABLE,
    GraphShape,
    Weights,
    n_kept,
    random_weights,
    weight_shapes,
)
from optimizer.onnx import graph, nodes, token_dropping
from tests.optimizer import numpy_bert

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8_DYNAMIC
PLAIN = GraphShape(128, (2, 1, 2), 16, (48, 96, 48), 50, embedding_bits=4)
RANKED = replace(PLAIN, rank=64)
DROPPING = replace(PLAIN, drops=((1, 0.5),))
BOTH = replace(PLAIN, rank=64, drops=((2, 0.3),))
OFTEN = replace(PLAIN, drops=((1, 0.7), (2, 0.4)))
BIASED = replace(PLAIN, bias_columns=2)  # a layer of one head has one of the columns
# One layer runs three times, before and after tokens are dropped.
SHARED = replace(
    BIASED, heads=(2, 1, 1, 1), ffn=(48, 96, 96, 96), drops=((2, 0.5),), shared=(0, 1, 1, 1)
)
SHAPES = {
    "plain": PLAIN,
    "rank": RANKED,
    "drop": DROPPING,
    "both": BOTH,
    "bias": BIASED,
    "bias and drop": replace(BIASED, drops=((1, 0.5),)),
    "shared": SHARED,
    "drop often": OFTEN,
    "bias and drop often": replace(SHARED, drops=((1, 0.8), (2, 0.6), (3, 0.3))),
}
# Lengths of the windows of a batch, and what they are padded to.
BATCHES = (((64,), 64), ((192, 40, 100), 192), ((384,), 384), ((20, 9, 33), 40))

Feed = dict[str, np.ndarray[Any, Any]]


def loud(shape: GraphShape, seed: int = 0) -> Weights:
    """Return weights that make logits and importance differ from token to token."""
    found = random_weights(shape, seed)
    return {n: w if w.dtype.kind in "iu" or "Norm" in n else w * 4 for n, w in found.items()}


def feed_of(lengths: tuple[int, ...], padded: int, question: int = 14) -> Feed:
    rng = np.random.default_rng(sum(lengths) + padded)
    places = np.arange(padded)[None, :]
    mask = (places < np.array(lengths)[:, None]).astype(np.int64)
    types = (places >= question).astype(np.int64) * mask
    return {
        "input_ids": rng.integers(0, 50, mask.shape) * mask,
        "attention_mask": mask,
        "token_type_ids": types,
    }


def session_of(weights: Weights, shape: GraphShape, precision: Precision) -> ort.InferenceSession:
    model = graph.build(weights, shape, precision)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def answer(session: ort.InferenceSession, question: Feed) -> np.ndarray[Any, Any]:  # (2, B, S)
    return np.stack(session.run(["start_logits", "end_logits"], question))


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("name", SHAPES)
def test_every_knob_computes_what_bert_computes(name: str, bits: int) -> None:
    """Windows of all lengths, alone and together, with and without padding."""
    shape = replace(SHAPES[name], embedding_bits=bits)
    weights = loud(shape)
    session = session_of(weights, shape, FP32)
    for lengths, padded in BATCHES:
        question = feed_of(lengths, padded)
        wanted, found = numpy_bert.logits_of(weights, shape, question), answer(session, question)
        seen = question["attention_mask"] == 1
        assert found.shape == wanted.shape
        assert np.abs(found - wanted)[:, seen].max() < 1e-4 * wanted[:, seen].std()


@pytest.mark.parametrize("name", SHAPES)
def test_rounded_models_are_near_the_exact_one(name: str) -> None:
    """FP16 within a hundredth of the logits' spread (RMS), INT8 within a fifth.

    With relative positions and dropped tokens both rounded, INT8 within a quarter. Tokens whose being kept hangs on rounding are left out.
    """
    weights, shape = loud(SHAPES[name]), SHAPES[name]
    half, int8 = session_of(weights, shape, FP16), session_of(weights, shape, INT8)
    for lengths, padded in BATCHES:
        question = feed_of(lengths, padded)
        wanted = numpy_bert.logits_of(weights, shape, question)
        sure = question["attention_mask"] == 1
        if shape.drops:
            sure &= from_cut(weights, shape, question) > 0.2 * wanted.std()
        assert sure.sum() > 0.3 * question["attention_mask"].sum()
        for session, tolerance in (
            (half, 0.01),
            (int8, 0.25 if shape.bias_columns and shape.drops else 0.2),
        ):
            gaps = (answer(session, question) - wanted)[:, sure]
            assert np.sqrt((gaps**2).mean()) < tolerance * wanted.std()


def from_cut(weights: Weights, shape: GraphShape, question: Feed) -> np.ndarray[Any, Any]:
    """Return how far each token's importance is from where the cut falls."""
    *early, _ = (x.astype(np.float32) for x in numpy_bert.said_of(weights, shape, question))
    return token_dropping.from_cuts(
        shape.drops, early, question["attention_mask"], question["token_type_ids"]
    )


def test_each_layer_computes_its_share_of_the_tokens() -> None:
    """What a layer costs falls with the tokens that it sees."""
    weights, model = loud(OFTEN), graph.build(loud(OFTEN), OFTEN, FP32)
    states = [f"bert.encoder.layer.{i}.output.LayerNorm" for i in range(3)]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in states)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(states, feed_of((192, 101), 192))
    assert [x.shape for x in found] == [(n, 2, 128) for n in (192, n_kept(0.7, 192), 77)]
    (ids, mask, types) = (feed_of((192, 101), 192)[n][1] for n in INPUTS)
    assert len(numpy_bert.kept_of(weights, OFTEN, ids, mask, types)) == 77


def test_a_token_is_as_sure_as_the_nearest_of_its_cuts() -> None:
    """A cut falls between those that are left; to one that was dropped before, it is nothing."""
    order = np.arange(200, dtype=np.float32)  # of importance, the last token's the largest
    early = np.stack([order, order])[:, None]  # (2, B, S)
    mask = np.ones((1, 200), np.int64)
    (found,) = token_dropping.from_cuts(((1, 0.5), (2, 0.3)), [early, early], mask, mask)
    assert found[[0, 99, 100, 199]].tolist() == [99.5, 0.5, 0.5, 59.5]
    assert found[[139, 140]].tolist() == [0.5, 0.5]
    assert found[98] == 1.5


def test_of_equal_tokens_the_first_are_kept() -> None:
    """An early head that finds all tokens alike keeps the first of them, in each window."""
    weights = dict(loud(DROPPING))
    weights["early_outputs.weight"] = np.zeros((2, 128), np.float32)
    weights["early_outputs.bias"] = np.array([-7, 7], np.float32)
    found = answer(session_of(weights, DROPPING, FP32), feed_of((192, 170), 192))
    dropped = (found[0] == -7) & (found[1] == 7)
    assert dropped[:, 96:].all()
    assert not dropped[:, :96].any()


def test_the_question_is_kept_whatever_it_is_worth() -> None:
    """Tokens of type 0 at the front go on, though all others are worth more; later ones do not."""
    weights = dict(loud(DROPPING))
    question = feed_of((192,), 192, question=FORCED + 20)
    weights["early_outputs.weight"] = np.zeros((2, 128), np.float32)
    # What the first layer says of the kind of a token makes those of the context worth more.
    scores = numpy_bert.logits_of(weights, PLAIN, question)
    assert scores.std() > 0
    kind = weights["bert.embeddings.token_type_embeddings.weight"]
    weights["bert.embeddings.token_type_embeddings.weight"] = kind * 10
    weights["early_outputs.weight"] = _apart(weights, question)
    weights["early_outputs.bias"] = np.array([-50, -50], np.float32)
    (ids, mask, types) = (question[n][0] for n in ("input_ids", "attention_mask", "token_type_ids"))
    kept = numpy_bert.kept_of(weights, DROPPING, ids, mask, types)
    assert set(range(FORCED)) <= set(kept)
    assert not set(range(FORCED, FORCED + 20)) & set(kept)
    wanted = numpy_bert.logits_of(weights, DROPPING, question)
    found = answer(session_of(weights, DROPPING, FP32), question)
    assert np.abs(found - wanted).max() < 1e-4 * wanted.std()


def _apart(weights: Weights, question: Feed) -> np.ndarray[Any, Any]:
    """Return an early head that says more of a context's token than of a question's."""
    bert = numpy_bert._Bert(weights, DROPPING)
    ids, mask, types = (question[n][0] for n in ("input_ids", "attention_mask", "token_type_ids"))
    x = bert.layers(range(1), bert.embeddings(ids, types), mask, np.arange(len(ids)))
    direction = x[types == 1].mean(0) - x[types == 0].mean(0)
    return np.stack([direction, direction]).astype(np.float32)


@pytest.mark.parametrize("name", SHAPES)
def test_batch_mates_change_nothing(name: str) -> None:
    """In fp32 a window says the same alone as with others, in its length bucket: it may be batched."""
    shape = SHAPES[name]
    session, question = session_of(loud(shape), shape, FP32), feed_of((192, 60, 191, 101), 192)
    together = answer(session, question)
    for i in range(4):
        alone = answer(session, {n: values[i : i + 1] for n, values in question.items()})
        seen = question["attention_mask"][i] == 1
        assert np.allclose(together[:, i][:, seen], alone[:, 0][:, seen], atol=1e-5, rtol=0)


def test_what_a_padded_token_says_does_not_matter() -> None:
    """It is dropped first, and where it is kept for want of others nobody attends to it."""
    session, question = session_of(loud(DROPPING), DROPPING, FP32), feed_of((30, 150), 192)
    before = answer(session, question)
    padding = question["attention_mask"] == 0
    question["input_ids"][padding] = 49
    after = answer(session, question)
    assert np.array_equal(before[:, ~padding], after[:, ~padding])


def test_a_window_beyond_the_longest_bucket_is_an_error() -> None:
    """Its positions are not stored; it must not be answered with others."""
    session = session_of(loud(PLAIN), PLAIN, FP32)
    assert answer(session, feed_of((384,), 384)).shape == (2, 1, 384)
    with pytest.raises(Exception, match="Add"):
        answer(session, feed_of((385,), 385))


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("name", SHAPES)
def test_a_graph_is_valid_onnx(name: str, precision: Precision) -> None:
    """The checker knows the standard operators; a session would load more than is allowed."""
    for bits in (4, 8, 32):
        shape = replace(SHAPES[name], embedding_bits=bits)
        onnx.checker.check_model(graph.build(random_weights(shape), shape, precision))


@pytest.mark.parametrize("precision", Precision)
def test_the_same_weights_give_the_same_bytes(precision: Precision) -> None:
    """A model is known by its hash: exporting it again must not change it."""
    first, again = (
        graph.build(random_weights(BOTH), BOTH, precision).SerializeToString() for _ in range(2)
    )
    assert first == again


def test_weights_of_another_shape_are_refused() -> None:
    """The message names the weight, not a node of the graph."""
    weights = random_weights(PLAIN) | {"qa_outputs.bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"qa_outputs.bias: is \(3,\), the shape asks for \(2,\)"):
        graph.build(weights, PLAIN, INT8)


@pytest.mark.parametrize("shape", [BOTH, OFTEN])
def test_every_weight_is_used(shape: GraphShape) -> None:
    """A weight that the graph forgets is a bug that parity on small logits may not see."""
    weights = random_weights(shape)
    before = graph.build(weights, shape, FP32).SerializeToString()
    ignored = {
        name
        for name in weight_shapes(shape)
        if graph.build(weights | {name: weights[name] * 0}, shape, FP32).SerializeToString()
        == before
    }
    assert {name.split(".", 4)[-1] for name in ignored} == {"attention.self.key.bias"}


# What a file weighs


SMALL = GraphShape(384, (6,) * 3, 32, (512,) * 3, 30522, 4, rank=128, drops=((1, 0.5),))


def parts_of(shape: GraphShape) -> dict[str, int]:
    """Return what the weights of an INT8 model take, in bytes."""
    h, words, layer = shape.hidden, shape.vocabulary * shape.word_width, 0
    for heads, ffn in zip(shape.heads, shape.ffn, strict=True):
        narrow, wide = heads * shape.head_size, heads * (shape.head_size + 1)
        codes = h * (2 * wide + 2 * narrow + 2 * ffn)
        floats = 2 * wide + wide + narrow * 2 + 2 * (h + ffn) + 2 * h + 4 * h
        layer += codes + 4 * floats
    return {
        "words": words * shape.embedding_bits // 8 + words // shape.group * 4,
        "projection": 2 * h * shape.rank,
        "positions": 2 * h * 384,
        "layers": layer,
        "heads and types": 4 * (2 * (2 * h + 2) + 2 * h + 2 * h),
    }


@pytest.mark.parametrize("precision", Precision)
def test_shared_layers_are_stored_once(precision: Precision) -> None:
    """Sharing makes the file smaller, and the work not less."""
    both = [
        replace(PLAIN, heads=(2,) * n, ffn=(96,) * n, shared=(0,) * k) for n, k in ((1, 0), (4, 4))
    ]
    one, four = (graph.build(random_weights(shape), shape, precision) for shape in both)
    assert set(initializers(one)) == set(initializers(four))
    products = [sum("MatMul" in n.op_type for n in m.graph.node) for m in (one, four)]
    assert products[1] - 1 == 4 * (
        products[0] - 1
    )  # the span head is the one that is not a layer's


def test_a_file_weighs_what_its_parts_weigh() -> None:
    """Three narrow layers and a vocabulary in 4 bits of rank 128 come out well under 5 MB."""
    model = graph.build(random_weights(SMALL), SMALL, INT8)
    parts = parts_of(SMALL)
    assert sum(parts.values()) < model.ByteSize() < sum(parts.values()) + 40_000
    assert model.ByteSize() < 4_850_000
    plain = replace(SMALL, rank=0)
    larger = graph.build(random_weights(plain), plain, INT8)
    saved = sum(parts_of(plain).values()) - sum(parts.values())
    assert larger.ByteSize() - model.ByteSize() == pytest.approx(saved, abs=1000)


@pytest.mark.parametrize(
    ("precision", "kind"),
    [(FP32, TensorProto.FLOAT), (FP16, TensorProto.FLOAT16), (INT8, TensorProto.FLOAT16)],
)
def test_only_fp32_keeps_its_positions_exact(precision: Precision, kind: int) -> None:
    """fp32 is what others are compared with; no file holds positions that nothing asks for."""
    found = initializers(graph.build(random_weights(RANKED), RANKED, precision))
    for name in ("bert.embeddings.position_embeddings.weight", f"{PROJECTION}.weight"):
        assert found[name].data_type == kind
    assert list(found["bert.embeddings.position_embeddings.weight"].dims) == [384, 128]


def test_fp16_holds_nearly_all_in_16_bits() -> None:
    """Its inputs and outputs are those of the others, so it takes their place in a repository."""
    model = graph.build(random_weights(BOTH), BOTH, FP16)
    inputs = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    outputs = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
    assert set(inputs.values()) == {TensorProto.INT64}
    assert set(outputs.values()) == {TensorProto.FLOAT}
    large = {t.name for t in initializers(model).values() if t.data_type == TensorProto.FLOAT}
    assert not [name for name in large if "layer" in name]


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def test_scales_of_words_stay_in_16_bits() -> None:
    """Held in 32 they were the same values in twice the room: 0.7 MB of a model."""
    found = initializers(graph.build(random_weights(PLAIN), PLAIN, INT8))
    assert found[f"{TABLE}.scales"].data_type == TensorProto.FLOAT16


def test_no_fewer_than_the_least_are_kept() -> None:
    """A short window loses nothing: its logits are those of the model that drops none."""
    dropped = session_of(loud(DROPPING), DROPPING, FP32)
    question = feed_of((MIN_KEPT, 20), MIN_KEPT)
    whole = session_of(loud(DROPPING), PLAIN, FP32)
    seen = question["attention_mask"] == 1
    found, wanted = answer(dropped, question)[:, seen], answer(whole, question)[:, seen]
    assert np.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 7])
def test_int8_products_are_exact_on_every_processor(bits: int) -> None:
    """Without VNNI two neighbouring products are added in 16 bits: plain 8-bit codes overflow."""
    weight = np.random.default_rng(0).standard_normal((41, 8), np.float32)
    weight[:6] = np.abs(weight[:6]) * 4
    weight[:, 3] = 0
    codes, scale = nodes.quantize(weight, bits)
    x = np.where(np.random.default_rng(1).random((9, 41)) < 0.9, 2, -0.01).astype(np.float32)
    exact, step = _codes_of(x)
    wanted = exact @ codes.astype(np.float64) * step * scale
    assert np.abs(_product(x, codes, scale) - wanted).max() < 1e-5 * wanted.std()
    assert np.abs(codes * scale - weight).max() < 1.5 * scale.max()
    assert np.array_equal(nodes.quantize(codes * scale, bits)[0], codes)


def _codes_of(x: nodes.Floats) -> tuple[nodes.Floats, float]:
    """Return what an activation is in whole steps, as the operator's documentation has it."""
    least, greatest = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (greatest - least) / 255
    zero = np.rint(-least / step)
    return np.clip(np.rint(x / np.float32(step)) + zero, 0, 255) - zero, step


def _product(x: nodes.Floats, codes: np.ndarray, scale: nodes.Floats) -> np.ndarray:
    given, made = (helper.make_tensor_value_info(n, 1, [None, None]) for n in ("x", "y"))
    constants = [numpy_helper.from_array(a, n) for n, a in (("w", codes), ("s", scale))]
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain=nodes.MICROSOFT)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(nodes.MICROSOFT, 1)]
    graph_ = helper.make_graph([node], "g", [given], [made], constants)
    model = helper.make_model(graph_, opset_imports=opsets, ir_version=8)
    found = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(found.run(None, {"x": x})[0])


@pytest.mark.parametrize("name", SHAPES)
def test_outliers_cost_the_others_nothing(name: str) -> None:
    """One neuron and one column a hundred times as large leave one code to all others, or none."""
    shape = SHAPES[name]
    weights = dict(loud(shape))
    for i, heads in enumerate(shape.heads):
        layer = f"bert.encoder.layer.{i}"
        assert heads
        for part, by in (("intermediate.dense", 60.0), ("attention.output.LayerNorm", 30.0)):
            for end in ("weight", "bias"):
                full = f"{layer}.{part}.{end}"
                weights[full] = weights[full].copy()
                weights[full][3] *= by
        for part, by in (("output.dense", 60.0), ("intermediate.dense", 30.0)):
            full = f"{layer}.{part}.weight"
            weights[full] = weights[full].copy()
            weights[full][:, 3] /= by
    seen = outliers.level(shape)
    for largest in seen.values():
        largest[3] = 30.0
    question = feed_of((120,), 120)
    wanted = answer(session_of(weights, shape, FP32), question)
    plain, even = (
        ort.InferenceSession(
            graph.build(weights, shape, INT8, ranges).SerializeToString(),
            providers=["CPUExecutionProvider"],
        )
        for ranges in (None, seen)
    )
    gaps = [float(np.median(np.abs(answer(s, question) - wanted))) for s in (plain, even)]
    assert gaps[1] < 0.5 * gaps[0]
