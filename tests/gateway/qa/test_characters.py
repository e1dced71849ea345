"""What a reader sees as one character, and whether there is any."""

from __future__ import annotations

import time

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.qa.characters import has_visible, long_clusters
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
