"""BERT models that answer questions or classify: loaded, cut down to a student, with low-bit embeddings.

Legend: V vocabulary, H hidden width, F feed-forward width, G groups of a row.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    PreTrainedModel,
)

from gateway.catalog.schema import Shape
from gateway.errors import BertierError
from optimizer.backbones import names
from optimizer.models import adapt, allocation, neurons, position_bias, readback
from optimizer.models.allocation import Mean, Widths
from optimizer.models.bert import (
    CLASSIFIES,
    as_classifier,
    as_plain,
    rank_of,
    width_of,
    with_dropping,
    words_of,
)
from optimizer.models.heads import behead, measure
from optimizer.models.layer_widths import ffn_of, owners
from optimizer.models.neurons import Inputs
from optimizer.models.weights import shares_of, sharing

GROUP = 64  # values of an embedding row that share one scale
HEAD = "qa_outputs."
log = logging.getLogger(__name__)


class ModelError(BertierError):
    """A checkpoint that cannot be used; the message says what to give instead."""


def resolve(name: str) -> str:
    """Return a folder or hub id; `package:NAME` is the `model` folder of an installed package.

    Raises: ModelError, BackboneError.
    """
    name = names.located(name)
    if not name.startswith("package:"):
        return name
    package = name.removeprefix("package:")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{name}: the package is not installed; 'make test' installs it, or give --backbone"
            " a folder or a Hugging Face id"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def load(
    name: str, *, dropout: float = 0.0, answers: bool = False, labels: int = 0
) -> PreTrainedModel:
    """Return a model from a folder, a hub id or `package:NAME`, as a BERT. Raises: ModelError.

    A folder may also be a variant's in a model repository: its weights as they are served.

    `labels`: of a classifier; 0: it answers questions. `answers`: it must have such a head; else a missing
    one is made, untrained.
    """
    source = resolve(name)
    if published := readback.model_of(source):
        found = _read_back(published)
        return as_classifier(found, labels, None) if labels else found
    try:
        config = AutoConfig.from_pretrained(source)
        adapt.check(config)
        config.hidden_dropout_prob, config.attention_probs_dropout_prob = dropout, 0.0
        own = _labels_of(config)
        if answers and own != labels:
            raise ModelError(f"{name}: not trained here to give one of {labels} labels")
        config.num_labels = own or 2  # start and end, whatever the checkpoint was made for
        model, found = AutoModelForQuestionAnswering.from_pretrained(
            source,
            config=config,
            attn_implementation=adapt.attention(config.model_type),
            dtype=torch.float32,
            output_loading_info=True,
        )
        _check_complete(name, found["missing_keys"], answers)
        head: Any = model.qa_outputs
        if own:
            _without_labels(model)
        bert = _as_bert(name, model)
        bert.config.problem_type = None
        return as_classifier(bert, labels, head if own == labels else None) if labels else bert
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"{name}: not a Hugging Face checkpoint, and not reachable as one: {exc}"
        ) from exc
    except adapt.NotBert as exc:
        raise ModelError(f"{name}: {exc}") from exc


def _read_back(path: Path) -> PreTrainedModel:
    try:
        return readback.load(path)
    except readback.NotReadable as exc:
        raise ModelError(str(exc)) from exc


def _check_complete(name: str, missing: Iterable[str], answers: bool) -> None:
    """Raises: ModelError where transformers only warns that it drew missing weights at random."""
    head = {weight for weight in missing if weight.startswith(HEAD)}
    others = sorted(set(missing) - head)
    if others:
        raise ModelError(f"{name}: {others[0]} is missing, and {len(others) - 1} weights more")
    if head and answers:
        raise ModelError(
            f"{name}: not fine-tuned to answer questions, it has no {min(head)}; as --backbone it"
            " is fine-tuned first"
        )


def _labels_of(config: Any) -> int:
    """Return of how many labels a checkpoint was saved here as a classifier; 0: it was not."""
    saved_as = getattr(config, "architectures", None) or ()
    classifies = getattr(config, "problem_type", None) == CLASSIFIES
    saved_here = any("QuestionAnswering" in name for name in saved_as)
    return int(config.num_labels) if classifies and saved_here else 0


def _without_labels(model: PreTrainedModel) -> None:
    """Give a model a head for spans, in place: other families are rewritten and compared with that."""
    config: Any = model.config
    model.qa_outputs = nn.Linear(config.hidden_size, 2)
    config.num_labels = 2


def _as_bert(name: str, model: PreTrainedModel) -> PreTrainedModel:
    bert = adapt.as_bert(model)
    if bert is not model:
        adapt.check_parity(model, bert)
        log.info("%s: rewritten from %s as the same BERT", name, model.config.model_type)
    if bert.config.hidden_size % GROUP:
        raise ModelError(f"{name}: {bert.config.hidden_size} wide, not a multiple of {GROUP}")
    return bert


def cut(
    teacher: PreTrainedModel,
    layers: Sequence[int],
    ffn: Widths | None,
    heads: Widths | None = None,
    probe: Sequence[Inputs] | None = None,
) -> PreTrainedModel:
    """Return a copy of the teacher with these layers only, each with its best neurons and heads.

    A layer that is named twice is one layer that runs twice.

    `ffn`, `heads`: kept in each layer, or on average; None: all. `config.num_attention_heads` keeps the
    teacher's number, from which transformers takes a head's size. `probe`: what its neurons are watched
    on; None: random tokens. Raises: ModelError for what the teacher has not.
    """
    n_layers = teacher.config.num_hidden_layers
    if max(layers) >= n_layers:
        raise ModelError(f"layers {list(layers)}: the teacher has {n_layers} layers")
    student: PreTrainedModel = copy.deepcopy(teacher)
    keep_layers(student, layers)
    _keep_neurons(student, teacher, layers, ffn, probe)
    _keep_heads(student, teacher, layers, heads)
    student.config.intermediate_size = max(ffn_of(student))
    return student


def _keep_neurons(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: Sequence[int],
    ffn: Widths | None,
    probe: Sequence[Inputs] | None,
) -> None:
    had = ffn_of(student)
    if ffn is None or (widths := _each("ffn", student, ffn, had)) == had:
        return
    seeing_all = with_dropping(copy.deepcopy(teacher), ())
    watched = neurons.measure(seeing_all, probe or neurons.random_probe(teacher))
    if isinstance(ffn, Mean):
        widths = _spread(
            "neurons", [watched[i].importance for i in layers], ffn, allocation.NEURONS
        )
    for k in owners(student):
        layer, found = bert_of(student).encoder.layer[k], watched[layers[k]]
        if widths[k] < had[k]:
            kept = found.order[: widths[k]].sort().values
            neurons.keep(layer.intermediate.dense, layer.output.dense, kept, found.mean)


def _keep_heads(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: Sequence[int],
    heads: Widths | None,
) -> None:
    had = heads_of(student)
    if heads is None or (widths := _each("heads", student, heads, had)) == had:
        return
    whole = [bert_of(teacher).encoder.layer[i].attention for i in layers]
    spreads = isinstance(heads, Mean)
    cut_ones = [k for k in owners(student) if spreads or widths[k] < had[k]]
    found = {k: measure(teacher, whole[k]) for k in cut_ones}
    if isinstance(heads, Mean):
        widths = _spread("heads", [found[k].importance for k in cut_ones], heads, allocation.HEADS)
    for k in cut_ones:
        if widths[k] < had[k]:
            behead(bert_of(student).encoder.layer[k].attention, found[k], widths[k])


def _spread(
    name: str, importance: Sequence[torch.Tensor], mean: Mean, block: int
) -> tuple[int, ...]:
    widths = allocation.spread(importance, mean.width, block)
    log.info("%s of each layer, by importance: %s", name, list(widths))
    report_clamped(name, allocation.clamped(importance, mean.width, block))
    return widths


def report_clamped(name: str, layers: Sequence[int]) -> None:
    """Log the layers that keep some of their units although others matter more."""
    for k in layers:
        log.warning(
            "layer %d of the student (from 0): all of its %s matter less than those kept in other layers; it keeps"
            " the minimum. To drop this layer, remove its entry from `layers`",
            *(k, name),
        )


def _each(
    name: str, student: PreTrainedModel, asked: Widths, had: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the width asked of each layer; of a mean, which is spread later, none. Raises: ModelError."""
    first = sharing(list(bert_of(student).encoder.layer)) or tuple(range(len(had)))
    if isinstance(asked, Mean):
        return _check_mean(name, asked, had, shared=len(set(first)) < len(first))
    widths = (asked,) * len(had) if isinstance(asked, int) else tuple(asked)
    if len(widths) != len(had):
        raise ModelError(f"{name} {list(widths)}: {len(widths)} widths for {len(had)} layers")
    for k, (width, most) in enumerate(zip(widths, had, strict=True)):
        if not 0 < width <= most:
            raise ModelError(
                f"{name} {width}: layer {k} of the student is cut from one with {most} of them, and keeps"
                " at least 1"
            )
        if width != widths[first[k]]:
            raise ModelError(
                f"{name} {list(widths)}: layers {first[k]} and {k} of the student share their weights; give"
                " both one width"
            )
    return widths


