"""PyTorch to ONNX, in fp32, fp16 and INT8; with gates that fail loudly.

The graph is written by `optimizer.onnx.graph`; here its weights are found and its results are checked.

Legend: B windows, K distributions and their M places: start and end over the S tokens, or one over the L labels.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime as ort
import torch
from transformers import PreTrainedModel

from gateway.backends.embedded import INPUTS, open_session
from gateway.catalog.schema import Precision
from gateway.domain import Bools, Floats, Windows
from gateway.errors import BertierError
from optimizer.models import position_bias, ranges
from optimizer.models.bert import classifies, said_by, width_of
from optimizer.models.neurons import Inputs
from optimizer.models.student import GROUP, LowBitEmbedding, bert_of, heads_of
from optimizer.models.weights import ACTIVATIONS, HALVES, Array, GraphShape, sharing
from optimizer.onnx import graph, token_dropping

PARITY_TOLERANCE = 2e-3  # logits
# Root mean square, in standard deviations of the logits.
ROUNDING_TOLERANCE = {Precision.INT8_DYNAMIC: 0.35, Precision.FP16: 0.01}
# From here on outliers are handled, which costs time: MiniLM is below, MPNet above (docs/experiments).
SMOOTHED_FROM = 0.1
PARITY_SHAPES = ((1, 64), (1, 384), (3, 128), (4, 96))  # (B, S)


Probe = Sequence[Inputs]  # batches of text for a model to read


class ExportError(BertierError):
    """An exported model that is not what it should be."""


def to_onnx(model: PreTrainedModel, path: Path, _: Probe | None = None) -> None:
    """Write the model in fp32. Raises: ExportError when its logits differ from PyTorch's."""
    write(model, path, Precision.FP32)
    check_parity(model, path)


def to_int8(model: PreTrainedModel, path: Path, probe: Probe | None = None) -> None:
    """Write the model in dynamic INT8; `probe`: text that rounding is checked on.

    Where rounding costs much, outliers of activations are looked for in the probe, and handled.
    Raises: ExportError when a session runs other matrix products than it should, or when the logits
    differ from PyTorch's by more than rounding.
    """
    write(model, path, Precision.INT8_DYNAMIC)
    smoothed = bool(probe) and rounding(model, path, Precision.INT8_DYNAMIC, probe) > SMOOTHED_FROM
    if smoothed:
        write(model, path, Precision.INT8_DYNAMIC, probe)
    check_products(path, graph_shape_of(model), smoothed=smoothed)
    check_rounding(model, path, Precision.INT8_DYNAMIC, probe)


def to_fp16(model: PreTrainedModel, path: Path, probe: Probe | None = None) -> None:
    """Write the model in float16, which a GPU is fast at; checked on whatever is here.

    Raises: ExportError when the logits differ from PyTorch's by more than rounding.
    """
    write(model, path, Precision.FP16)
    check_rounding(model, path, Precision.FP16, probe)


class Writes(Protocol):
    """Writes a model in one precision, checked; see `to_int8` for the probe."""

    def __call__(self, model: PreTrainedModel, path: Path, probe: Probe | None = None, /) -> None:
        """Raises: ExportError."""


TO: Mapping[str, Writes] = {
    Precision.FP32: to_onnx,
    Precision.INT8_DYNAMIC: to_int8,
    Precision.FP16: to_fp16,
}


def write(
    model: PreTrainedModel,
    path: Path,
    precision: Precision,
    probe: Probe | None = None,
) -> None:
    """Write the model's graph, unchecked. Raises: ExportError for a kind of BERT not known here."""
    model.float().cpu().eval()  # type: ignore[no-untyped-call]
    found = None if probe is None else ranges.measure(model, probe)
    try:
        built = graph.build(weights_of(model), graph_shape_of(model), precision, found)
    except ValueError as exc:
        raise ExportError(f"{path}: {exc}") from exc
    onnx.save(built, path)


def weights_of(model: PreTrainedModel) -> dict[str, Array]:
    """Return the weights by name; what was made in 16 bits is so again, in a model cast to 32."""
    found = model.state_dict().items()
    return {n: (t.half() if n.endswith(HALVES) else t).numpy() for n, t in found}


