"""A tokenizer with a cache of words, and a cache of contexts: text to token ids and offsets. Thread-safe.

The library does all the tokenizing. Most words of a text occurred before; a look-up takes a fraction of the time of
tokenizing them again.
Text is data: the name of a special token (`[SEP]`) written in a text is read as its characters.
Knows no questions and no windows. Texts are kept in memory while they are used, and never written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock

from cachetools import LRUCache
from tokenizers import Tokenizer

from gateway.domain import Ints
from gateway.errors import RepositoryError

MAX_CACHED_CHARS = 1_000_000  # of all contexts together; about 10 MB with their tokens, in English
ENTRY_CHARS = 80  # what an entry takes beside its text and tokens, in characters: some 800 bytes
MAX_REMEMBERED_CHARS = 400_000  # of all words together, some 60,000; then the cache is cleared

# White space at which these tokenizers split, whatever stands on either side.
_WORD = re.compile(r"[^ \t\n\r]+")
_SPLITTING = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
_LOCAL = ("BertNormalizer", "Lowercase")  # normalizers that never look across white space

Pieces = list[tuple[int, int, int]]  # of each token: id, begin and end in the word


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text, without special ones; offsets count its code points.

    A token of white space alone begins where it ends.
    """

    ids: list[int]
    begins: list[int]
    ends: list[int]


class WordMemory:
    """Tokenizes as the library does, with a cache of words. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, max_chars: int = MAX_REMEMBERED_CHARS) -> None:
        """Has the tokenizer read special tokens' names as plain text from now on.

        Raises: RepositoryError when it cannot.
        """
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._unknown_for = _unknown_for_special(tokenizer)
        self._max_chars = max_chars
        self._by_word = splits_at_white_space(tokenizer)
        self._known: dict[str, Pieces] = {}
        self._chars = 0

    def tokens_of(self, text: str) -> Tokens:
        """Return the library's tokens of the text, without special tokens."""
        if not self._by_word or len(text) > self._max_chars:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            offsets = [_trimmed(text, begin, end) for begin, end in encoding.offsets]
            ids = [self._unknown_for.get(i, i) for i in encoding.ids]
            return Tokens(ids, [b for b, _ in offsets], [e for _, e in offsets])
        known = self._knowing(_WORD.findall(text))
        ids, begins, ends = list[int](), list[int](), list[int]()
        for found in _WORD.finditer(text):
            at = found.start()
            for token, begin, end in known[found[0]]:
                ids.append(token)
                begins.append(at + begin)
                ends.append(at + end)
        return Tokens(ids, begins, ends)

    def _knowing(self, words: Iterable[str]) -> dict[str, Pieces]:
        """Return the cache after adding these words."""
        known = self._known
        new = {word for word in words if word not in known}
        if not new:
            return known
        n_chars = sum(map(len, new))
        if self._chars + n_chars > self._max_chars:
            known = self._known = {}  # other threads may still read the old dict
            new, self._chars = set(words), 0
            n_chars = sum(map(len, new))
        known.update(self._learn(list(new)))
        self._chars += n_chars
        return known

    def _learn(self, words: list[str]) -> dict[str, Pieces]:
        encoding = self._tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False)
        found: dict[str, Pieces] = {word: [] for word in words}
        for token, word, (begin, end) in zip(
            encoding.ids, encoding.word_ids, encoding.offsets, strict=True
        ):
            assert word is not None, "only special tokens belong to no word"
            found[words[word]].append((self._unknown_for.get(token, token), begin, end))
        return found


def _trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """Return the place of a token without the white space that some tokenizers count to it."""
    piece = text[begin:end]
    begin += len(piece) - len(piece.lstrip())
    return begin, begin + len(piece.strip())


def splits_at_white_space(tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a text are those of its words, one after the other."""
    how = json.loads(tokenizer.to_str())
    splitting, normalizer = how.get("pre_tokenizer") or {}, how.get("normalizer")
    added = [t for t in how.get("added_tokens") or [] if not t["special"]]
    return (
        splitting.get("type") in _SPLITTING
        and (normalizer is None or normalizer.get("type") in _LOCAL)
        and not any(t["lstrip"] or t["rstrip"] or _WORD.sub("", t["content"]) for t in added)
    )


def _unknown_for_special(tokenizer: Tokenizer) -> dict[int, int]:
    """Return the id of the unknown token for every special one that a vocabulary may spell out.

    A model without an unknown token builds all text from bytes or characters; it is asked.
    Raises: RepositoryError when its own vocabulary finds a special token in plain text.
    """
    model = json.loads(tokenizer.to_str())["model"]
    special = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    unknown = model.get("unk_id")
    if unknown is None and model.get("unk_token"):
        unknown = tokenizer.token_to_id(model["unk_token"])
    if unknown is not None:
        return dict.fromkeys(special.keys() - {unknown}, unknown)
    for i, name in special.items():
        if i in tokenizer.encode(name, add_special_tokens=False).ids:
            raise RepositoryError(
                f"tokenizer.json: its model reads {name!r} in a text as a special token; give it an"
                " unknown token (unk_token), or a pre_tokenizer that splits the name"
            )
    return {}


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
    """The contexts used last, up to a number of characters: many questions over one tokenize it once."""

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