def _check_mean(name: str, asked: Mean, had: tuple[int, ...], *, shared: bool) -> tuple[int, ...]:
    if shared:
        raise ModelError(
            f"{name} on average {asked.width:g}: layers that share weights have one width; give a number,"
            " or a list"
        )
    if asked.width > sum(had) / len(had):
        raise ModelError(
            f"{name} on average {asked.width:g}: the layers it is cut from have"
            f" {sum(had) / len(had):g} on average; give at most that"
        )
    return had if asked.width == sum(had) / len(had) else ()


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> dict[int, Any]:
    """Keep these layers, in place; return them by their number. Equal numbers share their weights."""
    encoder = bert_of(model).encoder
    encoder.layer = nn.ModuleList([encoder.layer[i] for i in layers])
    model.config.num_hidden_layers = len(layers)
    first = sharing(list(encoder.layer)) or range(len(layers))
    return {layers[k]: encoder.layer[k] for k in sorted(set(first))}


def bert_of(model: PreTrainedModel) -> Any:
    """Return the encoder inside; its parts are known to transformers, not to a type checker."""
    return model.bert


def heads_of(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the number of attention heads of each layer."""
    return tuple(layer.attention.self.num_attention_heads for layer in bert_of(model).encoder.layer)


class LowBitEmbedding(nn.Module):
    """An embedding table of 8- or 4-bit integers with a scale and an offset per group of a row.

    Buffers: `codes` (V, H) or, packed, (V, H / 2) uint8; `low`, `scale` (V, G) float16.
    Frozen: a student is trained on top of it, so that its rounding is learned around. Only Gather
    and plain arithmetic in the graph: every ONNX Runtime runs it.
    """

    codes: torch.Tensor
    low: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, bits: int) -> None:  # weight: (V, H)
        super().__init__()
        if bits not in (4, 8):
            raise ModelError(f"embedding_bits {bits}: allowed are 4 and 8")
        self.bits = bits
        self.width = weight.shape[1]
        groups = weight.detach().reshape(len(weight), -1, GROUP)  # (V, G, GROUP)
        low = groups.amin(-1)
        scale = ((groups.amax(-1) - low) / (2**bits - 1)).clamp(min=1e-8)
        self.register_buffer("low", low.half())
        self.register_buffer("scale", scale.half())
        exact_scale, exact_low = self.scale.float()[..., None], self.low.float()[..., None]
        codes = ((groups - exact_low) / exact_scale).round().clamp(0, 2**bits - 1)
        codes = codes.reshape(len(weight), self.width).to(torch.uint8)
        self.register_buffer("codes", codes if bits == 8 else _pack(codes))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # (B, S) -> (B, S, H)
        codes = nn.functional.embedding(input_ids, self.codes).float()
        if self.bits == 4:
            high = torch.floor(codes / 16)
            codes = torch.cat([high, codes - 16 * high], dim=-1)
        codes = codes.reshape(*input_ids.shape, -1, GROUP)
        scale = nn.functional.embedding(input_ids, self.scale).float()[..., None]
        low = nn.functional.embedding(input_ids, self.low).float()[..., None]
        return (codes * scale + low).reshape(*input_ids.shape, self.width)

    def first(self, width: int) -> LowBitEmbedding:
        """Return the first columns, the same to the last bit. Raises: ModelError between groups."""
        if width % GROUP or width > self.width:
            raise ModelError(f"rank {width}: up to {self.width}, in steps of {GROUP}")
        part = copy.deepcopy(self)
        codes = self.codes if self.bits == 8 else _unpack(self.codes)
        codes = codes[:, :width].contiguous()
        part.codes = codes if self.bits == 8 else _pack(codes)
        part.low, part.scale = (t[:, : width // GROUP].clone() for t in (self.low, self.scale))
        part.width = width
        return part


def _pack(codes: torch.Tensor) -> torch.Tensor:  # (V, H) in 0..15 -> (V, H / 2)
    """Return two codes a byte: the first half of a row in the high bits, the second in the low."""
    high, low = codes.chunk(2, dim=1)
    return high * 16 + low


def _unpack(codes: torch.Tensor) -> torch.Tensor:
    return torch.cat([codes // 16, codes % 16], dim=1)


def with_low_bit_embeddings(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Replace the word embeddings by frozen ones of so many bits, in place; return the model."""
    embeddings = bert_of(model).embeddings
    table = embeddings.word_embeddings
    if not isinstance(table, LowBitEmbedding):
        embeddings.word_embeddings = LowBitEmbedding(table.weight, bits)
    elif table.bits != bits:
        embeddings.word_embeddings = LowBitEmbedding(
            table(torch.arange(len(table.codes), device=table.codes.device)), bits
        )
    return model


def round_words(model: PreTrainedModel, words: torch.Tensor, bits: int) -> None:  # (V, H)
    """Give a model these word embeddings, rounded to so many bits, in place."""
    bert_of(model).embeddings.word_embeddings = LowBitEmbedding(words, bits)


@torch.no_grad()
def average(model: PreTrainedModel, start: PreTrainedModel, share: float) -> None:
    """Move a fine-tuned model's weights by `share` of the way back to its start's, in place.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT), section 3.
    """
    known = dict(start.named_parameters())
    for name, weights in model.named_parameters():
        weights.lerp_(known[name].to(weights.device), share)


def has_plain_form(model: PreTrainedModel) -> bool:
    """Say whether any program can load the model: nothing but layers and neurons was cut, alike."""
    whole = set(heads_of(model)) == {model.config.num_attention_heads}
    whole &= set(ffn_of(model)) == {model.config.intermediate_size}
    whole &= width_of(model) == model.config.hidden_size
    whole &= not sharing(list(bert_of(model).encoder.layer))
    if position_bias.bias_of(bert_of(model).encoder) is not None:
        types = bert_of(model).embeddings.token_type_embeddings.weight
        whole &= bool((types == types[0]).all())  # an MPNet has none
    return whole and not getattr(model, "drops", ())


def check_whole(name: str, model: PreTrainedModel) -> None:
    """Raises: ModelError for a model without some of its heads, or whose layers differ in width.

    Only a published variant that was read back can be one.
    """
    whole = set(heads_of(model)) == {model.config.num_attention_heads}
    if not whole or len(set(ffn_of(model))) > 1:
        raise ModelError(
            f"{name}: heads are missing, or its layers differ in width. Such a variant can only be the `base` of"
            " [[students]], or a `teacher` beside `weights`; give a variant of full shape here"
        )


@torch.no_grad()
def save_plain(model: PreTrainedModel, folder: Path) -> None:
    """Write a model as a Hugging Face checkpoint, its word embeddings as floats in full again.

    It is a BERT, or with relative positions an MPNet.
    """
    plain = as_plain(copy.deepcopy(model).cpu())
    embeddings = bert_of(plain).embeddings
    rows = words_of(embeddings, torch.arange(plain.config.vocab_size))  # (V, H)
    floats = nn.Embedding(rows.shape[0], rows.shape[1])
    floats.weight = nn.Parameter(rows)
    embeddings.word_embeddings = floats
    embeddings.projection = None
    biased = position_bias.bias_of(bert_of(plain).encoder) is not None
    (adapt.as_mpnet(plain) if biased else plain).save_pretrained(folder)


def shape_of(model: PreTrainedModel, embedding_bits: int) -> Shape:
    config = model.config
    drops = getattr(model, "drops", ())
    heads, ffn = heads_of(model), ffn_of(model)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=width_of(model),
        heads=max(heads),
        ffn=max(ffn),
        vocabulary=config.vocab_size,
        embedding_bits=embedding_bits,
        rank=rank_of(model),
        keep=drops[-1][1] if drops else 1.0,
        drop_after=drops[0][0] if drops else 0,
        relative_positions=position_bias.bias_of(bert_of(model).encoder) is not None,
        layer_heads=heads if len(set(heads)) > 1 else (),
        layer_ffn=ffn if len(set(ffn)) > 1 else (),
        layer_keep=shares_of(drops, len(ffn)) if len(drops) > 1 else (),
    )


def parameters_of(model: PreTrainedModel) -> int:
    """Return the number of weights, an embedding counted by its values, not its bytes."""
    table = model.config.vocab_size * (rank_of(model) or width_of(model))
    others = sum(p.numel() for n, p in model.named_parameters() if "word_embeddings" not in n)
    return int(table + others)
