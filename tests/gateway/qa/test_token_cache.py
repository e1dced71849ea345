"""The memory for words changes nothing: the library's own tokens, whatever the text."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, models, pre_tokenizers

from gateway.errors import RepositoryError
from gateway.qa.token_cache import WordMemory, splits_at_white_space
from tests.fakes import TOKENIZER
from tests.texts import TEXT


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


@cache
def plain() -> Tokenizer:
    """Return the library's tokenizer without any special token: it can take nothing for one."""
    how = json.loads(TOKENIZER.read_text())
    return Tokenizer.from_str(json.dumps(how | {"added_tokens": [], "post_processor": None}))


@cache
def memory() -> WordMemory:
    return WordMemory(tokenizer())


def said(memory: WordMemory, text: str) -> list[tuple[int, tuple[int, int]]]:
    found = memory.tokens_of(text)
    return list(zip(found.ids, zip(found.begins, found.ends, strict=True), strict=True))


def expected(text: str) -> list[tuple[int, tuple[int, int]]]:
    encoding = plain().encode(text, add_special_tokens=False)
    return list(zip(encoding.ids, encoding.offsets, strict=True))


@settings(max_examples=400, deadline=None)
@given(text=TEXT)
def test_the_tokens_are_those_of_the_library(text: str) -> None:
    """Models were trained on the library's tokens: nothing may differ, seen before or not."""
    assert said(memory(), text) == expected(text)
    assert said(memory(), text) == expected(text)


def test_a_full_memory_begins_anew() -> None:
    """Callers choose the words: their number must not decide how much memory is held."""
    small = WordMemory(tokenizer(), max_chars=60)
    for i in range(40):
        text = f"word{i} and another{i} of many, word{i}"
        assert said(small, text) == expected(text)
        assert sum(map(len, small._known)) <= 60
    long = "a b " * 100
    assert said(small, long) == expected(long)


def test_a_tokenizer_that_sees_white_space_is_asked_for_the_whole_text() -> None:
    """Byte-level tokens hold the space before a word: words alone would be other tokens."""
    byte_level = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "Ġa": 2}, [("Ġ", "a")]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert not splits_at_white_space(byte_level)
    assert splits_at_white_space(tokenizer())
    assert list(WordMemory(byte_level).tokens_of("a a").ids) == [0, 2]


def test_a_vocabulary_that_spells_special_tokens_finds_none_in_a_text() -> None:
    """Pieces of a unigram model, and whole words, can be a special token's name."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("\u2581", -1.0), ("a", -2.0)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for made, special in ((unigram, "<s>"), (words, "[SEP]")):
        made.add_special_tokens([special])
        memory = WordMemory(made)
        for text in (special, f"a {special} a", f"a{special}a"):
            assert 1 not in memory.tokens_of(text).ids


def test_a_tokenizer_that_cannot_read_plain_text_is_refused() -> None:
    """The error is raised at load time, not at the first request."""
    made = Tokenizer(models.BPE({"<": 0, "s": 1, "<s": 2}, [("<", "s")]))
    made.add_special_tokens(["<s"])
    with pytest.raises(RepositoryError, match="'<s'"):
        WordMemory(made)
