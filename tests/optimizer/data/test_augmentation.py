"""Unanswerable questions are made from answerable ones, of every kind, and never with a gold answer left."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from optimizer.data import augmentation, augmented
from optimizer.data.augmentation import Kind
from optimizer.data.question_sets import Example

PLACES = ("Oslo", "Bergen", "Turku", "Malmo", "Aarhus", "Narvik")


def paragraph(i: int) -> str:
    place = PLACES[i % len(PLACES)]
    return (
        f"The harbour of {place} number {i} was built in {1800 + i} by Admiral Rasmussen. "
        f"Its first lighthouse stood near Cape Halden {i}. Later Captain Nilsen sold {20 + i} boats."
    )


def example(i: int) -> Example:
    text = str(1800 + i)
    context = paragraph(i)
    question = f"When was the first harbour of {PLACES[i % len(PLACES)]} built before Rasmussen left in 1712?"
    return Example(f"q{i}", question, context, (text,), (context.index(text),), f"article {i // 3}")


EXAMPLES = [example(i) for i in range(60)]


def test_a_source_gets_the_share_that_it_asks_for() -> None:
    """A source without unanswerable questions gives the answer away by itself."""
    made = augmentation.balanced(EXAMPLES, 0.4, seed=1)
    assert len(made) == 40
    assert {one.kind for one in made} >= {Kind.NEAREST, Kind.RANDOM, Kind.ENTITY}


def test_a_source_that_has_enough_gets_none() -> None:
    """What people wrote is better than what is made."""
    nulls = [Example(f"n{i}", "Who?", paragraph(i), (), (), "t") for i in range(60)]
    assert augmentation.balanced([*EXAMPLES, *nulls], 0.4, seed=1) == []


def test_the_same_seed_makes_the_same_questions() -> None:
    """A rerun must not train on other questions."""
    first, again = (augmentation.balanced(EXAMPLES, 0.4, seed=5) for _ in range(2))
    assert [m.example for m in first] == [m.example for m in again]


def test_no_gold_answer_is_left_where_a_question_moves() -> None:
    """A question that its new paragraph answers would teach to abstain from the truth."""
    for one in augmentation.balanced(EXAMPLES, 0.5, seed=2):
        assert not one.example.answerable
        if one.kind in (Kind.NEAREST, Kind.RANDOM):
            assert one.example.context != one.original.context
            assert one.original.answers[0].lower() not in one.example.context.lower()
        else:
            assert one.example.context == one.original.context
            assert one.example.question != one.original.question


def test_a_judge_drops_questions_that_have_an_answer_all_the_same() -> None:
    """Nobody wrote these questions for their new paragraph: some are answered there."""

    def judge(asked: Sequence[Example]) -> list[bool]:
        return [e.id.startswith("q1") for e in asked]

    moved = [
        one.original.id
        for one in augmentation.balanced(EXAMPLES, 0.4, seed=1, judge=judge)
        if one.kind in (Kind.NEAREST, Kind.RANDOM)
    ]
    assert moved
    assert not any(name.startswith("q1") for name in moved)


@pytest.mark.parametrize(
    ("question", "never"),
    [("How many boats did Rasmussen sell in 1900?", "1900"), ("Who sold 20 boats?", "20 ")],
)
def test_a_swapped_number_is_not_in_the_paragraph(question: str, never: str) -> None:
    """The new number must not be one that the paragraph speaks of."""
    asked = [
        Example(f"n{i}", question, paragraph(i), ("Nilsen",), (paragraph(i).index("Nilsen"),), "t")
        for i in range(40)
    ]
    numbers = [m for m in augmentation.balanced(asked, 0.6, 3) if m.kind == Kind.NUMBER]
    assert numbers
    for one in numbers:
        assert never not in one.example.question
        new = set(augmentation._NUMBER.findall(one.example.question))
        assert not new & set(augmentation._NUMBER.findall(one.example.context))


def test_balanced_sources_say_nothing_about_the_answer() -> None:
    """An AUC of one half: the source alone does not tell whether there is an answer."""
    alike = {
        "a": {"rows": 100, "unanswerable": {"given": 40}},
        "b": {"rows": 10, "unanswerable": {"nearest": 4}},
    }
    apart = {
        "a": {"rows": 50, "unanswerable": {"given": 50}},
        "b": {"rows": 50, "unanswerable": {}},
    }
    assert augmented.source_auc(alike) == pytest.approx(0.5)
    assert augmented.source_auc(apart) == 1.0
