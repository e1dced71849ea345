"""PyTorch to ONNX: exported, fused, quantized; with gates that fail loudly.

Only the TorchScript exporter with eager attention gives a graph that ONNX Runtime fuses.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer as fusion
from onnxruntime.transformers.fusion_options import FusionOptions
from transformers import PreTrainedModel

from gateway.domain import Windows
from gateway.embedded import INPUTS, OUTPUTS, open_session, run
from gateway.errors import BertierError

OPSET = 17
PARITY_TOLERANCE = 2e-3
PARITY_SHAPES = ((1, 64), (1, 384), (3, 128))  # (B, S)


class ExportError(BertierError):
    """An exported model that is not what it should be."""


class _SpanHead(torch.nn.Module):
    """The model with plain tensors in and out, as ONNX wants it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return out.start_logits, out.end_logits


def to_onnx(model: PreTrainedModel, path: Path) -> None:
    """Write the model as one fused fp32 ONNX file, and check it against PyTorch.

    Raises: ExportError when attention did not fuse or the logits differ.
    """
    model.float().cpu().eval()  # type: ignore[no-untyped-call]
    raw = path.with_name("raw.onnx")
    ids = torch.ones((1, 16), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "tokens"} for name in (*INPUTS, *OUTPUTS)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about every shape it reads
        torch.onnx.export(
            _SpanHead(model),
            (ids, ids, torch.zeros_like(ids)),
            str(raw),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    _fuse(raw, path, model)
    raw.unlink()
    check_parity(model, path)


def _fuse(raw: Path, path: Path, model: PreTrainedModel) -> None:
    options = FusionOptions("bert")
    options.enable_embed_layer_norm = False  # has no low-bit form
    config = model.config
    fused = fusion.optimize_model(
        str(raw),
        "bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=0,
        optimization_options=options,
    )
    fused.save_model_to_file(str(path))
    census = census_of(path)
    if census["Attention"] != config.num_hidden_layers:
        raise ExportError(
            f"{path}: {census['Attention']} of {config.num_hidden_layers} attention blocks fused;"
            " was the model loaded with eager attention?"
        )


def quantize(fp32: Path, path: Path) -> None:
    """Write the dynamic INT8 form of a fused model, the span head left in fp32.

    Raises: ExportError when a matrix product stayed in fp32.
    """
    with _quiet():
        quantize_dynamic(
            fp32,
            path,
            op_types_to_quantize=["MatMul", "Attention"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_span_head_nodes(fp32),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
    census = census_of(path)
    stayed = census["Attention"] + census["MatMul"] - len(_span_head_nodes(fp32))
    if stayed or census["QAttention"] == 0:
        raise ExportError(f"{path}: {stayed} matrix products stayed in fp32: {dict(census)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice, given to the root logger, out of the log."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _span_head_nodes(path: Path) -> list[str]:
    """Return the MatMul of the span head: the last one of the graph, two columns wide."""
    graph = onnx.load(path).graph
    wide = {i.name: i.dims[-1] for i in graph.initializer if len(i.dims) == 2}
    return [n.name for n in graph.node if n.op_type == "MatMul" and wide.get(n.input[1]) == 2]


def census_of(path: Path) -> Counter[str]:
    """Return how often each operator occurs in the file."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def check_parity(
    model: PreTrainedModel, path: Path, shapes: Sequence[tuple[int, int]] = PARITY_SHAPES
) -> None:
    """Compare ONNX with PyTorch on random tokens, padding included. Raises: ExportError."""
    session = open_session(path)
    head = _SpanHead(model).eval()
    for n_rows, n_tokens in shapes:
        windows = random_windows(n_rows, n_tokens, model.config.vocab_size)
        with torch.no_grad():
            wanted = head(*(torch.from_numpy(getattr(windows, name)) for name in INPUTS))
        found = run(session, windows)
        seen = windows.attention_mask == 1
        for got, want in zip((found.start, found.end), wanted, strict=True):
            gap = float(np.abs(got - want.numpy())[seen].max())
            if gap > PARITY_TOLERANCE:
                raise ExportError(f"{path}: logits differ from PyTorch's by {gap:.4f}")


def batch_variance(path: Path, vocabulary: int) -> float:
    """Return the largest change of a window's logits when it is batched with others."""
    session = open_session(path)
    windows = random_windows(4, 96, vocabulary)
    together = session.run(list(OUTPUTS), {name: getattr(windows, name) for name in INPUTS})
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
