"""The caller's own threshold in place of the variant's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.catalog.schema import Decoding
from gateway.domain import Answer, Logits, Question
from gateway.qa import codec
from tests.fakes import CONTEXT, QUESTION, encoder

WEIGHTS = ((0.5, 0.4, 0.1), (0.5, 0.4, 0.1))  # the larger the margin, the surer
EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)


def answer(difference: float, threshold: float = 0.0) -> Answer:
    """Return the answer of a model whose no-answer score is this much above its best span's."""
    windows = encoder().encode(EXAMPLE_QUESTION)
    start = np.full(windows.input_ids.shape, -20.0, np.float32)
    start[0, int(np.flatnonzero(windows.is_context[0])[0])] = 0.0
    start[:, 0] = difference
    end = np.where(start == -20.0, -20.0, 0.0).astype(np.float32)
    return codec.decode(
        windows,
        Logits(start, end),
        EXAMPLE_QUESTION,
        Decoding(null_threshold=threshold, score_weights=WEIGHTS),
    )


def applied(given: Answer, **own: Any) -> Answer:
    return codec.decide_anew(given, Question(QUESTION, CONTEXT, **own))


@pytest.mark.parametrize(
    ("difference", "own", "text"),
    [
        (-2.0, {}, "The"),
        (2.0, {}, ""),
        (2.0, {"max_no_answer_probability": 1.0}, "The"),  # more than the variant would say
        (-2.0, {"max_no_answer_probability": 0.0}, ""),  # less
        (-2.0, {"min_score": 1.0}, ""),
        (-2.0, {"min_score": 0.0}, "The"),
        (2.0, {"min_score": 1.0}, ""),
        (2.0, {"min_score": 1.0, "max_no_answer_probability": 1.0}, ""),
    ],
)
def test_it_decides_whether_there_is_an_answer(
    difference: float, own: dict[str, float], text: str
) -> None:
    """Who can bear a wrong answer, or cannot, knows better than the certificate's threshold."""
    found = applied(answer(difference), **own)
    assert (found.text, found.start is None, found.end is None) == (text, not text, not text)


def test_an_answer_the_variant_withheld_scores_low() -> None:
    """The further beyond the variant's threshold, the less likely it is right."""
    near, far = (applied(answer(d), max_no_answer_probability=1.0).score for d in (0.5, 6.0))
    own = answer(-0.5).score
    assert own > near > far


@pytest.mark.parametrize(("difference", "most"), [(-2.0, 0.0), (2.0, 1.0)])
def test_the_other_decision_has_the_other_score(difference: float, most: float) -> None:
    """Whether the caller withholds an answer or asks for one."""
    given = answer(difference)
    found = applied(given, max_no_answer_probability=most)
    assert (found.text == "") != (given.text == "")
    assert (found.score, found.other_score) == (given.other_score, given.score)
    assert 0 < found.score < given.score < 1


def test_a_decision_of_the_variants_own_keeps_its_score() -> None:
    """The calibrated probability is of that decision."""
    given = answer(-2.0)
    assert applied(given, max_no_answer_probability=1.0, min_score=0.0) == given


def test_a_text_without_a_span_has_no_answer() -> None:
    """No threshold makes one."""
    none = Answer("", None, None, 0.5, 1.0)
    assert applied(none, max_no_answer_probability=1.0) == none
