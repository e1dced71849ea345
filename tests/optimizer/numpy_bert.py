"""BERT in NumPy, straight from the papers: what a graph written by hand is held against.

It shares no code with `optimizer.onnx.graph`: masks are added to the scores, tokens are dropped one row
after the other, all in float64.
"""

from __future__ import annotations

from math import ceil, floor, log2
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from optimizer.models.weights import FORCED, MIN_KEPT, GraphShape, Weights

Array = npt.NDArray[Any]


def logits_of(weights: Weights, shape: GraphShape, asked: dict[str, Array]) -> Array:  # (2, B, S)
    """Return start and end logits; a row's padding is at its end."""
    return said_of(weights, shape, asked)[-1]


def said_of(weights: Weights, shape: GraphShape, asked: dict[str, Array]) -> list[Array]:
    """Return (2, B, S): what stands after each early head, and after the last one."""
    rows = zip(asked["input_ids"], asked["attention_mask"], asked["token_type_ids"], strict=True)
    each = [_row(_Bert(weights, shape), *row)[0] for row in rows]
    return [np.stack(said, axis=1) for said in zip(*each, strict=True)]


def kept_of(weights: Weights, shape: GraphShape, ids: Array, mask: Array, types: Array) -> Array:
    """Return which tokens of one window are left in the end, ascending."""
    return _row(_Bert(weights, shape), ids, mask, types)[1]


def _row(bert: _Bert, ids: Array, mask: Array, types: Array) -> tuple[list[Array], Array]:
    x, left, done = bert.embeddings(ids, types), np.arange(len(ids)), 0
    said, each = np.zeros((len(ids), 2)), []
    for i, (after, keep) in enumerate(bert.shape.drops):
        x = bert.layers(range(done, after), x, mask[left], left)
        said[left] = bert.linear("early_outputs" if i == 0 else f"early_outputs_{i + 1}", x)
        each.append(said.T.copy())
        kept = _kept(keep, said, left, mask, types)
        x, left, done = x[np.isin(left, kept)], kept, after
    x = bert.layers(range(done, bert.shape.layers), x, mask[left], left)
    said[left] = bert.linear("qa_outputs", x)
    return [*each, said.T], left


def _kept(keep: float, said: Array, left: Array, mask: Array, types: Array) -> Array:
    def rank(i: int) -> tuple[int, float, int]:
        kind = 2 if not mask[i] else 0 if i < FORCED and types[i] == 0 else 1
        return kind, -said[i].max(), i

    n = min(len(mask), max(MIN_KEPT, ceil(round(1000 * keep) * len(mask) / 1000)))
    return np.array(sorted(sorted(left, key=rank)[:n]))


class _Bert:
    def __init__(self, weights: Weights, shape: GraphShape) -> None:
        self.shape = shape
        self.weights: dict[str, Array] = {
            n: w if w.dtype.kind in "iu" else w.astype(np.float64) for n, w in weights.items()
        }

    def linear(self, name: str, x: Array) -> Array:
        out: Array = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return out

    def norm(self, name: str, x: Array) -> Array:
        spread = np.sqrt(x.var(-1, keepdims=True) + self.shape.epsilon)
        even: Array = (x - x.mean(-1, keepdims=True)) / spread
        return even * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def embeddings(self, ids: Array, types: Array) -> Array:
        name = "bert.embeddings"
        total = self.words(ids) + self.weights[f"{name}.token_type_embeddings.weight"][types]
        total = total + self.weights[f"{name}.position_embeddings.weight"][: len(ids)]
        return self.norm(f"{name}.LayerNorm", total)

    def words(self, ids: Array) -> Array:
        name, shape = "bert.embeddings.word_embeddings", self.shape
        if shape.embedding_bits == 32:
            rows = self.weights[f"{name}.weight"][ids]
        else:
            codes = self.weights[f"{name}.codes"][ids]
            if shape.embedding_bits == 4:
                codes = np.concatenate([codes >> 4, codes & 15], axis=1)
            scale, low = (self.weights[f"{name}.{part}"][ids] for part in ("scale", "low"))
            scale, low = (np.repeat(part, shape.group, axis=1) for part in (scale, low))
            rows = codes * scale + low
        return rows @ self.weights["bert.embeddings.projection.weight"].T if shape.rank else rows

    def layers(self, which: range, x: Array, mask: Array, places: Array) -> Array:
        for i in which:
            name = f"bert.encoder.layer.{i}"
            bias = self.bias(f"{name}.attention.self", places)
            mixed = self.attention(f"{name}.attention.self", self.shape.heads[i], x, mask, bias)
            mixed = self.linear(f"{name}.attention.output.dense", mixed)
            x = self.norm(f"{name}.attention.output.LayerNorm", mixed + x)
            wide = self.linear(f"{name}.intermediate.dense", x)
            wide = wide * (1 + erf(wide / np.sqrt(2))) / 2
            out = self.linear(f"{name}.output.dense", wide)
            x = self.norm(f"{name}.output.LayerNorm", out + x)
        return x

    def bias(self, name: str, places: Array) -> Array:  # (S,) -> (N, S, S)
        """Return what each distance adds to the scores, one pair of tokens after the other."""
        if not self.shape.bias_columns:
            return np.zeros((1, 1, 1))
        table = self.weights["bert.encoder.relative_attention_bias.weight"]  # (32, columns)
        rows = [[table[_bucket(int(key - query))] for key in places] for query in places]
        heads = self.weights.get(f"{name}.bias_heads", np.arange(self.shape.bias_columns))
        return np.array(rows).transpose(2, 0, 1)[heads]

    def attention(self, name: str, heads: int, x: Array, mask: Array, bias: Array) -> Array:
        parts = (self.linear(f"{name}.{part}", x) for part in ("query", "key", "value"))
        q, k, v = (part.reshape(len(x), heads, -1).transpose(1, 0, 2) for part in parts)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(self.shape.head_size) + bias
        scores = np.where(mask[None, None, :] == 1, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed: Array = shares / shares.sum(-1, keepdims=True) @ v
        return mixed.transpose(1, 0, 2).reshape(len(x), -1)


def _bucket(distance: int) -> int:
    """Raffel et al. 2020: 8 distances of their own on each side, then 8 half octaves up to 128."""
    side, far = (16 if distance > 0 else 0), abs(distance)
    if far < 8:
        return side + far
    return side + min(15, 8 + floor(2 * log2(far / 8)))
