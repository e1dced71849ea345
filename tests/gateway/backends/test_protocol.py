"""What a model server sends is read as logits, or is its error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.protocol import LARGEST_LOGIT, logits_of
from gateway.catalog.schema import Decoding
from gateway.domain import Question
from gateway.errors import InvalidLogits
from gateway.qa import codec
from tests.fakes import CONTEXT, QUESTION, encoder

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT, top_k=20)
WINDOWS = encoder().encode(EXAMPLE_QUESTION)
SHAPE = WINDOWS.input_ids.shape
ODD = st.sampled_from(
    [*(np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0, LARGEST_LOGIT, 1e9, -1e9, 9e5, 0.0)]
) | st.floats(width=32)


@given(values=st.lists(st.tuples(st.integers(0, 2 * SHAPE[1] - 1), ODD), max_size=8))
def test_any_numbers_give_an_answer_with_a_score_or_an_error(
    values: list[tuple[int, float]],
) -> None:
    """A score of NaN, or of 1 for an answer read from infinities, is a lie."""
    logits = np.zeros((2, *SHAPE), np.float32)
    for at, value in values:
        logits.reshape(-1)[at] = value
    usable = bool((np.abs(logits) < LARGEST_LOGIT).all())
    if not usable:
        with pytest.raises(InvalidLogits, match=r"^small: "):
            logits_of("small", WINDOWS, *logits)
        return
    found = logits_of("small", WINDOWS, *logits)
    answer = codec.decode(WINDOWS, found, EXAMPLE_QUESTION, Decoding())
    assert 0 <= answer.score <= 1
    assert 0 <= answer.no_answer_probability <= 1
    for span in answer.alternatives:
        assert 0 <= span.probability <= 1


@pytest.mark.parametrize("shape", [(1,), (2, SHAPE[1]), (1, SHAPE[1] - 1), (0, SHAPE[1])])
def test_logits_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    """They belong to other windows, or to none."""
    right = np.zeros(SHAPE, np.float32)
    with pytest.raises(InvalidLogits, match="shape"):
        logits_of("small", WINDOWS, np.zeros(shape, np.float32), right)
