"""The weights of a BERT that answers questions or classifies: their names, their sizes, random ones.

Names and orientation are those of transformers' `state_dict`; nothing here needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.models.relative_position import BUCKETS

TABLE = "bert.embeddings.word_embeddings"
PROJECTION = "bert.embeddings.projection"  # of words of low rank to the hidden width
BIAS = "bert.encoder.relative_attention_bias.weight"
BIAS_HEADS = ".attention.self.bias_heads"  # of a layer: which columns of it are its heads'
EARLY = "early_outputs"  # the span head that chooses the tokens that go on; see `early_name`
FORCED = 32  # positions from the front whose tokens of type 0 are always kept
MIN_KEPT = 48  # tokens that are never too many to keep
HALVES = (".low", ".scale")  # of a low-bit embedding: 16 bits each
ACTIVATIONS = {  # transformers' names -> operators; erf, and its approximation by tanh
    "gelu": "Gelu",
    "gelu_python": "Gelu",
    "gelu_new": "FastGelu",
    "gelu_fast": "FastGelu",
    "gelu_pytorch_tanh": "FastGelu",
    "relu": "Relu",
}

Array = npt.NDArray[Any]
Drops = tuple[tuple[int, float], ...]  # after so many layers, this share of all tokens goes on
Weights = Mapping[str, Array]  # by name; a product's weight is (out, in)


@dataclass(frozen=True, slots=True)
class GraphShape:
    """All that decides the time a graph takes; heads and widths per layer."""

    hidden: int
    heads: tuple[int, ...]
    head_size: int
    ffn: tuple[int, ...]
    vocabulary: int
    embedding_bits: int = 32  # 4 or 8: codes with a scale and an offset per group; 32: floats
    group: int = 64  # values of an embedding row that share a scale
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12  # of every layer normalization
    activation: str = "Gelu"  # an operator
    rank: int = 0  # of the word table, which a projection widens to `hidden`; 0: as wide as that
    drops: Drops = ()  # ascending; (): all layers see all tokens
    bias_columns: int = 0  # heads that the bias of relative positions knows; 0: there is none
    shared: tuple[int, ...] = ()  # of each layer the first that has its weights; (): each its own
    labels: int = (
        0  # of a classifier, read from the first token; 0: start and end of a span, from all
    )

    @property
    def layers(self) -> int:
        return len(self.heads)

    @property
    def word_width(self) -> int:
        """Return the width of the word table's rows."""
        return self.rank or self.hidden


def permille(keep: float) -> int:
    return round(1000 * keep)


def n_kept(keep: float, n_tokens: int) -> int:
    """Return how many tokens of each row are kept; `n_tokens` counts the padding, too."""
    share = (n_tokens * permille(keep) + 999) // 1000  # rounded up, in integers
    return min(n_tokens, max(MIN_KEPT, share))


def shares_of(drops: Drops, layers: int) -> tuple[float, ...]:
    """Return the share of the tokens that each layer sees."""
    found = [1.0] * layers
    for after, keep in drops:
        found[after:] = [keep] * (layers - after)
    return tuple(found)


def early_name(i: int) -> str:
    """Return the name of the head of the i-th drop, from 0; the first keeps its name in older files."""
    return f"{EARLY}_{i + 1}" if i else EARLY


def weight_shapes(shape: GraphShape) -> dict[str, tuple[int, ...]]:
    """Return the name and the shape of every weight of a model."""
    h = shape.hidden
    found = {
        **_table_shapes(shape),
        "bert.embeddings.position_embeddings.weight": (shape.positions, h),
        "bert.embeddings.token_type_embeddings.weight": (shape.types, h),
        **_norm_shapes("bert.embeddings.LayerNorm", h),
        **_linear_shapes("qa_outputs", h, shape.labels or 2),
    }
    if shape.rank:
        found[f"{PROJECTION}.weight"] = (h, shape.rank)
    for i in range(len(shape.drops)):
        found |= _linear_shapes(early_name(i), h, 2)
    if shape.bias_columns:
        found[BIAS] = (BUCKETS, shape.bias_columns)
    for i, (heads, ffn) in enumerate(zip(shape.heads, shape.ffn, strict=True)):
        layer, attention = layer_name(i), heads * shape.head_size
        for part in ("query", "key", "value"):
            found |= _linear_shapes(f"{layer}.attention.self.{part}", h, attention)
        found |= _linear_shapes(f"{layer}.attention.output.dense", attention, h)
        found |= _linear_shapes(f"{layer}.intermediate.dense", h, ffn)
        found |= _linear_shapes(f"{layer}.output.dense", ffn, h)
        found |= _norm_shapes(f"{layer}.attention.output.LayerNorm", h)
        found |= _norm_shapes(f"{layer}.output.LayerNorm", h)
        if heads < shape.bias_columns:
            found[f"{layer}{BIAS_HEADS}"] = (heads,)
    return found


def layer_name(i: int) -> str:
    return f"bert.encoder.layer.{i}"


def sharing(layers: Sequence[Hashable]) -> tuple[int, ...]:
    """Return of each layer the first that is the same; () where all differ.

    Source: Dehghani et al. 2019, "Universal Transformers"; Lan et al. 2020, "ALBERT", section 3.1.
    """
    found = tuple(layers.index(layer) for layer in layers)
    return () if found == tuple(range(len(found))) else found


def _table_shapes(shape: GraphShape) -> dict[str, tuple[int, ...]]:
    name, rows, wide = TABLE, shape.vocabulary, shape.word_width
    if shape.embedding_bits == 32:
        return {f"{name}.weight": (rows, wide)}
    groups, codes = wide // shape.group, wide * shape.embedding_bits // 8
    return {
        f"{name}.codes": (rows, codes),
        f"{name}.low": (rows, groups),
        f"{name}.scale": (rows, groups),
    }


def _linear_shapes(name: str, wide: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, wide), f"{name}.bias": (out,)}


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def random_weights(shape: GraphShape, seed: int = 0) -> dict[str, Array]:
    """Return weights of no use but for measuring how long a shape takes."""
    rng = np.random.default_rng(seed)
    found = {name: _random(rng, name, size) for name, size in weight_shapes(shape).items()}
    for name, random in found.items():
        if name.endswith(BIAS_HEADS):
            heads = rng.choice(shape.bias_columns, len(random), replace=False)
            found[name] = np.sort(heads)
    return found | {
        name: found[f"{layer_name(k)}.{name.removeprefix(f'{layer_name(i)}.')}"]
        for i, k in enumerate(shape.shared)
        for name in found
        if name.startswith(f"{layer_name(i)}.")
    }


def _random(rng: np.random.Generator, name: str, size: tuple[int, ...]) -> Array:
    if name.endswith(".codes"):
        return rng.integers(0, 256, size, np.uint8)
    centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
    values = centre + 0.05 * rng.standard_normal(size, np.float32)
    return values.astype(np.float16 if name.endswith(HALVES) else np.float32)


def check(weights: Weights, shape: GraphShape) -> None:
    """Raises: ValueError for weights that are not of this shape."""
    for name, size in weight_shapes(shape).items():
        found = weights[name].shape if name in weights else None
        if found != size:
            raise ValueError(f"{name}: is {found}, the shape asks for {size}")
