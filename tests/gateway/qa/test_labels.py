"""Texts to classify as one window, and the label of their logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.schema import Decoding
from gateway.domain import Question, Texts
from gateway.errors import EmptyText, MalformedText
from gateway.qa import labels
from gateway.qa.codec import MAX_TOKENS, SpanEncoder
from tests.fakes import encoder

CLS, SEP = 101, 102


def words(n: int) -> str:
    """Return a text of so many tokens."""
    return "river " * n


def test_a_pair_is_framed_as_a_question_with_its_context() -> None:
    """A model that reads questions reads pairs in the same form."""
    pair = encoder().encode_texts(Texts("Who swims?", "A fish swims."))
    question = encoder().encode(Question("Who swims?", "A fish swims."))
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert np.array_equal(getattr(pair, name), getattr(question, name))
    assert (pair.n_tokens, pair.is_cut) == (question.n_tokens, False)


def test_one_text_has_one_separator_and_one_type() -> None:
    """The form that every pretrained encoder knows: [CLS] text [SEP]."""
    window = encoder().encode_texts(Texts("A fish swims."))
    ids = window.input_ids[0, : window.n_tokens].tolist()
    assert (ids[0], ids[-1], ids.count(SEP)) == (CLS, SEP, 1)
    assert not window.token_type_ids.any()
    assert window.attention_mask.sum() == window.n_tokens == len(ids)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(500, 10, (371, 10)), (10, 500, (10, 371)), (500, 500, (191, 190)), (191, 400, (191, 190))],
)
def test_the_longer_text_is_cut(first: int, second: int, kept: tuple[int, int]) -> None:
    """A short premise beside a long one says most of what there is to say."""
    window = encoder().encode_texts(Texts(words(first), words(second)))
    types = window.token_type_ids[0]
    assert (int((types == 0).sum()) - 2, int((types == 1).sum()) - 1) == kept
    assert (window.is_cut, window.n_tokens) == (True, MAX_TOKENS)


@given(st.integers(1, 900), st.integers(0, 900), st.sampled_from([32, 96, MAX_TOKENS]))
def test_a_window_is_never_longer_than_it_may_be(first: int, second: int, longest: int) -> None:
    """Nothing is cut that fits, and what is cut fills the window."""
    resized = RESIZED[longest]
    pair = words(second) if second else None
    window = resized.encode_texts(Texts(words(first), pair))
    n_whole = first + second + (3 if second else 2)
    assert window.n_tokens == min(n_whole, longest)
    assert window.is_cut is (n_whole > longest)
    assert window.input_ids[0, window.n_tokens - 1] == SEP


def test_of_a_long_text_only_a_prefix_is_tokenized() -> None:
    """The rest is cut, and would hold up the event loop for a third of a second."""
    long = " ".join(f"river{n}" for n in range(20_000))
    short = " ".join(f"river{n}" for n in range(MAX_TOKENS))
    known = encoder()
    whole, cut = known.encode_texts(Texts(short)), known.encode_texts(Texts(long))
    assert np.array_equal(whole.input_ids, cut.input_ids)
    words_seen, _ = known.cached_chars
    assert words_seen < 10 * MAX_TOKENS * 8


RESIZED: dict[int, SpanEncoder] = {n: encoder().resized(n) for n in (32, 96, MAX_TOKENS)}


def test_a_text_that_cannot_be_read_is_named() -> None:
    """The error names the text to change."""
    with pytest.raises(EmptyText, match="text_pair"):
        encoder().encode_texts(Texts("a", " \u200b"))
    with pytest.raises(MalformedText, match="text: not valid Unicode"):
        encoder().encode_texts(Texts("\ud800"))


def test_labels_come_by_their_probability() -> None:
    """The first is the answer, and its probability the score that a cascade compares."""
    found = labels.decode(np.array([0, 2, 1], np.float32), "abc", Decoding(temperature=2.0))
    assert [label for label, _ in found.scores] == ["b", "c", "a"]
    assert (found.label, found.score) == found.scores[0]
    assert sum(p for _, p in found.scores) == pytest.approx(1)
    assert found.score == pytest.approx(1 / (1 + np.exp(-0.5) + np.exp(-1)))


def test_large_logits_do_not_overflow() -> None:
    """A temperature near nought makes a sure answer, not a NaN."""
    found = labels.decode(np.array([1e5, -1e5], np.float32), "ab", Decoding(temperature=0.01))
    assert (found.label, found.score) == ("a", 1.0)
