"""PyTorch to ONNX, in fp32 and in INT8; with gates that fail loudly.

The graph is written by `optimizer.graph`; here its weights are found and its results are checked.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from transformers import PreTrainedModel

from gateway.domain import Floats, Windows
from gateway.embedded import INPUTS, OUTPUTS, open_session, run
from gateway.errors import BertierError
from optimizer import graph
from optimizer.student import GROUP, LowBitEmbedding, bert_of, heads_of
from optimizer.weights import ACTIVATIONS, HALVES, Array, GraphShape

PARITY_TOLERANCE = 2e-3  # logits
ROUNDING_TOLERANCE = 0.35  # of INT8, root mean square, in standard deviations of the logits
PARITY_SHAPES = ((1, 64), (1, 384), (3, 128), (4, 96))  # (B, S)


class ExportError(BertierError):
    """An exported model that is not what it should be."""


def to_onnx(model: PreTrainedModel, path: Path) -> None:
    """Write the model in fp32. Raises: ExportError when its logits differ from PyTorch's."""
    write(model, path, int8=False)
    check_parity(model, path)


def to_int8(model: PreTrainedModel, path: Path) -> None:
    """Write the model in dynamic INT8.

    Raises: ExportError when a session runs other matrix products than it should, or when the logits
    differ from PyTorch's by more than rounding.
    """
    write(model, path, int8=True)
    check_products(path, len(heads_of(model)))
    check_rounding(model, path)


def write(model: PreTrainedModel, path: Path, *, int8: bool) -> None:
    """Write the model's graph, unchecked. Raises: ExportError for a kind of BERT not known here."""
    model.float().cpu().eval()  # type: ignore[no-untyped-call]
    try:
        built = graph.build(weights_of(model), graph_shape_of(model), int8=int8)
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
    table = bert.embeddings.word_embeddings
    layers = bert.encoder.layer
    return GraphShape(
        hidden=config.hidden_size,
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


def check_products(path: Path, layers: int) -> None:
    """Raises: ExportError unless all products are INT8 but attention's own and the span head.

    Residuals count too: fused with their normalization they take five times as long.
    """
    wanted = {
        "DynamicQuantizeMatMul": 3 * layers,  # out of attention, in and out of the feed-forward
        "MatMulIntegerToFloat": 3 * layers,  # query, key, value
        "FusedMatMul": 2 * layers,  # fp32: scores, and values by scores
        "MatMul": 1,  # fp32: the span head
        "LayerNormalization": 2 * layers + 1,
    }
    kinds = ("MatMul", "Gemm", "Attention", "Einsum", "LayerNorm")
    census = operators_run(path)
    found = {op: n for op, n in census.items() if any(kind in op for kind in kinds)}
    if found != wanted:
        raise ExportError(f"{path}: a session runs {found}, not {wanted}; see optimizer.graph")


def check_parity(
    model: PreTrainedModel, path: Path, shapes: Sequence[tuple[int, int]] = PARITY_SHAPES
) -> None:
    """Compare ONNX with PyTorch on random tokens, padding included. Raises: ExportError."""
    session = open_session(path)
    for shape in shapes:
        windows = random_windows(*shape, model.config.vocab_size)
        together = session.run(list(OUTPUTS), _feed(windows))
        gap = float(np.abs(_gaps(model, windows, together)).max())
        if gap > PARITY_TOLERANCE:
            raise ExportError(f"{path}: at {shape} logits differ from PyTorch's by {gap:.4f}")


def check_rounding(model: PreTrainedModel, path: Path) -> None:
    """Compare INT8, each window alone, with PyTorch's fp32. Raises: ExportError."""
    windows = random_windows(4, 128, model.config.vocab_size)
    alone = run(open_session(path), windows)
    gap = float(np.sqrt(np.mean(_gaps(model, windows, (alone.start, alone.end)) ** 2)))
    spread = float(np.std(_ask(model, windows)))
    if gap > ROUNDING_TOLERANCE * spread:
        raise ExportError(f"{path}: INT8 logits differ from PyTorch's by {gap:.3f} of {spread:.3f}")


def _gaps(model: PreTrainedModel, windows: Windows, found: Iterable[Floats]) -> Floats:
    """Return what the logits (2, B, S) differ by where there are tokens."""
    gaps: Floats = (np.stack(list(found)) - _ask(model, windows))[:, windows.attention_mask == 1]
    return gaps


def _ask(model: PreTrainedModel, windows: Windows) -> Floats:  # -> (2, B, S)
    with torch.no_grad():
        out = model(**{name: torch.from_numpy(ids) for name, ids in _feed(windows).items()})
    return np.stack([out.start_logits.numpy(), out.end_logits.numpy()])


def _feed(windows: Windows) -> dict[str, Array]:
    return {name: getattr(windows, name) for name in INPUTS}


def batch_variance(path: Path, vocabulary: int) -> float:
    """Return the largest change of a window's logits when it is batched with others."""
    session = open_session(path)
    windows = random_windows(4, 96, vocabulary)
    together = session.run(list(OUTPUTS), _feed(windows))
    alone = run(session, windows)
    seen = windows.attention_mask == 1
    pairs = zip(together, (alone.start, alone.end), strict=True)
    return float(max(np.abs(a - b)[seen].max() for a, b in pairs))


def random_windows(n_rows: int, n_tokens: int, vocabulary: int) -> Windows:
    """Return windows of random tokens, each row padded a little more than the one before."""
    rng = np.random.default_rng(n_rows * 1000 + n_tokens)
    shape = (n_rows, n_tokens)
    lengths = n_tokens - np.arange(n_rows)[:, None] * (n_tokens // 8)
    mask = (np.arange(n_tokens)[None, :] < lengths).astype(np.int64)
    ids = rng.integers(0, vocabulary, shape) * mask
    types = ((np.arange(n_tokens)[None, :] > 8).astype(np.int64)) * mask
    offsets = np.zeros((*shape, 2), np.int64)
    return Windows(ids, mask, types, offsets, types == 1, n_tokens)
