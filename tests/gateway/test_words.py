"""The memory for words changes nothing: the library's own tokens, whatever the text."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from gateway.words import WordMemory, splits_at_white_space
from tests.fakes import TOKENIZER

TRAPS = st.sampled_from(
    [
        *("Normandy", "normandy,", "[SEP]", "x[MASK]y", "don't", "a" * 120, "U.S.A.", "1,000"),
        *(
            "\u0301",
            "e\u0301",
            "각",
            "日本",
            "🏛️",
            "İ",
            "ΑΣ",
            "\u00a0",
            "\u2028",
            "\x0b",
            "\x1c",
            "\ufffd",
        ),
    ]
)
TEXT = st.lists(TRAPS | st.text(max_size=12) | st.sampled_from(" \t\n\r"), max_size=40)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


@cache
def memory() -> WordMemory:
    return WordMemory(tokenizer())


def said(memory: WordMemory, text: str) -> list[tuple[int, tuple[int, int]]]:
    found = memory.tokens_of(text)
    return list(zip(found.ids, zip(found.begins, found.ends, strict=True), strict=True))


def expected(text: str) -> list[tuple[int, tuple[int, int]]]:
    encoding = tokenizer().encode(text, add_special_tokens=False)
    return list(zip(encoding.ids, encoding.offsets, strict=True))


@settings(max_examples=400, deadline=None)
@given(parts=TEXT, glue=st.sampled_from(["", " ", "\n"]))
def test_the_tokens_are_those_of_the_library(parts: list[str], glue: str) -> None:
    """Models were trained on the library's tokens: nothing may differ, seen before or not."""
    text = glue.join(parts)
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
