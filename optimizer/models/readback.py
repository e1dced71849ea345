"""A published INT8 variant read back from its ONNX file, to be distilled or trained on.

The weights are those that are served: codes times scales, rounded once, when they were published.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import BertConfig, BertForQuestionAnswering

from optimizer.models import layer_widths, position_bias
from optimizer.models.bert import as_student
from optimizer.models.weights import (
    ACTIVATIONS,
    BIAS,
    BIAS_HEADS,
    EARLY,
    PROJECTION,
    TABLE,
    Array,
    layer_name,
)

MODEL = "model.onnx"
EMBEDDINGS = "bert.embeddings"
PLACES = (
    f"{EMBEDDINGS}.position_embeddings.weight",
    f"{EMBEDDINGS}.token_type_embeddings.weight",
)
HEAD = "qa_outputs"


class NotReadable(ValueError):
    """A published variant whose weights are not a plain BERT's in INT8; the message says why."""


def model_of(source: str) -> Path | None:
    """Return the newest model of a variant's folder in a model repository; None: it is no such."""
    versions = [p for p in Path(source).glob(f"*/{MODEL}") if p.parent.name.isdecimal()]
    return max(versions, key=lambda path: int(path.parent.name), default=None)


def tokenizer_of(source: str) -> Path:
    """Return the tokenizer that all variants of the repository share."""
    return Path(source).resolve().parent / "tokenizer.json"


def load(path: Path) -> BertForQuestionAnswering:
    """Return the BERT of a variant's INT8 model, in float32. Raises: NotReadable."""
    model = onnx.load(path)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for part, why in (
        (f"{PROJECTION}.weight", "its words have a low rank"),
        (f"{EARLY}.weight", "it drops tokens"),
    ):
        if part in constants:
            raise NotReadable(
                f"{path}: {why}; give a variant whose words have full rank and that drops no tokens, such as the teacher"
            )
    if [output.name for output in model.graph.output] == ["logits"]:
        raise NotReadable(f"{path}: gives labels, not spans; give a variant that answers questions")
    if f"{layer_name(0)}.intermediate.dense.codes" not in constants:
        raise NotReadable(f"{path}: not one of this project's INT8 models")
    stored = sum(name.endswith(".output.LayerNorm.weight") for name in constants)
    if stored < sum(n.op_type == "LayerNormalization" for n in model.graph.node) - 1:
        raise NotReadable(f"{path}: its layers share weights; give a variant whose layers do not")
    bert = BertForQuestionAnswering(_config(path, model, constants))
    bert.set_attn_implementation("eager")
    weights = {name: torch.tensor(values) for name, values in _weights(constants).items()}
    if BIAS in constants:
        bert = as_student(bert)
        position_bias.attach(bert.bert.encoder, weights[BIAS])
        bert.bert.embeddings.token_type_embeddings.weight.requires_grad = False
    layer_widths.fit(bert, weights)
    bert.load_state_dict(weights)
    return bert


def _config(path: Path, model: onnx.ModelProto, constants: Mapping[str, Array]) -> BertConfig:
    layers = sum(name.endswith(".intermediate.dense.codes") for name in constants)
    positions, hidden = constants[f"{EMBEDDINGS}.position_embeddings.weight"].shape
    size = constants[_value(0)].shape[1] // _heads(constants, 0)
    most = max(constants[_value(i)].shape[1] for i in range(layers))
    if hidden % size or most > hidden:
        raise NotReadable(f"{path}: its states are narrower than its heads; give a wider variant")
    activations = {node.op_type for node in model.graph.node} & set(ACTIVATIONS.values())
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
    return BertConfig(
        vocab_size=len(constants[f"{TABLE}.codes"]),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // size,
        intermediate_size=max(_neurons(constants, i) for i in range(layers)),
        hidden_act=next(k for k, v in ACTIVATIONS.items() if v in activations),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=positions,
        type_vocab_size=len(constants[f"{EMBEDDINGS}.token_type_embeddings.weight"]),
        layer_norm_eps=epsilon,
    )


def _neurons(constants: Mapping[str, Array], layer: int) -> int:
    parts = (f"{layer_name(layer)}.intermediate.{part}.bias" for part in ("dense", "exact"))
    return sum(constants[part].size for part in parts if part in constants)


def _value(layer: int) -> str:
    return f"{layer_name(layer)}.attention.self.value.codes"


def _heads(constants: Mapping[str, Array], layer: int) -> int:
    """A query has one column more in every head than a value: the mask's (graph.py)."""
    query = constants[f"{layer_name(layer)}.attention.self.query.codes"]
    return int(query.shape[1] - constants[_value(layer)].shape[1])


def _weights(constants: Mapping[str, Array]) -> dict[str, Array]:  # named as in a state_dict
    found = {f"{TABLE}.weight": _words(constants)}
    for name, values in constants.items():
        if name.endswith(".codes") and name != f"{TABLE}.codes":
            found |= _linear(constants, name.removesuffix(".codes"))
        elif ".LayerNorm." in name or name in PLACES or name == BIAS:
            found[name] = values.astype(np.float32)
        elif name.endswith(BIAS_HEADS):
            found[name] = values
    found[f"{HEAD}.weight"] = constants[f"{HEAD}.weight"].T
    found[f"{HEAD}.bias"] = constants[f"{HEAD}.bias"]
    return found


def _linear(constants: Mapping[str, Array], name: str) -> dict[str, Array]:
    weight = (constants[f"{name}.codes"] * constants[f"{name}.scale"]).T  # (out, in)
    bias = constants.get(f"{name}.bias", np.zeros(len(weight), np.float32))  # a key has none
    block = name.rpartition(".")[0]
    weight = weight * constants.get(f"{block}.smooth", np.float32(1))
    exact = constants.get(f"{block}.exact.weight")  # neurons beside the others: they go last
    if exact is not None and block.endswith(".intermediate"):
        weight = np.concatenate([weight, exact.T])
        bias = np.concatenate([bias, constants[f"{block}.exact.bias"]])
    elif exact is not None:
        weight = np.concatenate([weight, exact.T], axis=1)
    if name.endswith((".query", ".key")):
        value = constants[f"{name.rpartition('.')[0]}.value.codes"]
        heads = len(weight) - value.shape[1]
        weight, bias = _without_column(weight, heads), _without_column(bias, heads)
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _without_column(values: Array, heads: int) -> Array:
    """Drop each head's last row, which is the mask's."""
    rest = values.shape[1:]
    kept: Array = values.reshape(heads, -1, *rest)[:, :-1].reshape(-1, *rest)
    return kept


def _words(constants: Mapping[str, Array]) -> Array:  # (V, H)
    codes = constants[f"{TABLE}.codes"]
    if f"{TABLE}.scales" in constants:
        scale, low = np.moveaxis(constants[f"{TABLE}.scales"].astype(np.float32), -1, 0)
    else:  # as published before scales and offsets lay beside each other
        scale, low = (constants[f"{TABLE}.{p}"].astype(np.float32) for p in ("scale", "low"))
    hidden = constants[f"{EMBEDDINGS}.position_embeddings.weight"].shape[1]
    if codes.shape[1] < hidden:  # two a byte
        codes = np.concatenate([codes // 16, codes % 16], axis=1)
    groups = codes.reshape(len(codes), scale.shape[1], -1)
    words: Array = (groups * scale[..., None] + low[..., None]).reshape(len(codes), -1)
    return words
