"""A study is chosen from measured speeds alone: the richest that fits, grown until the budget is used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.budget import schedule
from optimizer.budget.schedule import (
    BudgetError,
    Counts,
    Kind,
    Network,
    Role,
    Schedule,
    Seconds,
    Shape,
)

MINILM = Network(layers=6, heads=12, ffn=1536, hidden=384)
FEW = Counts(train=300, search=40, certify=60)
MANY = Counts(train=100_000, search=12_000, certify=2_000)
# A host with two cores, MiniLM, in seconds a row or a question.
HOST = Seconds(
    ask=0.2,
    forward=0.03,
    train=0.1,
    train_smallest=0.02,
    elastic=0.25,
    sort_heads=10.0,
    export=8.0,
    read=0.02,
    read_smallest=0.005,
    cost=2.0,
    profile=12.0,
)


def chosen(budget_min: float, counts: Counts = FEW, role: Role = Role.LARGEST) -> Schedule:
    return schedule.choose(role, MINILM, counts, HOST, budget_min)


@pytest.mark.parametrize(
    ("text", "minutes"), [("30m", 30), ("2h", 120), ("1d", 1440), ("1.5 H", 90), ("0.5m", 0.5)]
)
def test_a_budget_is_a_number_and_a_unit(text: str, minutes: float) -> None:
    """Minutes, hours and days, as people say them."""
    assert schedule.minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "2 hours", "0m", "1e3m", "nanh", "2h30m"])
def test_a_wrong_budget_says_what_one_looks_like(text: str) -> None:
    """A unit that was forgotten must not become minutes in silence."""
    with pytest.raises(BudgetError, match="such as 30m, 2h or 1d"):
        schedule.minutes_of(text)


@pytest.mark.parametrize("minutes", [0.2, 7.4, 119.5, 121, 3000])
def test_a_duration_can_be_given_as_a_budget_and_is_no_shorter(minutes: float) -> None:
    """Who gives the budget that an error names must not get the error again."""
    assert schedule.minutes_of(schedule.duration(minutes)) >= minutes


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("counts", [FEW, MANY])
def test_the_smallest_budget_that_an_error_names_is_enough(role: Role, counts: Counts) -> None:
    """And one of a minute less is not: the error does not exaggerate."""
    with pytest.raises(BudgetError, match="too small") as found:
        chosen(0.5, counts, role)
    named = str(found.value).rpartition("give --budget ")[2].split()[0]
    assert named.endswith("m")
    minutes = schedule.minutes_of(named)
    assert chosen(minutes, counts, role).minutes <= minutes
    with pytest.raises(BudgetError):
        chosen(minutes - 1, counts, role)


@pytest.mark.parametrize("counts", [FEW, MANY])
def test_every_budget_is_kept_and_more_time_is_more_work(counts: Counts) -> None:
    """Planned minutes stay below the budget and its reserve, and grow with it."""
    budgets = [15.0, 30.0, 60.0, 240.0, 1440.0]
    found = [chosen(minutes, counts) for minutes in budgets]
    for one, budget in zip(found, budgets, strict=True):
        assert one.minutes <= budget * (1 - schedule.RESERVE)
    minutes = [one.minutes for one in found]
    assert minutes == sorted(minutes)


def test_a_large_budget_searches_and_a_small_one_takes_known_shapes() -> None:
    """A search needs an elastic student first; what does not fit is named with what it needs."""
    rich, poor = chosen(60.0), chosen(4.0)
    assert rich.amount.kind.searches
    assert [stage.name for stage in rich.stages] == [
        *("teacher", "distill", "search", "finish", "publish")
    ]
    assert not poor.amount.kind.searches
    assert [stage.name for stage in poor.stages] == ["teacher", "distill", "publish"]
    kind, needed_min = poor.left_out[0]
    assert kind.searches
    assert needed_min > 4.0
    assert chosen(needed_min + 0.1).amount.kind == kind


def test_a_budget_that_is_too_large_is_not_used_up() -> None:
    """Training longer than anybody has seen pay off is no use of a day."""
    found = chosen(1440.0)
    assert found.is_largest
    assert found.minutes < 720
    assert found.amount.epochs == schedule.MOST_PASSES
    assert (found.amount.trials, found.amount.members) == (schedule.TRIALS[1], schedule.MEMBERS[1])


def test_many_questions_and_little_time_train_on_a_part_of_them() -> None:
    """Half of the questions once, not all of them half: a teacher answers no question for nothing."""
    found = chosen(60.0, MANY).amount
    assert found.fraction < 1
    assert found.epochs == 1.0
    assert found.rows == pytest.approx(MANY.train * found.fraction, abs=1)
    assert found.rows >= schedule.LEAST_ROWS


def test_what_is_already_spent_is_not_planned_again() -> None:
    """Measuring is a part of the budget."""
    whole = schedule.choose(Role.LARGEST, MINILM, MANY, HOST, 60.0)
    rest = schedule.choose(Role.LARGEST, MINILM, MANY, HOST, 60.0, spent_min=20.0)
    assert rest.minutes <= 60.0 * (1 - schedule.RESERVE) - 20.0
    assert rest.amount.rows < whole.amount.rows


def test_a_slower_host_does_less_in_the_same_time() -> None:
    """The measured speeds decide, not the budget alone."""
    slow = replace(HOST, train=10 * HOST.train, elastic=10 * HOST.elastic)
    found = schedule.choose(Role.ENCODER, MINILM, MANY, slow, 240.0)
    assert found.amount.rows < chosen(240.0, MANY, Role.ENCODER).amount.rows


def test_the_minutes_of_a_stage_are_its_steps_times_their_seconds() -> None:
    """By hand: an encoder trained once on 1,000 questions, and one student of three layers."""
    counts = Counts(train=1000, search=100, certify=100)
    amount = schedule.Amount(Kind("one known shape", 1), Role.ENCODER, MINILM, counts, passes=1.0)
    teacher, distill, publish = schedule.stages_of(amount, HOST)
    assert teacher.minutes == pytest.approx((schedule.START_S + 1000 * 0.1) / 60)
    half = Shape(3, 1536).share_of(MINILM)
    low = Shape(1, 384).share_of(MINILM)
    row_s = 0.02 + (half - low) / (1 - low) * (0.1 - 0.02)
    assert half == pytest.approx(0.5)
    assert distill.minutes == pytest.approx(
        (schedule.START_S + 1000 * 0.03 + 1000 * row_s) / 60, rel=1e-6
    )
    of_largest = 200 * 0.02 + 12.0 + 8.0
    assert publish.minutes == pytest.approx(
        (schedule.START_S + schedule.FLOORS_S + 1.5 * of_largest) / 60
    )


@pytest.mark.parametrize("layers", [1, 2, 3, 6, 12, 24])
def test_known_shapes_are_smaller_than_the_largest_model(layers: int) -> None:
    """Each with fewer layers, or narrower ones where there is a single layer; no two alike."""
    whole = Network(layers, heads=2, ffn=96, hidden=64)
    found = schedule.known_shapes(whole)
    assert found
    assert all(shape.share_of(whole) < 1 for shape in found)
    assert len({shape.layers for shape in found}) == len(found)
    assert [shape.layers for shape in found] == sorted((s.layers for s in found), reverse=True)
    assert max(kind.shapes for kind in schedule.kinds_for(whole)) == len(found)
