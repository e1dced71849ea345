"""Scores follow the official SQuAD 2.0 rule."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gateway.catalog.schema import Decoding
from gateway.qa.codec import Reading
from optimizer.data import clusters
from optimizer.data.evaluate import as_dict, bootstrap_interval, exact, f1, quality, score
from optimizer.data.question_sets import Example


def example(answers: tuple[str, ...], context: str = "c") -> Example:
    return Example("id", "q", context, answers, tuple(0 for _ in answers), "")


@pytest.mark.parametrize(
    ("found", "golds", "em", "token_f1"),
    [
        ("The Normans", ("normans",), 1.0, 1.0),
        ("in the 10th century", ("10th century",), 0.0, 0.8),
        ("Paris", ("London", "paris!"), 1.0, 1.0),
        ("", (), 1.0, 1.0),
        ("Paris", (), 0.0, 0.0),
        ("", ("Paris",), 0.0, 0.0),
        ("a the", ("an",), 1.0, 1.0),
        ("cat cat dog", ("cat dog dog",), 0.0, 2 / 3),
    ],
)
def test_an_answer_is_scored_by_its_best_gold(
    found: str, golds: tuple[str, ...], em: float, token_f1: float
) -> None:
    """Case, punctuation and articles do not count; the best gold answer does."""
    assert exact(found, golds) == em
    assert f1(found, golds) == pytest.approx(token_f1)


def test_answerable_and_unanswerable_are_scored_separately() -> None:
    """One mean over both hides a model that never answers."""
    scores = score([example(("x",)), example(()), example(())], ["", "", "y"])
    assert (scores.n, scores.has_answer_n, scores.no_answer_n) == (3, 1, 2)
    assert (scores.has_answer_f1, scores.no_answer_f1) == (0.0, 0.5)
    assert scores.f1 == pytest.approx(1 / 3)


def test_a_part_without_questions_has_no_score() -> None:
    """No number is made up where there is nothing to measure."""
    scores = score([example(("x",))], ["x"])
    assert math.isnan(scores.no_answer_f1)
    assert as_dict(scores)["no_answer_f1"] is None


def test_contexts_weigh_the_same_however_many_questions_they_have() -> None:
    """Questions on one context are dependent: a context is the unit of evidence where no article is known."""
    examples = [example(("x",), "a"), example(("x",), "a"), example(("x",), "b")]
    assert sorted(clusters.means(examples, [1.0, 0.0, 1.0])) == [0.5, 1.0]


def test_an_interval_is_by_article() -> None:
    """Forty contexts of four articles, two of them all wrong, are four values and not forty."""
    contexts = [example(("x",), str(i)) for i in range(40)]
    articles = [replace(e, title=f"a{i % 4}") for i, e in enumerate(contexts)]
    answers = ["x" if i % 4 < 2 else "y" for i in range(40)]
    (low, high), (close, near) = (bootstrap_interval(e, answers) for e in (articles, contexts))
    assert high - low > 2 * (near - close)


def test_the_interval_holds_the_mean() -> None:
    """The interval printed beside an F1 is about that F1."""
    examples = [example(("x",), str(i)) for i in range(200)]
    answers = ["x" if i % 4 else "y" for i in range(200)]
    low, high = bootstrap_interval(examples, answers)
    assert low < np.mean([a == "x" for a in answers]) < high


def test_what_the_data_does_not_hold_has_no_score() -> None:
    """NaN is no JSON: a catalog with one could not be read again."""
    found = quality("squad", "", [example(("x",))], [Reading((), float("inf"))], Decoding())
    assert (found.has_answer_f1, found.no_answer_f1) == (0.0, None)
