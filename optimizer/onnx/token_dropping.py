"""The part of the graph that lets only some tokens go on, once or several times, and gives the others their early logits.

The rule is the contract of `optimizer.models.weights` (FORCED, MIN_KEPT, `n_kept`); no results change shape.

Legend: B batch, S tokens, K kept tokens, H hidden width. Values are (S, B, ...) or (K, B, ...).
Source: drop-and-restore, Kim & Cho 2021 (Length-Adaptive Transformer); there attention ranks the
tokens and their hidden states are restored, here a span head does, and its logits are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from gateway.domain import Floats, Ints
from gateway.qa.codec import LENGTH_BUCKETS
from optimizer.models.weights import EARLY, FORCED, Drops, early_name, n_kept
from optimizer.onnx.nodes import Nodes

FIRST = 1e9  # importance of what is kept before all else; its negative: of padding
POSITIONS = LENGTH_BUCKETS[-1]  # no window is longer


def from_cuts(
    drops: Drops,
    early: Sequence[Floats],  # of each drop (2, B, S): start and end logits
    attention_mask: Ints,  # (B, S)
    token_type_ids: Ints,  # (B, S)
) -> Floats:  # (B, S)
    """Return how far a token is from the nearest cut that could fall elsewhere; infinity: its place is certain."""
    found, left = np.full(attention_mask.shape, np.inf, np.float32), attention_mask
    for (_, keep), logits in zip(drops, early, strict=True):
        importance = _importance_of(logits, left, token_type_ids)
        kept = n_kept(keep, importance.shape[1])
        found = np.minimum(found, _from_cut(importance, kept))
        lowest = -np.sort(-importance, axis=1)[:, kept - 1 : kept]
        left = np.where(importance >= lowest, left, 0)
    return found


def _importance_of(
    early: Floats,  # (2, B, S)
    left: Ints,  # (B, S), 0: padding, and what was dropped before
    token_type_ids: Ints,  # (B, S)
) -> Floats:  # (B, S)
    """Return what tokens are kept by, the largest first: the rule itself, in NumPy."""
    front = (np.arange(early.shape[-1]) < FORCED) & (token_type_ids == 0)
    found = np.where(front, np.float32(FIRST), early.max(0))
    return np.where(left == 1, found, np.float32(-FIRST))


def _from_cut(importance: Floats, kept: int) -> Floats:  # (B, S) -> (B, S)
    if kept >= importance.shape[1]:
        return np.full_like(importance, np.inf)
    ranked = -np.sort(-importance, axis=1)
    cut = ranked[:, kept - 1 : kept + 1].mean(1, keepdims=True)
    certain = np.abs(importance) == FIRST
    return np.where(certain, np.float32(np.inf), np.abs(importance - cut))


class TokenDropping:
    """Writes the drops of one graph, in their order, and in the end puts the dropped tokens back.

    Kept tokens are in no order: position is in them, or goes beside them.
    """

    def __init__(self, nodes: Nodes, padding: str, places: str, types: int, positions: int) -> None:
        """`padding`: (S, B, 1); `places`: (S, B), type * positions + position."""
        self._nodes, self._places = nodes, places
        self._bonus = np.zeros(types * positions, np.float32)
        self._bonus[:FORCED] = FIRST
        self._dropped: list[tuple[str, str]] = []  # early logits, and the rows that went on
        self._forced = ""  # (K, B) FIRST for what is always kept, else 0; as before the last drop
        self.padding = padding  # (K, B, 1) of what is left
        self.kept = ""  # (K, B) positions of what is left

    @property
    def head(self) -> str:
        """Return the name of the next drop's early head."""
        return early_name(len(self._dropped))

    def drop(self, keep: float, early: str, x: str, width: int) -> str:  # -> (K', B, W)
        """Let some of the tokens go on; return their x. Takes early logits (K, B, 2) and x (K, B, W).

        Of equal tokens TopK takes the first.
        """
        nodes, at = self._nodes, self.head.replace(EARLY, "early")
        self._forced = self._gather(self._forced) if self._dropped else self._all_forced
        n_tokens, _ = self._n_tokens, self._batch  # this order keeps the bytes of earlier files
        kept_of = [n_kept(keep, n) for n in range(POSITIONS + 1)]
        k = nodes.add("Gather", [nodes.ints(f"{at}/kept_of", *kept_of), n_tokens], f"{at}/k")
        importance = self._importance(early, at)
        kept = f"{at}/kept"
        nodes.add_many(
            "TopK", [importance, k], [f"{kept}/importance", kept], axis=0, largest=1, sorted=0
        )
        self._dropped.append((early, self._rows(kept)))
        x, self.padding = self._gather(x, width), self._gather(self.padding, 1)
        self.kept = self._gather(self.kept) if self.kept else kept
        return x

    def restore(self, logits: str) -> str:
        """Return logits (S, B, 2): those of what is left (K, B, 2), the last early ones of all others."""
        for early, rows in reversed(self._dropped):
            logits = self._restored(early, logits, rows)
        return logits

    @cached_property
    def _all_forced(self) -> str:  # (S, B)
        bonus = self._nodes.constant("early/first", self._bonus)
        return self._nodes.add("Gather", [bonus, self._places], "early/forced")

    @cached_property
    def _n_tokens(self) -> str:
        return self._nodes.add("Shape", [self._all_forced], "early/n_tokens", start=0, end=1)

    @cached_property
    def _batch(self) -> str:
        return self._nodes.add("Shape", [self._all_forced], "batch", start=1, end=2)

    @cached_property
    def _windows(self) -> str:
        nodes = self._nodes
        scalar = nodes.add("Squeeze", [self._batch], "batch/scalar")
        zero, one = (nodes.constant(f"{n}/scalar", np.array(n, np.int64)) for n in (0, 1))
        return nodes.add("Range", [zero, scalar, one], "windows")

    def _importance(self, early: str, at: str) -> str:
        """Return (K, B); padding counts less than any token, also among the first."""
        nodes = self._nodes
        best = nodes.add("ReduceMax", [early], f"{at}/best", axes=[-1], keepdims=0)
        last = nodes.number("early/last", -2 * FIRST)
        last = nodes.add("Mul", [self.padding, last], f"{at}/padding")
        last = nodes.add("Squeeze", [last, nodes.ints("minus_one", -1)], f"{at}/padding/flat")
        return nodes.add("Sum", [best, self._forced, last], f"{at}/importance")

    def _rows(self, kept: str) -> str:  # (K', B) -> (K', B)
        """Return token * B + window, for each kept token of each window."""
        windows = self._windows
        first = self._nodes.add("Mul", [kept, self._batch], f"{kept}/first")
        return self._nodes.add("Add", [first, windows], f"{kept}/rows")

    def _gather(self, x: str, *width: int) -> str:  # (K, B, ..) -> (K', B, ..)
        """Return the part of x that went on at the last drop."""
        nodes, (_, rows) = self._nodes, self._dropped[-1]
        name = "/".join(["flat", *map(str, width)])
        flat = nodes.add("Reshape", [x, nodes.ints(name, -1, *width)], f"{x}/flat")
        return nodes.add("Gather", [flat, rows], f"{x}/kept")

    def _restored(self, early: str, logits: str, rows: str) -> str:
        nodes, at = self._nodes, rows.removesuffix("/kept/rows")
        end = at.replace("early", "restored")
        shape = nodes.add("Shape", [early], f"{at}/shape")
        flat = nodes.add("Reshape", [early, nodes.ints("early/pairs", -1, 2)], f"{at}/flat")
        rows = nodes.add("Unsqueeze", [rows, nodes.ints("minus_one", -1)], f"{rows}/each")
        mixed = nodes.add("ScatterND", [flat, rows, logits], f"{end}/flat")
        return nodes.add("Reshape", [mixed, shape], end)