def graph_shape_of(model: PreTrainedModel) -> GraphShape:
    """Return what `graph` must know. Raises: ExportError for an activation without operator."""
    config, bert = model.config, bert_of(model)
    if config.hidden_act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ExportError(f"hidden_act {config.hidden_act}: cannot be exported; these can: {known}")
    table, projection = (
        bert.embeddings.word_embeddings,
        getattr(bert.embeddings, "projection", None),
    )
    layers, bias = bert.encoder.layer, position_bias.bias_of(bert.encoder)
    return GraphShape(
        hidden=width_of(model),
        heads=heads_of(model),
        head_size=layers[0].attention.self.attention_head_size,
        ffn=tuple(layer.intermediate.dense.out_features for layer in layers),
        vocabulary=config.vocab_size,
        embedding_bits=table.bits if isinstance(table, LowBitEmbedding) else 32,
        group=GROUP,
        positions=config.max_position_embeddings,
        types=config.type_vocab_size,
        epsilon=config.layer_norm_eps,
        activation=ACTIVATIONS[config.hidden_act],
        rank=projection.in_features if projection is not None else 0,
        drops=getattr(model, "drops", ()),
        bias_columns=bias.embedding_dim if bias is not None else 0,
        shared=sharing(list(layers)),
        labels=int(config.num_labels or 0) if classifies(model) else 0,
    )


