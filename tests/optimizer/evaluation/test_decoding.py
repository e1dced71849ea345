"""The fitted threshold and probabilities mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.domain import Span
from gateway.qa.codec import Reading, answer_of
from optimizer.data.items import LabelReading
from optimizer.data.labelled_texts import LabelledText
from optimizer.data.question_sets import DataError, Example
from optimizer.evaluation.decoding import best_threshold, fit, fit_temperature


def test_the_threshold_separates_what_can_be_separated() -> None:
    """Between the answerable and the unanswerable lies the best threshold."""
    difference = np.array([-3.0, -2.0, -1.0, 2.0, 3.0])
    has_answer = np.array([True, True, True, False, False])
    assert -1.0 < best_threshold(difference, has_answer, np.ones(5)) < 2.0


def test_the_mix_of_both_kinds_does_not_matter() -> None:
    """A set with few unanswerable questions must not teach a model to answer always."""
    rng = np.random.default_rng(0)
    difference = np.concatenate([rng.normal(-1, 1, 900), rng.normal(1, 1, 100)])
    has_answer = np.arange(1000) < 900
    found = best_threshold(difference, has_answer, np.ones(1000))
    assert -0.5 < found < 0.5


def test_a_weak_model_still_answers() -> None:
    """Of spans that are seldom right, giving none would earn more on a half-empty test."""
    rng = np.random.default_rng(0)
    difference = np.concatenate([rng.normal(-0.3, 1, 500), rng.normal(0.3, 1, 500)])
    has_answer = np.arange(1000) < 500
    found = best_threshold(difference, has_answer, np.full(1000, 0.4))
    assert 0.3 < (difference[:500] <= found).mean() < 0.9


def test_one_kind_alone_decides_alone() -> None:
    """Without unanswerable questions there is nothing to abstain from, and the other way round."""
    difference = np.array([-1.0, 0.0, 1.0])
    assert best_threshold(difference, np.ones(3, bool), np.ones(3)) > 1.0
    assert best_threshold(difference, np.zeros(3, bool), np.ones(3)) < -1.0


def readings(n: int = 600) -> tuple[list[Example], list[Reading]]:
    """Return questions whose null margin says, noisily, whether they have an answer."""
    rng = np.random.default_rng(3)
    examples, found = [], []
    for i in range(n):
        has = i % 2 == 0
        right = rng.random() < 0.8
        text = "gold" if right else "wrong"
        difference = float(rng.normal(-2 if has else 2, 2))
        examples.append(
            Example(str(i), "q", f"c{i}", ("gold",) if has else (), (0,) if has else (), "t")
        )
        share = 0.9 if right else 0.4
        spans = (Span(text, 0, 4, share, 1.0), Span("other", 5, 9, 1 - share, 0.0))
        found.append(Reading(spans, difference))
    return examples, found


def test_scores_are_calibrated() -> None:
    """Of answers with a score of about p, a share of about p is right."""
    examples, found = readings()
    how = fit(examples, found)
    answers = [answer_of(reading, how) for reading in found]
    right = np.array(
        [a.text == ("gold" if e.answerable else "") for a, e in zip(answers, examples, strict=True)]
    )
    scores = np.array([a.score for a in answers])
    sure = scores > np.median(scores)
    assert abs(scores.mean() - right.mean()) < 0.03
    assert abs(scores[sure].mean() - right[sure].mean()) < 0.06
    assert right[sure].mean() > right[~sure].mean()


def test_the_no_answer_probability_follows_the_margin() -> None:
    """Callers sort and cut by it, so it must grow with the evidence for no answer."""
    examples, found = readings()
    how = fit(examples, found)
    spans = (Span("gold", 0, 4, 1.0, 1.0),)
    p = [answer_of(Reading(spans, d), how).no_answer_probability for d in (-6.0, 0.0, 6.0)]
    assert p[0] < 0.1 < p[1] < 0.9 < p[2]


def test_answerable_questions_alone_are_enough_to_fit() -> None:
    """SQuAD 1.1 has no unanswerable question; its models then always answer."""
    examples, found = readings()
    chosen = [i for i, e in enumerate(examples) if e.answerable]
    how = fit([examples[i] for i in chosen], [found[i] for i in chosen])
    assert all(answer_of(found[i], how).text for i in chosen)


def test_a_temperature_makes_probabilities_true() -> None:
    """Logits three times too large are divided by three: then a label of 80 % is right in 80 of 100 cases."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, (4000, 3))
    shares = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    gold = [int(rng.choice(3, p=share)) for share in shares]
    examples = [LabelledText(str(i), "t", None, g, ("a", "b", "c")) for i, g in enumerate(gold)]
    readings = [LabelReading(tuple(row)) for row in (3 * true).tolist()]
    how = fit(examples, readings)
    assert how.temperature == pytest.approx(3.0, abs=0.2)
    answers = [e.answer_of(r, how) for e, r in zip(examples, readings, strict=True)]
    right = np.array([e.value_of(a.text) for e, a in zip(examples, answers, strict=True)])
    assert right.mean() == pytest.approx(np.mean([a.score for a in answers]), abs=0.02)


def test_nothing_is_calibrated_on_nothing() -> None:
    """A temperature of 1 would look fitted."""
    with pytest.raises(DataError, match=r"search split .* is empty"):
        fit_temperature([], [])
