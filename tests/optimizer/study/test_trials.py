"""What the limits and the rungs say of trials: values in, values out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optimizer.study import trials
from optimizer.study.space import Candidate
from optimizer.study.trials import Cost, Limits, Point

SHAPE = Candidate((0, 1), 2, 64)
NO_LIMITS = Limits()


def point(trial: int, f1: float | None, p95_ms: float, mb: float, n: int = 400) -> Point:
    known = {} if f1 is None else {n: f1}
    return Point(trial, SHAPE, Cost(p95_ms, round(mb * 1e6)), known)


def test_a_limit_is_kept_at_its_value() -> None:
    """Feasible is 0 or less, as Optuna has it."""
    limits = Limits(min_f1=0.5, max_p95_ms=20.0, max_size_mb=8.0)
    assert limits.excess(Cost(20.0, 8_000_000), 0.5) == dict.fromkeys(
        ("min_f1", "max_p95_ms", "max_size_mb"), 0.0
    )
    assert limits.reason(point(0, 0.5, 20.0, 8.0)) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (point(0, 0.45, 20, 8), "F1 0.450 < min_f1 0.5"),
        (point(0, 0.45, 30, 8), "p95 30.0 ms > max_p95_ms 20.0"),
        (point(0, None, 10, 17), "size 17.0 MB > max_size_mb 8.0"),
    ],
)
def test_the_limit_missed_by_most_is_the_reason(found: Point, said: str) -> None:
    """One reason, the one that binds."""
    assert Limits(0.5, 20.0, 8.0).reason(found) == said


def test_only_what_may_join_the_pareto_front_goes_on() -> None:
    """The dear rung is for candidates that the cheap one did not rule out."""
    others = [point(0, 0.60, 20, 8), point(1, 0.50, 10, 4), point(2, 0.40, 5, 2)]
    assert trials.goes_on(point(3, 0.55, 15, 6), others, NO_LIMITS, 0.01)
    assert not trials.goes_on(point(3, 0.45, 15, 6), others, NO_LIMITS, 0.01)
    assert trials.goes_on(point(3, 0.45, 15, 6), others, NO_LIMITS, 1.0)
    assert not trials.goes_on(point(3, 0.55, 15, 6), others, Limits(min_f1=0.56), 1.0)


def test_what_misses_a_limit_rules_nobody_out() -> None:
    """A model that is too large for its user is no reason to drop a smaller one."""
    better = point(0, 0.6, 10, 9)
    assert trials.goes_on(point(1, 0.5, 12, 9.5), [better], Limits(max_p95_ms=15), 0.01) is False
    assert trials.goes_on(point(1, 0.5, 12, 7), [better], Limits(max_size_mb=8), 0.01)


def test_the_pareto_front_holds_points_of_the_highest_rung_alone() -> None:
    """400 questions flatter, so their F1 is not compared with that of 1,500."""
    low, top, slow = point(0, 0.7, 9, 9), point(1, 0.6, 10, 9, 1500), point(2, 0.6, 11, 9, 1500)
    assert trials.front_of([low, top, slow], NO_LIMITS) == [top]
    assert trials.front_of([low], NO_LIMITS) == [low]
    assert trials.front_of([point(3, None, 1, 1)], NO_LIMITS) == []


def test_the_nearest_point_misses_its_worst_limit_by_least() -> None:
    """Somebody who asked for too much wants to know how much too much."""
    limits = Limits(min_f1=0.8, max_p95_ms=10)
    fast, good = point(0, 0.4, 9, 1), point(1, 0.7, 11, 1)
    gated = point(2, None, 10.1, 1)  # its F1 is not known: it may be anything
    assert trials.nearest([fast, good, gated], limits) == good
    assert trials.nearest([gated], limits) == gated
    assert trials.nearest([], limits) is None


def test_a_candidate_without_f1_is_guessed_from_the_most_similar() -> None:
    """The cost gate must not teach a sampler that a large shape is a bad one."""
    small = Point(0, Candidate((0,), 2, 64), Cost(1, 1), {400: 0.3})
    large = Point(1, Candidate((0, 1, 2), 12, 1024), Cost(9, 9), {400: 0.6})
    unknown = Candidate((0, 1, 2, 3), 12, 1536)
    assert trials.guess_f1(unknown, [small, large], otherwise=0.0) == 0.6
    assert trials.guess_f1(unknown, [], otherwise=0.2) == 0.2


@pytest.mark.parametrize(
    "other",
    [{"rank": 64}, {"keep": 0.5, "drop_after": 1}, {"heads": 1}, {"ffn": 32}, {"layers": (0,)}],
)
def test_every_knob_of_a_shape_is_a_distance(other: dict[str, Any]) -> None:
    """Else one student's F1 would be guessed to be another's."""
    assert trials.unlike(SHAPE, SHAPE) == 0
    assert trials.unlike(SHAPE, replace(SHAPE, **other)) > 0
    assert trials.unlike(replace(SHAPE, **other), SHAPE) > 0


def test_fewer_tokens_are_further_away() -> None:
    """Tokens dropped later or less are more like none dropped."""
    whole = Candidate((0, 1, 2), 2, 64)
    some = [
        trials.unlike(whole, replace(whole, keep=keep, drop_after=after))
        for keep, after in ((0.8, 2), (0.5, 2), (0.5, 1), (0.3, 1))
    ]
    assert some == sorted(some)
    assert trials.unlike(whole, replace(whole, rank=192)) < trials.unlike(
        whole, replace(whole, rank=64)
    )


def test_the_hypervolume_is_a_share_of_the_box() -> None:
    """A perfect model that costs nothing would be 1, the reference itself is 0."""
    reference = Cost(100.0, 10_000_000)
    assert trials.hypervolume([point(0, 0.5, 50, 5)], reference) == pytest.approx(0.125)
    assert trials.hypervolume([point(0, 0.9, 100, 10)], reference) == 0
    assert trials.hypervolume([], reference) == 0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [30, 20, 10], -1.0),
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_rank_correlation(a: list[float], b: list[float], expected: float | None) -> None:
    """Two pairs always agree or always disagree, so they have no correlation."""
    assert trials.rank_correlation(a, b) == (expected and pytest.approx(expected))
