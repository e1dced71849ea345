"""The part of the graph that lets only some tokens go on, and gives the others their early logits.

The rule is the contract of `optimizer.models.weights` (FORCED, MIN_KEPT, `n_kept`); no results change shape.

Legend: B batch, S tokens, K kept tokens, H hidden width. Values are (S, B, ...) or (K, B, ...).
Source: drop-and-restore, Kim & Cho 2021 (Length-Adaptive Transformer); there attention ranks the
tokens and their hidden states are restored, here a span head does, and its logits are.
"""

from __future__ import annotations

import numpy as np

from gateway.domain import Floats, Ints
from gateway.qa.codec import LENGTH_BUCKETS
from optimizer.models.weights import FORCED, n_kept
from optimizer.onnx.nodes import Nodes

FIRST = 1e9  # importance of what is kept before all else; its negative: of padding
POSITIONS = LENGTH_BUCKETS[-1]  # no window is longer


def importance_of(
    early: Floats,  # (2, B, S): start and end logits
    attention_mask: Ints,  # (B, S)
    token_type_ids: Ints,  # (B, S)
) -> Floats:  # (B, S)
    """Return what tokens are kept by, the largest first: the rule itself, in NumPy."""
    front = (np.arange(early.shape[-1]) < FORCED) & (token_type_ids == 0)
    found = np.where(front, np.float32(FIRST), early.max(0))
    return np.where(attention_mask == 1, found, np.float32(-FIRST))


def from_cut(importance: Floats, kept: int) -> Floats:  # (B, S) -> (B, S)
    """Return how far a token is from where the cut falls; infinity: its place is certain."""
    if kept >= importance.shape[1]:
        return np.full_like(importance, np.inf)
    ranked = -np.sort(-importance, axis=1)
    cut = ranked[:, kept - 1 : kept + 1].mean(1, keepdims=True)
    certain = np.abs(importance) == FIRST
    return np.where(certain, np.float32(np.inf), np.abs(importance - cut))


def forced(nodes: Nodes, places: str, types: int, positions: int) -> str:  # (S, B) -> (S, B)
    """Return FIRST for the first tokens of type 0, else 0; `places`: type * positions + position."""
    bonus = np.zeros(types * positions, np.float32)
    bonus[:FORCED] = FIRST
    return nodes.add("Gather", [nodes.constant("early/first", bonus), places], "early/forced")


def choose(nodes: Nodes, keep: float, early: str, padding: str, forced: str) -> tuple[str, str]:
    """Return which tokens (K, B) go on, and which rows (K, B) of what is reshaped to (S * B, ...).

    Takes early logits (S, B, 2), padding (S, B, 1), what is `forced` (S, B). Of equal tokens TopK
    takes the first. Kept tokens are in no order: position is in them, or goes beside them.
    """
    n_tokens = nodes.add("Shape", [forced], "early/n_tokens", start=0, end=1)
    batch = nodes.add("Shape", [forced], "batch", start=1, end=2)
    kept_of = [n_kept(keep, n) for n in range(POSITIONS + 1)]
    k = nodes.add("Gather", [nodes.ints("early/kept_of", *kept_of), n_tokens], "early/k")
    importance = _importance(nodes, early, padding, forced)
    outputs = ["early/kept/importance", "early/kept"]
    nodes.add_many("TopK", [importance, k], outputs, axis=0, largest=1, sorted=0)
    return outputs[1], _rows(nodes, outputs[1], batch)


def _importance(nodes: Nodes, early: str, padding: str, forced: str) -> str:
    """Return (S, B); padding counts less than any token, also among the first."""
    best = nodes.add("ReduceMax", [early], "early/best", axes=[-1], keepdims=0)
    last = nodes.add("Mul", [padding, nodes.number("early/last", -2 * FIRST)], "early/padding")
    last = nodes.add("Squeeze", [last, nodes.ints("minus_one", -1)], "early/padding/flat")
    return nodes.add("Sum", [best, forced, last], "early/importance")


def _rows(nodes: Nodes, kept: str, batch: str) -> str:
    """Return token * B + window, for each kept token of each window."""
    scalar = nodes.add("Squeeze", [batch], "batch/scalar")
    zero, one = (nodes.constant(f"{n}/scalar", np.array(n, np.int64)) for n in (0, 1))
    windows = nodes.add("Range", [zero, scalar, one], "windows")
    first = nodes.add("Mul", [kept, batch], "early/kept/first")
    return nodes.add("Add", [first, windows], "early/kept/rows")


def gather(nodes: Nodes, x: str, width: int, rows: str) -> str:
    """Return the kept tokens' (K, B, W) of (S, B, W)."""
    flat = nodes.add("Reshape", [x, nodes.ints(f"flat/{width}", -1, width)], f"{x}/flat")
    return nodes.add("Gather", [flat, rows], f"{x}/kept")


def restore(nodes: Nodes, early: str, logits: str, rows: str) -> str:
    """Return logits (S, B, 2): the kept tokens' (K, B, 2), the early ones of all others."""
    shape = nodes.add("Shape", [early], "early/shape")
    flat = nodes.add("Reshape", [early, nodes.ints("early/pairs", -1, 2)], "early/flat")
    rows = nodes.add("Unsqueeze", [rows, nodes.ints("minus_one", -1)], "early/kept/rows/each")
    mixed = nodes.add("ScatterND", [flat, rows, logits], "restored/flat")
    return nodes.add("Reshape", [mixed, shape], "restored")
