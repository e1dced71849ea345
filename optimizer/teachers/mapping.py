"""Where in a text a teacher's answer starts and ends, and the same in a student's tokens.

Pure: arrays in, arrays out. A distribution lies on places of the text, so it belongs to no
tokenizer: the start of a span is the code point at which it begins, its end the one after its last.
Only the K most probable places are kept; what the others had together is spread evenly.

Legend: W windows of a question, S tokens of one, P places, K kept places, N tokens of a student's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.teachers.windows import TeacherWindow

KEPT = 16  # K
NO_ANSWER, NOTHING = -1, -2  # a place that says there is no answer; one that is not used
START, END = 0, 1
CLS = 0  # the student's token that says there is no answer


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution over the places at which the answer starts, and one over those where it ends."""

    places: np.ndarray  # (2, K) int32
    shares: np.ndarray  # (2, K) float16, what is missing to 1 lies on other places

    @classmethod
    def unknown(cls) -> Spread:
        """Return that of a question which could not be asked."""
        return cls(np.full((2, KEPT), NOTHING, np.int32), np.zeros((2, KEPT), np.float16))


@dataclass(frozen=True, slots=True)
class TargetRow:
    """The part of a context that a student's training row holds, token by token."""

    tokens: np.ndarray  # (N,) int, their places in the row, ascending
    begins: np.ndarray  # (N,) code points of the context
    ends: np.ndarray  # (N,)
    low: int  # code points of the context that the row answers for: from here
    high: int  # to before here


def spread_of(
    windows: Sequence[TeacherWindow],
    starts: Sequence[np.ndarray],  # W of (S,) float32 logits
    ends: Sequence[np.ndarray],
) -> Spread:
    """Return a teacher's distributions over the whole context and "no answer".

    Logits of windows are compared as decoding does: of a place in several windows the largest
    counts, of their "no answer" scores the smallest.
    """
    null = min(
        range(len(windows)), key=lambda w: starts[w][windows[w].null] + ends[w][windows[w].null]
    )
    places, shares = Spread.unknown().places, Spread.unknown().shares
    for side, logits in ((START, starts), (END, ends)):
        where, score = _best_of_windows(windows, logits, side)
        where = np.append(where, NO_ANSWER)
        score = np.append(score, logits[null][windows[null].null])
        mass = np.exp(score - score.max())
        mass /= mass.sum()
        top = np.argsort(-mass, kind="stable")[:KEPT]
        places[side, : len(top)], shares[side, : len(top)] = where[top], mass[top]
    return Spread(places, shares)


def _best_of_windows(
    windows: Sequence[TeacherWindow], logits: Sequence[np.ndarray], side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return every place once, (P,), with its logit, (P,)."""
    found = [
        _by_place((w.begins if side == START else w.ends)[w.is_context], scores[w.is_context])
        for w, scores in zip(windows, logits, strict=True)
    ]
    if len(found) == 1:
        return found[0]
    where = np.concatenate([f[0] for f in found])
    score = np.concatenate([f[1] for f in found])
    distinct, which = np.unique(where, return_inverse=True)
    best = np.full(len(distinct), -np.inf)
    np.maximum.at(best, which, score)
    return distinct, best


def _by_place(where: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places once each; tokens of one character count together."""
    score = score.astype(np.float64)
    if np.all(where[1:] > where[:-1]):
        return where, score
    distinct, which = np.unique(where, return_inverse=True)
    together = np.full(len(distinct), -np.inf)
    np.logaddexp.at(together, which, score)
    return distinct, together


def onto_tokens(places: np.ndarray, side: int, row: TargetRow) -> np.ndarray:  # (..) -> (..)
    """Return the token of a student's row for each place; CLS for none and for places outside.

    A start belongs to the first token that ends after it, an end to the last that begins before.
    """
    found: np.ndarray
    if side == START:
        found = np.searchsorted(row.ends, places, side="right")
        outside = (places < row.low) | (places >= row.high)
    else:
        found = np.searchsorted(row.begins, places, side="left") - 1
        outside = (places <= row.low) | (places > row.high)
    if not len(row.tokens):
        return np.full(places.shape, CLS)
    tokens = row.tokens[np.clip(found, 0, len(row.tokens) - 1)]
    return np.where(outside, CLS, tokens)


def best_span(spread: Spread) -> tuple[int, int] | None:
    """Return where the teacher's most probable span begins and ends; None: it has no answer.

    The best pair of a start and an end after it, among the kept places.
    """
    chances = [s.astype(np.float64) for s in spread.shares]
    null = [chances[side][spread.places[side] == NO_ANSWER].sum() for side in (START, END)]
    start, end = spread.places
    pairs = np.where(start[:, None] < end[None, :], chances[0][:, None] * chances[1][None, :], 0.0)
    pairs[start < 0], pairs[:, end < 0] = 0.0, 0.0
    best = np.unravel_index(pairs.argmax(), pairs.shape)
    if pairs[best] <= null[0] * null[1]:
        return None
    return int(start[best[0]]), int(end[best[1]])


def is_cut(span: tuple[int, int], row: TargetRow) -> bool | None:
    """Say whether a span begins or ends inside a token of the row; None: it lies outside."""
    start, end = span
    if start < row.low or end > row.high or not len(row.tokens):
        return None
    first = np.searchsorted(row.ends, start, side="right")
    last = np.searchsorted(row.begins, end, side="left") - 1
    if first > last or last < 0:
        return True
    return bool(row.begins[first] != start or row.ends[last] != end)
