"""A question and its context in a teacher's own tokens, each with its place in the context's text.

Makes no assumption of the family: the special tokens come from the tokenizer, first or last.
Legend: S tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

SHORTEST = 64  # tokens of a window that can hold a question and some context
OVERLAP = 128  # tokens that neighbouring windows share, at most a third of a window
CONTEXT_ROOM = 24  # tokens of the context, at least; a question that leaves less is not asked
REMEMBERED = 512  # contexts, as several questions in a row are asked of one

_Places = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids, begins, ends of a context's tokens


@dataclass(frozen=True, slots=True)
class TeacherWindow:
    """One window; offsets are code points of the context, 0 for what is not of the context."""

    input_ids: np.ndarray  # (S,) int32
    token_type_ids: np.ndarray  # (S,) int8
    begins: np.ndarray  # (S,) int32
    ends: np.ndarray  # (S,) int32
    is_context: np.ndarray  # (S,) bool
    null: int  # the token whose scores say that there is no answer


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens around a pair, with the types of every part."""

    ids: tuple[tuple[int, ...], ...]  # before the question, between, after the context
    types: tuple[tuple[int, ...], ...]  # likewise
    question_type: int
    context_type: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Frame:
        pair = tokenizer.encode("a", "a")
        sequences = list(pair.sequence_ids)
        first, second = sequences.index(0), sequences.index(1)
        after_first = len(sequences) - 1 - sequences[::-1].index(0)
        after_second = len(sequences) - 1 - sequences[::-1].index(1)
        parts = (slice(0, first), slice(after_first + 1, second), slice(after_second + 1, None))
        return cls(
            tuple(tuple(pair.ids[part]) for part in parts),
            tuple(tuple(pair.type_ids[part]) for part in parts),
            pair.type_ids[first],
            pair.type_ids[second],
        )

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.ids))

    def null(self, n_tokens: int) -> int:
        """Return the class token's place: the first token, or the last where no special one leads."""
        return n_tokens - 1 if self.ids[2] and not self.ids[0] else 0


class WindowEncoder:
    """Cuts questions into windows of a teacher's tokens."""

    def __init__(self, tokenizer: Tokenizer, n_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._n_tokens = n_tokens
        self._frame = _Frame.of(tokenizer)
        self._contexts: dict[str, _Places] = {}

    def windows(self, question: str, context: str) -> list[TeacherWindow]:
        """Return the windows that together hold the whole context; none for a question too long."""
        question_ids = self._tokenizer.encode(question, add_special_tokens=False).ids
        ids, begins, ends = self._remembered(context)
        room = self._n_tokens - self._frame.n_tokens - len(question_ids)
        if room < min(CONTEXT_ROOM, max(len(ids), 1)):
            return []
        step = room - min(OVERLAP, self._n_tokens // 3, room // 2)
        return [
            self._window(question_ids, ids[part], begins[part], ends[part])
            for part in _parts(len(ids), room, step)
        ]

    def _remembered(self, context: str) -> _Places:
        if context not in self._contexts:
            if len(self._contexts) >= REMEMBERED:
                self._contexts.clear()
            self._contexts[context] = self._encode(context)
        return self._contexts[context]

    def _encode(self, text: str) -> _Places:
        encoding: Encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = [_trimmed(text, begin, end) for begin, end in encoding.offsets]
        places = np.asarray(offsets, np.int32).reshape(-1, 2)
        return np.asarray(encoding.ids, np.int32), places[:, 0], places[:, 1]

    def _window(
        self, question_ids: list[int], ids: np.ndarray, begins: np.ndarray, ends: np.ndarray
    ) -> TeacherWindow:
        frame = self._frame
        before, between, after = frame.ids
        first = len(before) + len(question_ids) + len(between)
        n_tokens = first + len(ids) + len(after)
        types = [
            *(*frame.types[0], *[frame.question_type] * len(question_ids), *frame.types[1]),
            *(*[frame.context_type] * len(ids), *frame.types[2]),
        ]
        places = np.zeros((2, n_tokens), np.int32)
        places[:, first : first + len(ids)] = begins, ends
        return TeacherWindow(
            np.asarray([*before, *question_ids, *between, *ids, *after], np.int32),
            np.asarray(types, np.int8),
            places[0],
            places[1],
            places[0] < places[1],
            frame.null(n_tokens),
        )


def _parts(n: int, room: int, step: int) -> Iterator[slice]:
    """Return slices of up to `room` of n tokens, each `step` after the last, to the end."""
    for first in range(0, max(n - room, 0) + step, step):
        yield slice(first, min(first + room, n))
        if first + room >= n:
            return


def _trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """Return the place of a token without the white space that some tokenizers count to it."""
    piece = text[begin:end]
    begin += len(piece) - len(piece.lstrip())
    return begin, begin + len(piece.strip())
