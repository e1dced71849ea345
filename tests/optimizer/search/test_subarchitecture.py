"""Bort's search finds the largest W-coefficient of a grid, and says how far it may be from it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.schema import Precision
from optimizer.search import subarchitecture
from optimizer.search.subarchitecture import Grid
from optimizer.study.space import Candidate, Space, spaced
from optimizer.study.trials import Cost

SHAPES = tuple(Candidate((0,), heads, 32) for heads in range(1, 41))
COSTS = {shape: Cost(float(shape.heads), 10 * shape.heads) for shape in SHAPES}
LARGEST = Cost(40.0, 400)


def asked_until(
    grid: Grid, errors_of: dict[Candidate, float], shortfall: float
) -> dict[Candidate, float]:
    """Return the errors of the shapes that were asked until the best is known so well."""
    errors: dict[Candidate, float] = {}
    while (shape := grid.following(errors, errors.keys())) is not None:
        errors[shape] = errors_of[shape]
        if (
            len(errors) >= len(grid.shapes[:: grid.interval])
            and grid.shortfall(errors) <= shortfall
        ):
            break
    return errors


def best_of(errors: dict[Candidate, float]) -> float:
    return max(subarchitecture.w_coefficient(COSTS[c], e, LARGEST) for c, e in errors.items())


def test_w_weighs_what_is_saved_by_the_error() -> None:
    """By hand: three quarters of the size and half of the time are saved, at an error of 0.3."""
    found = subarchitecture.w_coefficient(Cost(20.0, 100), 0.3, LARGEST)
    assert found == pytest.approx(0.75 * 0.5 / 0.3)
    assert subarchitecture.w_coefficient(LARGEST, 0.1, LARGEST) == 0
    assert subarchitecture.w_coefficient(Cost(20.0, 100), 0.2, LARGEST) > found


def test_the_maximum_point_is_the_largest_of_each_cost() -> None:
    """Two shapes may be the slowest and the largest."""
    assert subarchitecture.maximum_point([Cost(9.0, 10), Cost(4.0, 30)]) == Cost(9.0, 30)


def test_the_grid_has_depths_heads_and_widths() -> None:
    """Other knobs are the largest candidate's, in the precision that is served."""
    space = Space(
        layers="any",
        min_layers=2,
        heads=(4, 12),
        ffn=(256, 1536),
        hidden=(0, 128),
        embedding_bits=(4, 8),
        precision=(Precision.INT8_DYNAMIC, Precision.FP32),
        keep=(1.0, 0.5),
        drop_after=(1,),
    ).within(6)
    grid = subarchitecture.grid_of(space)
    assert len(grid) == len(set(grid)) == 5 * 2 * 2 * 2
    assert {c.layers for c in grid} == {spaced(n, 6) for n in range(2, 7)}
    others = {(c.embedding_bits, c.precision, c.keep) for c in grid}
    assert others == {(8, Precision.INT8_DYNAMIC, 1.0)}


def test_layers_that_are_named_are_all_of_the_grid() -> None:
    """Then the user chose them."""
    space = Space(layers=((0, 1, 2), (0, 2), (1, 2)), heads=(4,), ffn=(64,))
    assert [c.layers for c in subarchitecture.grid_of(space)] == [(0, 1, 2), (0, 2), (1, 2)]


def test_the_first_pass_takes_one_of_each_interval() -> None:
    """In the order of what they save, within half of the trials."""
    grid = Grid.of(COSTS, trials=20)
    assert grid.interval == 4
    assert grid.shapes[0].heads == 40
    asked: list[Candidate] = []
    for _ in range(10):
        found = grid.following({}, asked)
        assert found is not None
        asked.append(found)
    assert [shape.heads for shape in asked] == list(range(40, 0, -4))


@given(st.lists(st.floats(0.01, 0.9), min_size=40, max_size=40))
def test_the_shortfall_is_true_where_saving_more_errs_more(drawn: list[float]) -> None:
    """What the search says of its best holds for every error that grows with what is saved."""
    grid = Grid.of(COSTS, trials=20)
    errors_of = dict(zip(grid.shapes, sorted(drawn), strict=True))
    for shortfall in (0.2, 0.0):
        asked = asked_until(grid, errors_of, shortfall)
        epsilon = grid.shortfall(asked)
        assert epsilon <= shortfall
        assert best_of(asked) >= (1 - epsilon) * best_of(errors_of) - 1e-9


def test_the_best_is_found_without_asking_all() -> None:
    """An error that rises slowly and then steeply, as below a few layers."""
    grid = Grid.of(COSTS, trials=16)
    errors_of = {c: 0.2 + 0.7 * math.exp(-c.heads / 4) for c in SHAPES}
    asked = asked_until(grid, errors_of, 0.0)
    assert best_of(asked) == best_of(errors_of)
    assert len(asked) < len(SHAPES) / 2


def test_what_is_beyond_a_limit_is_never_asked() -> None:
    """It is known without a question; the maximum point is the whole grid's all the same."""
    beyond = {shape for shape in SHAPES if shape.heads > 30}
    grid = Grid.of(COSTS, trials=20, left_out=beyond)
    assert not beyond & set(grid.shapes)
    assert grid.savings[0] == pytest.approx(0.25 * 0.25)


def test_when_all_are_asked_there_is_none_to_follow() -> None:
    """Somebody else then chooses."""
    grid = Grid.of(COSTS, trials=200)
    assert grid.interval == 1
    assert grid.following(dict.fromkeys(SHAPES, 0.5), SHAPES) is None
    assert grid.shortfall(dict.fromkeys(SHAPES, 0.5)) == 0
