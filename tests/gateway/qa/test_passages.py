"""Windows over several passages, and the tokens of contexts that are kept."""

from __future__ import annotations

import threading
import tracemalloc
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain import PASSAGE_BREAK, Question
from gateway.errors import EmptyText
from gateway.qa.codec import SpanEncoder
from gateway.qa.token_cache import ENTRY_CHARS, ContextCache, ContextTokens
from tests.fakes import TOKENIZER, encoder
from tests.texts import TEXT

WORDS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=90)
SMALL = SpanEncoder(SpanEncoder.from_file(TOKENIZER).tokenizer, max_tokens=48, overlap=16)


def about(question: str, passages: list[str]) -> Question:
    sizes = (len(passage) + len(PASSAGE_BREAK) for passage in passages[:-1])
    starts = tuple(accumulate(sizes, initial=0))
    return Question(question, PASSAGE_BREAK.join(passages), passage_starts=starts)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS.map(" ".join), min_size=1, max_size=6))
def test_passages_are_read_as_each_alone(passages: list[str]) -> None:
    """No window sees two passages: an answer never depends on what stands beside its passage."""
    question = about("What is it?", passages)
    together = SMALL.encode(question)
    alone = [SMALL.encode(Question("What is it?", passage)) for passage in passages]
    rows = [(i, row) for i, each in enumerate(alone) for row in range(each.n_windows)]
    assert together.n_windows == len(rows)
    for at, (i, row) in enumerate(rows):
        n = int(alone[i].attention_mask[row].sum())
        assert (together.input_ids[at, :n] == alone[i].input_ids[row, :n]).all()
        assert not together.attention_mask[at, n:].any()
        inside = together.is_context[at]
        shifted = alone[i].offsets[row][alone[i].is_context[row]] + question.passage_starts[i]
        assert (together.offsets[at][inside] == shifted).all()


@given(st.lists(TEXT, min_size=1, max_size=6))
def test_a_joined_text_comes_apart_again(passages: list[str]) -> None:
    """The offsets of an answer are those of its passage, whatever the passages hold."""
    question = about("?", passages)
    found = [passage for _, passage in question.named_passages()]
    assert [each.text for each in found] == passages
    for i, (each, after) in enumerate(pairwise([*found, None])):
        assert each is not None
        last = len(question.context) if after is None else after.start - 1
        assert question.passage_at(each.start) == question.passage_at(max(each.start, last)) == i


def test_an_empty_passage_is_named() -> None:
    """Who sends a hundred looks for the one."""
    with pytest.raises(EmptyText, match=r"contexts\.1"):
        encoder().encode(about("Who?", ["one", " ", "three"]))


class Tokenize:
    """Counts the texts it is given; the first waits until it is let go."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, text: str) -> ContextTokens:
        self.texts.append(text)
        self.begun.set()
        assert self.go_on.wait(10)
        one = np.zeros(1, np.int64)
        return ContextTokens(one, one, one + len(text))


def test_a_context_is_tokenized_once() -> None:
    """Twenty questions over one book pay for one."""
    tokenize = Tokenize()
    cache = ContextCache(tokenize)
    found: list[ContextTokens] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.tokens_of("a" * 1_000)))
        for _ in range(3)
    ]
    threads[0].start()
    assert tokenize.begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    tokenize.go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(tokenize.texts) == 1
    assert found[0] is found[1] is found[2]


def test_contexts_are_kept_up_to_a_size() -> None:
    """Texts of callers must not fill the memory; the one used last stays."""
    tokenize = Tokenize()
    tokenize.go_on.set()
    long = "d" * (11 + ENTRY_CHARS)
    cache = ContextCache(tokenize, max_chars=10 + 2 * ENTRY_CHARS)
    for text in ("aaaa", "bbbb", "aaaa", "cccc", "aaaa", "bbbb", long, long):
        cache.tokens_of(text)
    assert tokenize.texts == ["aaaa", "bbbb", "cccc", "bbbb", long, long]


def test_short_contexts_take_no_more_memory_than_long_ones() -> None:
    """A request brings a hundred passages of a few characters, each with an entry of 800 bytes."""
    cache = ContextCache(
        lambda text: ContextTokens(*(np.full(1, len(text)) for _ in range(3))), max_chars=100_000
    )
    tracemalloc.start()
    for i in range(5_000):
        cache.tokens_of(str(i))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1_300_000


def test_a_context_that_fails_is_tried_again() -> None:
    """An error is not kept in its place."""
    outcomes = iter([ValueError("no"), None])

    def tokenize(text: str) -> ContextTokens:
        if (error := next(outcomes)) is not None:
            raise error
        return ContextTokens(*(np.zeros(1, np.int64),) * 3)

    cache = ContextCache(tokenize)
    with pytest.raises(ValueError, match="no"):
        cache.tokens_of("x")
    assert cache.tokens_of("x").ids.tolist() == [0]
