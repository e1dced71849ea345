"""The floor under a rate of requests: contexts are drawn, and bring as many questions as they like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.certify.bounds import betting_floor, ratio_floor

DELTA, DRAWS, MOST = 0.1, 200, 16
Drawn = tuple[np.ndarray, np.ndarray, float]  # hits and counts (DRAWS, n), and the true ratio


def large_contexts_miss(rng: np.random.Generator, n: int) -> Drawn:
    """One context in ten has 16 questions, four in ten of them hits; the others have one, nine in ten."""
    large = rng.random((DRAWS, n)) < 0.1
    counts = np.where(large, 16, 1)
    hits = rng.binomial(counts, np.where(large, 0.4, 0.9))
    return hits, counts, (1.6 * 0.4 + 0.9 * 0.9) / (1.6 + 0.9)


def large_contexts_hit(rng: np.random.Generator, n: int) -> Drawn:
    """The other way round."""
    hits, counts, ratio = large_contexts_miss(rng, n)
    return counts - hits, counts, 1 - ratio


def contexts_are_of_one_mind(rng: np.random.Generator, n: int) -> Drawn:
    """All questions of a context are hits, or none: the strongest dependence there is."""
    counts = rng.integers(1, MOST + 1, (DRAWS, n))
    return counts * (rng.random((DRAWS, n)) < 0.6), counts, 0.6


def few_questions_count(rng: np.random.Generator, n: int) -> Drawn:
    """Four contexts in five hold none."""
    counts = rng.binomial(1, 0.2, (DRAWS, n))
    return rng.binomial(counts, 0.5), counts, 0.5


def as_in_the_data(rng: np.random.Generator, n: int) -> Drawn:
    """Up to 10 questions, rates of contexts that vary."""
    counts = rng.integers(0, 11, (DRAWS, n))
    return rng.binomial(counts, rng.beta(4, 2, (DRAWS, n))), counts, 2 / 3


WORLDS = (
    *(large_contexts_miss, large_contexts_hit, contexts_are_of_one_mind),
    *(few_questions_count, as_in_the_data),
)


@pytest.mark.parametrize("n", [40, 100])
@pytest.mark.parametrize("world", WORLDS)
def test_the_floor_is_wrong_no_more_often_than_delta(
    world: Callable[[np.random.Generator, int], Drawn], n: int
) -> None:
    """However unequal contexts are, and however few questions count."""
    hits, counts, ratio = world(np.random.default_rng(3), n)
    floors = np.array([ratio_floor(h, c, MOST, DELTA) for h, c in zip(hits, counts, strict=True)])
    assert (floors > ratio).mean() <= DELTA + 0.03
    assert floors.mean() > 0


def test_a_mean_over_contexts_is_no_floor_under_the_rate_of_requests() -> None:
    """Why it takes a bound of its own: where large contexts miss, nearly every such floor is wrong."""
    hits, counts, ratio = large_contexts_miss(np.random.default_rng(3), 400)
    means = [betting_floor(h / c, DELTA) for h, c in zip(hits, counts, strict=True)]
    assert np.mean(np.array(means) > ratio) > 0.9


def test_the_floor_comes_near_with_many_contexts() -> None:
    """A bound that never fails because it is too low would watch nothing."""
    hits, counts, ratio = as_in_the_data(np.random.default_rng(4), 1000)
    assert ratio_floor(hits[0], counts[0], MOST, DELTA) == pytest.approx(ratio, abs=0.05)


@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)).map(sorted), min_size=1))
def test_the_floor_never_exceeds_the_rate_that_was_seen(contexts: list[list[int]]) -> None:
    """A lower bound, whatever was seen; with nothing seen there is none."""
    hits, counts = np.array(contexts).T
    if not counts.any():
        with pytest.raises(ValueError, match="no values to bound"):
            ratio_floor(hits, counts, MOST, DELTA)
        return
    assert 0 <= ratio_floor(hits, counts, MOST, DELTA) <= hits.sum() / counts.sum() + 1e-9


@pytest.mark.parametrize(
    ("hits", "counts", "message"),
    [([1], [17], "^counts must be at most 16$"), ([3], [2], "between 0"), ([-1], [2], "between 0")],
)
def test_counts_that_the_bound_does_not_hold_for_are_refused(
    hits: list[int], counts: list[int], message: str
) -> None:
    """More questions than were said to be the most would win the gambler more than is fair."""
    with pytest.raises(ValueError, match=message):
        ratio_floor(np.array(hits), np.array(counts), MOST, DELTA)
