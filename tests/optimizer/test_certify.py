"""Floors that hold: the betting bound keeps its promise and is tighter than Hoeffding's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.certify import betting_floor, hoeffding_floor

DELTA = 0.1


@pytest.mark.parametrize("mean", [0.3, 0.6, 0.9])
def test_the_floor_is_wrong_no_more_often_than_delta(mean: float) -> None:
    """A certificate at confidence 1 - delta may fail in a share delta of studies, not more."""
    rng = np.random.default_rng(5)
    draws = rng.beta(4 * mean, 4 * (1 - mean), (400, 300))
    failures = sum(betting_floor(values, DELTA) > mean for values in draws)
    assert failures / len(draws) <= DELTA + 0.03


def test_the_floor_is_tighter_than_hoeffdings() -> None:
    """Knowing the variance pays: the values of F1 over contexts are far from coin flips."""
    values = np.random.default_rng(1).beta(6, 4, 800)
    assert hoeffding_floor(values, DELTA) < betting_floor(values, DELTA) < values.mean()


def test_more_contexts_give_a_tighter_floor() -> None:
    """What is certified grows with the evidence."""
    values = np.random.default_rng(2).beta(6, 4, 2000)
    gaps = [values[:n].mean() - betting_floor(values[:n], DELTA) for n in (100, 500, 2000)]
    assert gaps == sorted(gaps, reverse=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_floor_never_exceeds_the_mean(values: list[float]) -> None:
    """A lower bound lies below what was seen, whatever was seen."""
    found = betting_floor(np.array(values), DELTA)
    assert 0 <= found <= np.mean(values) + 1e-6


def test_values_outside_the_unit_interval_are_refused() -> None:
    """The bound holds for values in [0, 1] only."""
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        betting_floor(np.array([0.5, 1.2]), DELTA)
