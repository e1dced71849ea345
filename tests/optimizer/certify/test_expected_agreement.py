"""Expected agreement of plans and expected confidence of variants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gateway.catalog.schema import Agreement, Precision
from gateway.domain import Answer
from optimizer.certify.expected_agreement import (
    MOST_QUESTIONS,
    FloorQuestions,
    agreement,
    confidence,
    largest,
    played,
    rate,
    with_expectations,
)
from optimizer.data.question_sets import Example
from tests.fakes import HOST, make_plan, make_variant, small_and_large

EXAMPLES = [
    Example(str(i), "Who?", f"Ada came at {i // 2}.", ("Ada",), (0,), "") for i in range(400)
]
FLOOR_QUESTIONS = FloorQuestions(EXAMPLES, np.full(400, 60))
SMALL, LARGE = make_variant("small", 5), make_variant("large", 20)
PLAN = make_plan(SMALL, 0.5)


def said(texts: list[str], score: float = 0.5) -> list[Answer]:
    return [Answer(t, 0 if t else None, len(t) or None, score, 0.5) for t in texts]


def small_agreement(small: list[str], large: list[str]) -> Agreement | None:
    answers = {"small": said(small), "large": said(large)}
    return agreement(PLAN, EXAMPLES, answers, "large", HOST, 0.02)


def test_two_silences_are_not_counted_as_agreement() -> None:
    """Both are silent on 100 of 400; of the other 300 both answer 200, and 100 alike: rates of questions.

    The mean over contexts of the first would be a half.
    """
    small = ["a", "a", "", ""] * 100
    large = ["a", "b", "c", ""] * 100
    found = small_agreement(small, large)
    assert found is not None
    assert found.n_questions == 300
    assert found.n_contexts == 200
    assert found.both_answer == pytest.approx(2 / 3)
    assert found.same_answer == pytest.approx(0.5)
    assert 0 < found.both_answer_floor < found.both_answer
    assert 0 < found.same_answer_floor < found.same_answer


def test_of_silent_variants_nothing_is_expected() -> None:
    """There is no rate to bound."""
    assert small_agreement([""] * 400, ["a"] * 400) is None


def test_what_the_largest_answered_itself_says_nothing() -> None:
    """A cascade that asked it agrees with it."""
    cascade = replace(PLAN, name="both", variants=("small", "large"), thresholds=(0.4,))
    answers = {"small": said(["a"] * 200, 0.3) + said(["b"] * 200, 0.6), "large": said(["a"] * 400)}
    texts, by_another = played(cascade, answers, "large")
    assert texts.tolist() == ["a"] * 200 + ["b"] * 200
    assert by_another.tolist() == [False] * 200 + [True] * 200
    found = agreement(cascade, EXAMPLES, answers, "large", HOST, 0.02)
    assert found is not None
    assert (found.n_questions, found.n_contexts) == (200, 100)
    assert (found.both_answer, found.same_answer) == (1, 0)


def test_nothing_is_expected_of_a_plan_whose_rates_too_few_questions_bound() -> None:
    """A floor of 0 under both rates would watch nothing, and take delta's share from those that are."""
    cascade = replace(PLAN, name="both", variants=("small", "large"), thresholds=(0.4,))
    answers = {"small": said(["a"] * 398, 0.3) + said(["a"] * 2, 0.6), "large": said(["a"] * 400)}
    assert agreement(cascade, EXAMPLES, answers, "large", HOST, 0.02) is None


def test_a_context_counts_for_so_many_questions_at_most() -> None:
    """Each of its questions then weighs less: a bound must know the most that one context can bring."""
    contexts = np.array([0] * (4 * MOST_QUESTIONS) + list(range(1, MOST_QUESTIONS + 1)))
    every, hits = np.ones(len(contexts), dtype=bool), contexts == 0
    found, floor = rate(contexts, every, hits, 0.02)
    assert found == pytest.approx(0.5)
    assert floor <= found


def test_confidence_is_bounded_on_both_sides_of_every_decile() -> None:
    """Nine shares near a tenth, two tenths and so on, each with room for the sample's luck."""
    scores = np.random.default_rng(1).random(400)
    found = confidence(FLOOR_QUESTIONS, scores, HOST, 0.02)
    assert found.shares == pytest.approx(np.linspace(0.1, 0.9, 9), abs=0.01)
    assert all(a < b < c for a, b, c in zip(found.low, found.shares, found.high, strict=True))


def test_confidence_is_given_by_length() -> None:
    """Routing sends a variant other lengths than it was certified on, and long texts are answered less surely."""
    tokens = np.where(np.arange(400) % 2 == 0, 60, 300)
    scores = np.where(tokens == 60, 0.9, 0.3) + 0.05 * np.random.default_rng(2).random(400)
    found = confidence(FloorQuestions(EXAMPLES, tokens), scores, HOST, 0.02)
    short, long = found.by_length
    assert short.max_tokens < 300 < long.max_tokens
    assert (short.n_questions, long.n_questions) == (200, 200)
    assert short.shares[3] == 0 < long.shares[3]


def test_floors_of_the_watch_count_all_plans_looked_at() -> None:
    """The plans that were left out were chosen against by the same questions."""
    answers = {"small": said(["a", "b"] * 200), "large": said(["a"] * 400)}
    few, many = (
        with_expectations(small_and_large(), FLOOR_QUESTIONS, answers, HOST, 0.02, n)
        .plans[0]
        .agreement
        for n in (2, 20)
    )
    assert few is not None
    assert many is not None
    assert many.same_answer_floor < few.same_answer_floor


def test_the_largest_is_the_one_with_the_most_parameters() -> None:
    """A student written in FP16 takes more bytes than its teacher in INT8, and must not judge it."""
    student = replace(SMALL, size_bytes=2 * LARGE.size_bytes, precision=Precision.FP16)
    assert largest([student, LARGE]).name == "large"
    twin = replace(LARGE, name="fp16", size_bytes=2 * LARGE.size_bytes)
    assert largest([LARGE, twin]).name == "fp16"


def test_every_plan_but_the_largest_variants_has_an_expected_agreement() -> None:
    """And the result is a catalog that a gateway reads."""
    catalog = small_and_large()
    assert largest(catalog.variants).name == "large"
    answers = {"small": said(["a"] * 400), "large": said(["a", "b"] * 200)}
    found = with_expectations(catalog, FLOOR_QUESTIONS, answers, HOST, 0.02, 2)
    small, large = found.plans
    assert small.agreement is not None
    assert small.agreement.reference == "large"
    assert large.agreement is None
    assert all(v.confidence is not None for v in found.variants)