def operators_run(path: Path) -> Counter[str]:
    """Return how often a session runs each operator, after its own optimization of the file."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that the file is for this host only
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath)
    return Counter(node.op_type for node in optimized.graph.node)


def check_products(path: Path, shape: GraphShape, *, smoothed: bool = False) -> None:
    """Raises: ExportError unless all products are INT8 but attention's own and the small ones.

    `smoothed`: each layer has two small ones more, of neurons computed in float.
    Residuals count too: fused with their normalization they take five times as long.
    """
    layers = shape.layers
    wanted = {
        "DynamicQuantizeMatMul": 3 * layers,  # out of attention, in and out of the feed-forward
        "MatMulIntegerToFloat": 3 * layers,  # query, key, value
        "FusedMatMul": 2 * layers,  # fp32: scores, and values by scores
        # fp32: heads, words of low rank, neurons
        "MatMul": 1 + bool(shape.rank) + len(shape.drops) + 2 * layers * smoothed,
        "LayerNormalization": 2 * layers + 1,
        "TopK": len(shape.drops),
    }
    kinds = ("MatMul", "Gemm", "Attention", "Einsum", "LayerNorm", "TopK")
    census = operators_run(path)
    found = {op: n for op, n in census.items() if any(kind in op for kind in kinds)}
    if found != {op: n for op, n in wanted.items() if n}:
        raise ExportError(f"{path}: a session runs {found}, not {wanted}; see optimizer.onnx.graph")


def check_parity(
    model: PreTrainedModel, path: Path, shapes: Sequence[tuple[int, int]] = PARITY_SHAPES
) -> None:
    """Compare ONNX with PyTorch on random tokens, padding included.

    A window is left out where rounding may decide which of two tokens is kept.
    Raises: ExportError, also when no window is left.
    """
    session, compared = open_session(path), 0
    for shape in shapes:
        windows = random_windows(*shape, model.config.vocab_size)
        wanted = _ask(model, windows)
        sure = wanted.from_cut.min(1) > PARITY_TOLERANCE  # (B,)
        found = np.stack(session.run(None, _feed(windows)))
        gaps = np.abs(found - wanted.logits)[:, sure[:, None] & wanted.real]
        compared += sure.sum()
        if not (gap := float(gaps.max(initial=0))) <= PARITY_TOLERANCE:
            raise ExportError(f"{path}: at {shape} logits differ from PyTorch's by {gap:.4f}")
    if not compared:
        raise ExportError(f"{path}: not compared: in all windows tokens are dropped by a hair")


def check_rounding(
    model: PreTrainedModel, path: Path, precision: Precision, probe: Probe | None = None
) -> None:
    """Raises: ExportError when rounding costs more than the precision may; see `rounding`."""
    tolerance = ROUNDING_TOLERANCE[precision]
    if not (share := rounding(model, path, precision, probe)) <= tolerance:
        raise ExportError(
            f"{path}: {precision} logits differ from PyTorch's by {share:.3f} of their standard"
            f" deviation; allowed is {tolerance}"
        )


def rounding(
    model: PreTrainedModel, path: Path, precision: Precision, probe: Probe | None = None
) -> float:
    """Return the root mean square difference of logits from PyTorch's fp32, in standard deviations.

    Each window alone, on some text of the probe, where a trained model's logits spread; without one
    on random tokens. A token is left out where as much rounding of the early logits may decide
    whether it is kept. Raises: ExportError for logits that are not finite, or when no token is left.
    """
    windows = _read_by(probe) if probe else random_windows(4, 128, model.config.vocab_size)
    session = open_session(path, precision=precision)
    wanted = _ask(model, windows)
    alone = np.concatenate([np.stack(session.run(None, feed)) for feed in feeds(windows)], axis=1)
    if not np.isfinite(alone).all():
        raise ExportError(f"{path}: {precision} logits are not finite")
    real, tolerance = wanted.real, ROUNDING_TOLERANCE[precision]
    spread = float(np.std(wanted.logits[:, real]))
    sure = (wanted.from_cut > tolerance * wanted.early_spread) & real
    judged = np.isfinite(wanted.from_cut)
    if judged.any() and not (judged & sure).any():
        raise ExportError(f"{path}: not compared: all tokens are kept or dropped by a hair")
    gaps = (alone - wanted.logits)[:, sure]
    return float(np.sqrt(np.mean(gaps**2))) / spread


def _read_by(probe: Probe) -> Windows:
    """Return the windows of the probe's middle batch: neither its shortest nor its longest."""
    batch = probe[len(probe) // 2]
    ids, mask, types = (batch[name].cpu().numpy() for name in INPUTS)
    offsets = np.zeros((*ids.shape, 2), np.int64)
    return Windows(ids, mask, types, offsets, types == 1, ids.shape[1])


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What PyTorch says."""

    logits: Floats  # (K, B, M)
    real: Bools  # (B, M), no padding
    from_cut: Floats  # (B, M) of a token's importance; infinite where it is certainly kept, or not
    early_spread: float  # standard deviation of the early logits, the largest of all heads


def _ask(model: PreTrainedModel, windows: Windows) -> _Wanted:
    with torch.no_grad():
        out = model(**{name: torch.from_numpy(ids) for name, ids in _feed(windows).items()})
    logits = np.stack([said.numpy() for said in said_by(out)])
    drops = graph_shape_of(model).drops
    real = _real(logits, windows.attention_mask)
    if not drops:
        return _Wanted(logits, real, np.full(logits.shape[1:], np.inf, np.float32), 0.0)
    early = [said.numpy().transpose(2, 0, 1) for said in out.early_logits]  # (2, B, S) each
    cuts = token_dropping.from_cuts(drops, early, windows.attention_mask, windows.token_type_ids)
    return _Wanted(logits, real, cuts, max(float(np.std(said)) for said in early))


def _real(logits: Floats, attention_mask: Array) -> Bools:  # (K, B, M), (B, S) -> (B, M)
    """Return which logits count: those of no padding, and all of labels."""
    of_tokens = len(logits) == 2  # start and end
    return attention_mask == 1 if of_tokens else np.ones(logits.shape[1:], np.bool_)


def _feed(windows: Windows) -> dict[str, Array]:
    return {name: getattr(windows, name) for name in INPUTS}


def batch_variance(ask: Callable[[dict[str, Array]], Sequence[Array]], vocabulary: int) -> float:
    """Return the largest change of a window's logits when it is batched with others.

    `ask` returns start and end logits, (B, S) each, or those of labels, (B, L).
    """
    windows = random_windows(4, 96, vocabulary)
    together = np.stack(ask(_feed(windows)))
    alone = np.concatenate([np.stack(ask(feed)) for feed in feeds(windows)], axis=1)
    return float(np.abs(together - alone)[:, _real(together, windows.attention_mask)].max())


def feeds(windows: Windows) -> list[dict[str, Array]]:
    """Return the windows one by one, as they are asked."""
    rows = [slice(row, row + 1) for row in range(windows.n_windows)]
    return [{name: ids[row] for name, ids in _feed(windows).items()} for row in rows]


def random_windows(n_rows: int, n_tokens: int, vocabulary: int) -> Windows:
    """Return windows of random tokens, each row with more padding and a longer question than the last."""
    rng = np.random.default_rng(n_rows * 1000 + n_tokens)
    shape = (n_rows, n_tokens)
    lengths = n_tokens - np.arange(n_rows)[:, None] * (n_tokens // 8)
    mask = (np.arange(n_tokens)[None, :] < lengths).astype(np.int64)
    ids = rng.integers(0, vocabulary, shape) * mask
    question_lengths = 10 + 12 * np.arange(n_rows)[:, None]
    types = (np.arange(n_tokens)[None, :] >= question_lengths).astype(np.int64) * mask
    offsets = np.zeros((*shape, 2), np.int64)
    return Windows(ids, mask, types, offsets, types == 1, n_tokens)
