"""What a reader sees as one character, whether there is any, and the sentence around an answer."""

from __future__ import annotations

import time

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.qa.boundaries import (
    MAX_SENTENCE_CHARS,
    has_visible,
    long_clusters,
    sentence_around,
)
from tests.texts import CLUSTERS, INVISIBLE, TEXT, UNREADABLE


def by_the_library(text: str) -> list[tuple[int, int]]:
    found = (cluster.span() for cluster in regex.finditer(r"\X", text))
    return [(a, b) for a, b in found if b - a > 1 and text[a:b] != "\r\n"]


@settings(max_examples=400, deadline=None)
@given(text=TEXT | st.lists(st.sampled_from([*CLUSTERS, "\r", "\n", "x"])).map("".join))
def test_clusters_are_those_of_the_library(text: str) -> None:
    """Looking only where characters can join must miss none."""
    assert long_clusters(text) == by_the_library(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u0301b", [(0, 2)]),
        (" \u0301", [(0, 2)]),
        ("\r\n\u0301", []),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\U0001f1fa", [(0, 2), (2, 4)]),
        ("\U0001f469\u200d\U0001f680!", [(0, 3)]),
        ("\u1112\u1161\u11ab\u1100\u1173", [(0, 3), (3, 5)]),
        ("\u0915\u094d\u0937", [(0, 3)]),
        ("\u0600a\u0301", [(0, 3)]),
        ("plain, cr\u00e8me, \u65e5\u672c, \ud55c\uad6d", []),
    ],
)
def test_clusters_follow_the_standard(text: str, expected: list[tuple[int, int]]) -> None:
    """Cases worked out by hand from UAX 29's rules GB3 to GB13."""
    assert long_clusters(text) == expected


@pytest.mark.parametrize(
    "text", ["\U0001f1e9", "\U0001f469\u200d", "e\u0301", "\u0915\u094d", "\u0301"]
)
def test_a_row_of_clusters_costs_its_length(text: str) -> None:
    """Callers choose the text: 16 times as much may take 16 times as long, not 256 times."""

    def cost_s(n: int) -> float:
        began = time.process_time()
        long_clusters(text * n)
        return time.process_time() - began

    short = min(cost_s(1_000) for _ in range(5))
    assert cost_s(16_000) < 80 * short + 0.02


@given(text=UNREADABLE)
def test_what_cannot_be_seen_is_nothing_to_read(text: str) -> None:
    """Spaces, controls, format characters and fillers, however many."""
    assert not has_visible(text)


@given(before=UNREADABLE, seen=st.sampled_from(["a", "\u0301", "日", "🏛", "\u0600", "-", "٣"]))
def test_one_character_to_be_seen_is_enough(before: str, seen: str) -> None:
    """It may be anything that leaves a mark, wherever it stands."""
    assert has_visible(before + seen)
    assert has_visible(seen + "".join(INVISIBLE))


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
    assert (begin, end) == (50_000 - MAX_SENTENCE_CHARS, 50_001 + MAX_SENTENCE_CHARS)


@pytest.mark.timeout(60)
def test_a_row_of_dots_costs_its_length() -> None:
    """Contents pages and hostile texts hold rows of them; looked at from every dot, this row takes hours."""
    row = "." * 300_000
    assert sentence_around(row, 0, len(row)) == (0, len(row))
