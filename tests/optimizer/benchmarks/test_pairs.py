"""Paired intervals, and hypervolumes of runs beside each other."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.domain import Span
from gateway.qa.codec import Reading
from optimizer.benchmarks import pairs, volumes
from optimizer.benchmarks.results import Run, Step
from optimizer.benchmarks.volumes import Tried
from optimizer.data.question_sets import Example
from optimizer.study.space import Candidate
from optimizer.study.trials import Cost, Limits, Point

BOX = Cost(100.0, 10_000_000)


def test_an_interval_over_contexts_holds_its_mean() -> None:
    """The mean is over questions, as F1 is."""
    differences = np.array([0.2, 0.0, 0.1, -0.1, 0.3])
    found = pairs.over_contexts(["a", "a", "b", "c", "d"], differences)
    assert found.mean == pytest.approx(0.1)
    assert -0.1 <= found.low < 0.1 < found.high <= 0.3


def test_questions_on_one_context_are_no_evidence_of_their_own() -> None:
    """Twenty questions on five contexts tell no more than five where contexts decide."""
    values = np.array([0.3, -0.1, 0.2, 0.0, 0.1])
    alone = pairs.over_contexts(list("abcde"), values)
    repeated = pairs.over_contexts(list("abcde") * 4, np.tile(values, 4))
    independent = pairs.over_contexts([str(i) for i in range(20)], np.tile(values, 4))
    assert repeated == alone
    assert independent.high - independent.low < 0.6 * (alone.high - alone.low)


def test_an_interval_over_seeds_is_students() -> None:
    """By hand: mean 2, deviation 1, three seeds, t = 4.3027."""
    found = pairs.over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.30265 / 3**0.5, abs=1e-4)
    one = pairs.over_seeds([0.2])
    assert (one.mean, one.low, one.high) == (0.2, -1.0, 1.0)


def reading(text: str) -> Reading:
    return Reading((Span(text, 0, len(text), 1.0, 1.0),), -1.0)


def test_a_pair_tells_answers_and_forced_answers_apart() -> None:
    """Who abstains on an unanswerable question is right, and has no part in forced F1."""
    asked = [
        Example("1", "?", "red house", ("red",), (0,), "t"),
        Example("2", "?", "blue house", (), (), "t"),
    ]
    first, second = [reading("red"), reading("blue")], [reading("house"), reading("blue")]
    answers = (["red", ""], ["", "blue"])
    found = pairs.pair(("a", "b"), "test", asked, answers, (first, second))
    assert (found.f1, found.forced_f1) == ((1.0, 0.0), (1.0, 0.0))
    assert (found.n, found.n_contexts) == (2, 2)
    assert found.f1_difference.mean == 1.0


def point(trial: int, f1: dict[int, float], ms: float, mb: float = 5.0) -> Point:
    candidate = Candidate((0,), 2, 32 + trial)
    return Point(trial, candidate, Cost(ms, int(mb * 1e6)), f1)


def test_a_pareto_front_grows_where_something_new_dominates() -> None:
    """By hand: half of each side; then twice as fast; what is dominated or not asked adds nothing."""
    points = (
        *(point(0, {10: 0.5}, 50), point(1, {10: 0.4}, 60), point(2, {5: 0.9}, 10)),
        *(point(3, {}, 1), point(4, {5: 0.6, 10: 0.5}, 25)),
    )
    tried = Tried(points, (1.0, 2.0, 3.0, 4.0, 5.0))
    found = volumes.curve(tried, Limits(), BOX, 10)
    assert [(s.candidates, s.minutes) for s in found] == [(1, 1.0), (5, 5.0)]
    assert [s.hypervolume for s in found] == pytest.approx([0.125, 0.1875])


def test_what_misses_a_limit_is_no_part_of_a_pareto_front() -> None:
    """As in the search itself."""
    tried = Tried((point(0, {10: 0.5}, 50), point(1, {10: 0.6}, 90)), (1.0, 2.0))
    limits = Limits(max_p95_ms=60)
    assert [s.candidates for s in volumes.curve(tried, limits, BOX, 10)] == [1]
    assert volumes.common_questions([tried], Limits(min_f1=0.7)) == 0


def test_the_best_w_is_of_what_saves_size_and_time() -> None:
    """By hand: half of both sides at an error of .5; a candidate beyond the box saves less than nothing twice."""
    points = (
        *(point(0, {10: 0.5}, 50), point(1, {10: 0.9}, 200, 20.0), point(2, {5: 0.9}, 10)),
        *(point(3, {10: 0.6}, 50, 7.5), point(4, {10: 0.7}, 10)),
    )
    tried = Tried(points, (1.0, 2.0, 3.0, 4.0, 5.0))
    assert volumes.best_w(tried, Limits(min_f1=0.4), BOX, 10) == pytest.approx(0.5 * 0.9 / 0.3)
    assert volumes.best_w(tried, Limits(max_size_mb=4), BOX, 10) == 0.0
    assert volumes.best_w(Tried(points[:3], (1.0, 2.0, 3.0)), Limits(), BOX, 10) == 0.5


def test_all_runs_are_measured_on_the_same_questions() -> None:
    """A run that never got to the highest rung decides which one counts."""
    high = Tried((point(0, {5: 0.6, 10: 0.5}, 50),), (1.0,))
    low = Tried((point(0, {5: 0.6}, 50),), (1.0,))
    assert volumes.common_questions([high], Limits()) == 10
    assert volumes.common_questions([high, low], Limits()) == 5
    assert volumes.common_questions([high, Tried((), ())], Limits()) == 10


def run(
    method: str, seed: int, *steps: tuple[int, float, float], budget: float | None = None
) -> Run:
    curve = tuple(Step(*step) for step in steps)
    last = curve[-1]
    return Run(method, seed, last.candidates, last.candidates, last.minutes, budget, curve)


def test_runs_are_paired_by_seed_and_by_what_both_had() -> None:
    """After as many candidates, and after as many minutes: what a run found later does not count."""
    ours = [run("gp", s, (2, 10.0, 0.3), (4, 20.0, 0.5 + s / 10)) for s in range(2)]
    theirs = [run("random", s, (2, 5.0, 0.2), (4, 10.0, 0.4)) for s in (1, 0)]
    by_candidates, by_minutes = volumes.against(ours, theirs)
    assert (by_candidates.at, by_candidates.wins) == ("candidates", 2)
    assert by_candidates.difference.mean == pytest.approx((0.1 + 0.2) / 2)
    assert (by_minutes.at, by_minutes.wins) == ("minutes", 0)
    assert by_minutes.difference.mean == pytest.approx(0.3 - 0.4)


def test_a_method_with_a_budget_of_minutes_is_compared_by_them() -> None:
    """And also end against end where its budget was cut: the scale is then not the same."""
    ours = [run("gp", 0, (4, 20.0, 0.5))]
    whole = [run("trainings", 0, (1, 18.0, 0.2), budget=20.0)]
    cut = [run("trainings", 0, (1, 9.0, 0.2), budget=10.0)]
    (found,) = volumes.against(ours, whole)
    assert found.at == "minutes"
    assert found.difference.mean == pytest.approx(0.3)
    by_minutes, by_end = volumes.against(ours, cut)
    assert (by_minutes.at, by_end.at) == ("minutes", "end")
    assert by_minutes.difference.mean == pytest.approx(-0.2)
    assert by_end.difference.mean == pytest.approx(0.3)


def test_a_trial_that_came_too_late_does_not_count() -> None:
    """What fits into a budget is what was finished in it."""
    tried = Tried((point(0, {10: 0.5}, 50), point(1, {10: 0.6}, 40)), (1.0, 2.1))
    assert len(tried.within(2.0).points) == 1
    assert tried.within(None) == tried
