"""Pareto arithmetic against its definitions, by brute force."""

from __future__ import annotations

from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizer.study import pareto
from optimizer.study.pareto import Points

SIDE = 6  # whole numbers below this: many ties, and volumes that can be counted


def clouds(d: int, least: int = 0, most: int = 12) -> st.SearchStrategy[Points]:
    whole = st.integers(0, SIDE - 1).map(float)
    sizes = st.integers(least, most)
    return sizes.flatmap(lambda n: arrays(np.float64, (n, d), elements=whole))


def dominates(a: Points, b: Points) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(
        x < y for x, y in zip(a, b, strict=True)
    )


def counted(points: Points, d: int) -> int:
    """Return how many unit cubes below (SIDE, ...) some point dominates."""
    corners = product(range(SIDE), repeat=d)
    return sum(any((p <= np.array(corner)).all() for p in points) for corner in corners)


@given(clouds(3))
def test_the_pareto_front_is_what_nothing_dominates(points: Points) -> None:
    """The definition, word for word."""
    wanted = [not any(dominates(other, point) for other in points) for point in points]
    assert pareto.front(points).tolist() == wanted


@given(clouds(3))
def test_ranks_peel_one_pareto_front_after_the_other(points: Points) -> None:
    """A rank is the length of the longest chain of points, each dominating the next."""

    def rank(i: int) -> int:
        above = [j for j in range(len(points)) if dominates(points[j], points[i])]
        return 1 + max(map(rank, above)) if above else 0

    assert pareto.ranks(points).tolist() == [rank(i) for i in range(len(points))]


@pytest.mark.parametrize("d", [2, 3])
def test_the_hypervolume_is_exact(d: int) -> None:
    """Counted in unit cubes, ties and twins included."""

    @given(clouds(d))
    def holds(points: Points) -> None:
        assert pareto.hypervolume(points, [SIDE] * d) == pytest.approx(counted(points, d))

    holds()


@given(clouds(3, least=1))
def test_only_the_pareto_front_counts_for_the_hypervolume(points: Points) -> None:
    """What is dominated adds nothing."""
    whole = pareto.hypervolume(points, [SIDE] * 3)
    assert pareto.hypervolume(points[pareto.front(points)], [SIDE] * 3) == pytest.approx(whole)


def test_points_beyond_the_reference_add_nothing() -> None:
    """One that is worse than the reference somewhere must not make the volume negative."""
    points = np.array([[1.0, 1.0], [5.0, 0.0], [0.0, 2.0]])
    assert pareto.hypervolume(points, [2.0, 2.0]) == 1.0


def test_other_numbers_of_objectives_are_refused() -> None:
    """Better no number than a wrong one."""
    with pytest.raises(ValueError, match="4 objectives"):
        pareto.hypervolume(np.zeros((1, 4)), [1.0] * 4)


@given(clouds(3, least=1, most=7), st.integers(1, 8), st.randoms(use_true_random=False))
def test_a_subset_has_k_members_within_its_budget(points: Points, k: int, random: Random) -> None:
    """However large the rest is; and none exchanged for another would dominate more."""
    sizes = np.array([random.randint(1, 9) for _ in points], np.float64)
    k = min(k, len(points))
    budget = np.sort(sizes)[:k].sum() + random.randint(0, 9)
    taken = pareto.subset(points, k, sizes, budget).tolist()
    assert len(taken) == len(set(taken)) == k
    assert sizes[taken].sum() <= budget
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    reached = pareto.hypervolume(scaled[taken], [1.1] * 3)
    for out, new in product(range(k), set(range(len(points))) - set(taken)):
        other = [*taken[:out], new, *taken[out + 1 :]]
        if sizes[other].sum() <= budget:
            assert pareto.hypervolume(scaled[other], [1.1] * 3) <= reached + 1e-9


def test_a_subset_leaves_out_neighbours() -> None:
    """Five members that lie together say less than five along the Pareto front."""
    x = np.array([0.0, 0.01, 0.02, 0.5, 0.98, 0.99, 1.0])
    assert pareto.subset(np.stack([x, 1 - x], axis=1), 3).tolist() in ([1, 3, 5], [2, 3, 4])


def test_a_subset_that_cannot_fit_says_so() -> None:
    """Fewer than were asked for would be a surprise."""
    with pytest.raises(ValueError, match="the 2 lightest weigh 5 of 4"):
        pareto.subset(np.eye(3), 2, np.array([2.0, 3.0, 9.0]), 4)


@given(clouds(2, least=1), st.floats(0, 1))
def test_the_pareto_front_is_always_promoted_and_better_ranks_first(
    points: Points, share: float
) -> None:
    """No member of the Pareto front is lost on a low rung, and none passes a better one."""
    ranks = pareto.ranks(points)
    up = pareto.promoted(ranks, share)
    assert up[ranks == 0].all()
    assert up.sum() >= share * len(points)
    worst = ranks[up].max()
    assert up[ranks < worst].all()
    fewer = (ranks < worst).sum()
    assert worst == 0 or fewer < share * len(points)


def test_no_points_are_no_error() -> None:
    """A search has no front before its first trial."""
    none = np.zeros((0, 3))
    assert pareto.front(none).tolist() == pareto.ranks(none).tolist() == []
    assert (
        pareto.subset(none, 3).tolist() == pareto.promoted(pareto.ranks(none), 0.5).tolist() == []
    )
    assert pareto.hypervolume(none, [1.0, 1.0, 1.0]) == 0.0
