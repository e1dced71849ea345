"""From a teacher's tokens to places in the text, and from places to a student's tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.teachers.mapping import (
    END,
    NO_ANSWER,
    START,
    TargetRow,
    best_span,
    is_cut,
    onto_tokens,
    spread_of,
)
from optimizer.teachers.windows import TeacherWindow

FAR = -30.0


def window(begins: list[int], ends: list[int]) -> TeacherWindow:
    """Return a window of a class token, a question token and these tokens of the context."""
    places = np.array([[0, 0, *begins], [0, 0, *ends]], np.int32)
    n = places.shape[1]
    return TeacherWindow(
        np.zeros(n, np.int32), np.zeros(n, np.int8), places[0], places[1], places[0] < places[1], 0
    )


def logits(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def row(begins: list[int], ends: list[int], low: int = 0, high: int = 100) -> TargetRow:
    """Return a row whose context begins at token 5."""
    tokens = np.arange(5, 5 + len(begins))
    return TargetRow(tokens, np.array(begins), np.array(ends), low, high)


def test_question_tokens_have_no_share() -> None:
    """An answer lies in the context, or there is none."""
    found = spread_of([window([0], [4])], [logits(0, 9, 0)], [logits(0, 9, 0)])
    assert found.places[START, :2].tolist() in ([0, NO_ANSWER], [NO_ANSWER, 0])
    assert found.shares[START, :2].tolist() == [0.5, 0.5]


def test_a_place_in_two_windows_counts_once_by_its_larger_score() -> None:
    """As in decoding; the smaller of the windows' no-answer scores counts."""
    windows = [window([0, 5], [4, 9]), window([5, 10], [9, 14])]
    found = spread_of(
        windows,
        [logits(3, 0, FAR, 1), logits(0, 0, 2, FAR)],
        [logits(3, 0, FAR, 1), logits(0, 0, 2, FAR)],
    )
    assert found.places[START, :2].tolist() == [5, NO_ANSWER]
    assert found.shares[START, 0] == pytest.approx(np.exp(2) / (np.exp(2) + 1), abs=1e-3)


def test_tokens_of_one_character_count_together() -> None:
    """Byte-level tokens of an emoji all begin at the same place."""
    found = spread_of([window([3, 3], [4, 4])], [logits(0, 0, 0, 0)], [logits(0, 0, 0, 0)])
    assert found.places[START, 0] == 3
    assert found.shares[START, 0] == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.parametrize(
    ("place", "side", "token"),
    [
        (0, START, 5),
        (2, START, 5),  # inside a token of the student
        (4, START, 6),  # in white space: the token after it
        (5, START, 6),
        (4, END, 5),
        (5, END, 5),  # in white space: the token before it
        (7, END, 6),
        (NO_ANSWER, START, 0),
        (NO_ANSWER, END, 0),
    ],
)
def test_a_place_belongs_to_the_token_that_holds_it(place: int, side: int, token: int) -> None:
    """The student's tokens may be longer or shorter than the teacher's."""
    assert onto_tokens(np.array([place]), side, row([0, 5], [4, 9]))[0] == token


def test_what_lies_in_another_window_is_no_answer_here() -> None:
    """A row whose window does not hold the answer learns to say so."""
    part = row([10, 15], [14, 19], low=10, high=19)
    assert onto_tokens(np.array([5, 19, 30]), START, part).tolist() == [0, 0, 0]
    assert onto_tokens(np.array([5, 10, 30]), END, part).tolist() == [0, 0, 0]
    assert is_cut((2, 5), part) is None


@pytest.mark.parametrize(
    ("span", "cut"), [((0, 9), False), ((5, 9), False), ((0, 7), True), ((2, 4), True)]
)
def test_a_span_inside_a_token_is_cut(span: tuple[int, int], *, cut: bool) -> None:
    """Such an answer the student cannot give."""
    assert is_cut(span, row([0, 5], [4, 9])) is cut


def test_a_span_does_not_end_before_it_starts() -> None:
    """The best start and the best end need not fit together."""
    found = spread_of([window([0, 5], [4, 9])], [logits(FAR, 0, 1, 2)], [logits(FAR, 0, 2, 1)])
    assert best_span(found) in ((0, 4), (5, 9))


def test_no_answer_is_compared_with_the_best_span() -> None:
    """By the product of start and end, as a decoder adds logits."""
    asked = [window([0], [4])]
    assert best_span(spread_of(asked, [logits(2, 0, 1)], [logits(2, 0, 1)])) is None
    assert best_span(spread_of(asked, [logits(1, 0, 2)], [logits(1, 0, 2)])) == (0, 4)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.data())
def test_a_token_of_both_maps_onto_itself(lengths: list[int], data: st.DataObject) -> None:
    """Where teacher and student have the same tokens nothing is lost."""
    stops = np.cumsum(lengths).tolist()
    begins = [0, *stops[:-1]]
    same = row(begins, stops, high=stops[-1])
    i = data.draw(st.integers(0, len(lengths) - 1))
    j = data.draw(st.integers(i, len(lengths) - 1))
    assert onto_tokens(np.array([begins[i]]), START, same)[0] == 5 + i
    assert onto_tokens(np.array([stops[j]]), END, same)[0] == 5 + j
    assert is_cut((begins[i], stops[j]), same) is False
