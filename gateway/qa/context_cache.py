"""The tokens of recent contexts: many questions over one context tokenize it once. Thread-safe.

Knows no questions and no windows. Texts are kept in memory while they are used, and never written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from cachetools import LRUCache

from gateway.domain import Ints

MAX_CACHED_CHARS = 1_000_000  # of all contexts together; about 10 MB with their tokens, in English
ENTRY_CHARS = 80  # what an entry takes beside its text and tokens, in characters: some 800 bytes


@dataclass(frozen=True, slots=True)
class ContextTokens:
    """The tokens of a context; offsets count its code points and cut no character that a reader sees."""

    ids: Ints  # (N,)
    begins: Ints  # (N,)
    ends: Ints  # (N,)


@dataclass(slots=True)
class _Entry:
    n_chars: int  # with those of the entry itself
    tokens: ContextTokens | None = None  # None: they are being made
    lock: Lock = field(default_factory=Lock)


class ContextCache:
    """The contexts used last, up to a number of characters."""

    def __init__(
        self, tokenize: Callable[[str], ContextTokens], max_chars: int = MAX_CACHED_CHARS
    ) -> None:
        self._tokenize = tokenize
        self._lock = Lock()
        self._entries: LRUCache[str, _Entry] = LRUCache(max_chars, lambda entry: entry.n_chars)

    def tokens_of(self, text: str) -> ContextTokens:
        """Return the tokens of a context; threads that ask for one at the same time tokenize it once."""
        entry = self._entry(text)
        with entry.lock:
            if entry.tokens is None:
                entry.tokens = self._tokenize(text)
            return entry.tokens

    def _entry(self, text: str) -> _Entry:
        with self._lock:
            entry = self._entries.get(text)
            if entry is None:
                entry = _Entry(len(text) + ENTRY_CHARS)
                if entry.n_chars <= self._entries.maxsize:
                    self._entries[text] = entry
            return entry
