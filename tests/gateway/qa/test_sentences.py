"""The sentence around an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.qa.sentences import MAX_CHARS, sentence_around
from tests.texts import TEXT

TEXT_OF_MANY = (
    'Dr. J. Smith lived in the U.S. for years. "He left in 1066." Then what? He paid 3.5 francs, e.g. this.'
    "\n\nA heading\n\n東京は日本の首都。大阪は違う。 It ends…  here"
)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("Smith", "Dr. J. Smith lived in the U.S. for years."),
        ("1066", '"He left in 1066."'),
        ("what", "Then what?"),
        ("3.5", "He paid 3.5 francs, e.g. this."),
        ("heading", "A heading"),
        ("日本", "東京は日本の首都。"),
        ("here", "It ends…  here"),
        ('1066." Then', '"He left in 1066." Then what?'),
    ],
)
def test_it_is_the_sentence_a_reader_sees(answer: str, sentence: str) -> None:
    """Abbreviations, numbers, quotes and blank lines are where simple splitting fails."""
    start = TEXT_OF_MANY.index(answer)
    begin, end = sentence_around(TEXT_OF_MANY, start, start + len(answer))
    assert TEXT_OF_MANY[begin:end] == sentence


@given(TEXT, st.data())
def test_it_always_holds_the_answer(text: str, data: st.DataObject) -> None:
    """Whatever the text is."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    begin, close = sentence_around(text, start, end)
    assert 0 <= begin <= start <= end <= close <= len(text)


def test_a_text_without_an_end_is_cut() -> None:
    """A table of a megabyte is no sentence."""
    begin, end = sentence_around("x" * 100_000, 50_000, 50_001)
    assert (begin, end) == (50_000 - MAX_CHARS, 50_001 + MAX_CHARS)


@pytest.mark.timeout(60)
def test_a_row_of_dots_costs_its_length() -> None:
    """Contents pages and hostile texts hold rows of them; looked at from every dot, this row takes hours."""
    row = "." * 300_000
    assert sentence_around(row, 0, len(row)) == (0, len(row))
