"""Fits how a variant's logits become answers: the no-answer threshold and calibrated probabilities.

Reads the search split only. Pure, but for the solver.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.catalog.schema import Decoding
from gateway.qa.codec import Reading, score_features
from optimizer.data.evaluate import f1, forced_answers
from optimizer.data.question_sets import Example

RIGHT_F1 = 0.5  # an answer counts as right from this F1 on
MIN_OF_A_KIND = 20  # fewer rights or wrongs than this do not carry a curve


def fit(examples: Sequence[Example], readings: Sequence[Reading]) -> Decoding:
    """Return the decoding under which neither answerable nor unanswerable questions are given up."""
    difference = np.array([min(r.difference, 1e3) for r in readings])
    has = np.array([e.answerable for e in examples])
    forced = forced_answers(readings)
    span_f1 = np.array([f1(a, e.answers) for a, e in zip(forced, examples, strict=True)])
    threshold = best_threshold(difference, has, span_f1)
    slope, bias = _null_curve(difference, has)
    return Decoding(
        null_threshold=threshold,
        null_scale=slope,
        null_bias=bias,
        score_weights=_score_weights(readings, has, span_f1, threshold),
    )


def best_threshold(
    difference: np.ndarray,  # (n,)
    has_answer: np.ndarray,  # (n,) bool
    span_f1: np.ndarray,  # (n,) F1 if the best span is given
) -> float:
    """Return the threshold t with the largest product of both kinds' F1, answering at <= t.

    A sum would have a weak model abstain from nearly everything: that earns it half of the sum. A
    product is nothing when either kind is given up, and asks for no mix of the two.
    """
    order = np.argsort(difference, kind="stable")
    answers, nulls = has_answer[order], ~has_answer[order]
    answered = np.concatenate([[0.0], np.cumsum(np.where(answers, span_f1[order], 0.0))])
    abstained = np.concatenate([np.cumsum(nulls[::-1])[::-1], [0]])  # right where t lies before
    kinds = [part for part, is_there in ((answered, answers), (abstained, nulls)) if is_there.any()]
    best = int(np.argmax(np.prod(kinds, axis=0)))
    padded = np.concatenate([[-1e3], difference[order], [1e3]])
    return float((padded[best] + padded[best + 1]) / 2)


def _null_curve(difference: np.ndarray, has_answer: np.ndarray) -> tuple[float, float]:
    """Return slope and bias of P(unanswerable), fitted with both kinds weighing the same."""
    if has_answer.all() or not has_answer.any():
        return 1.0, 0.0
    from sklearn.linear_model import LogisticRegression  # takes seconds to import

    model = LogisticRegression(class_weight="balanced")
    model.fit(difference[:, None], ~has_answer)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _score_weights(
    readings: Sequence[Reading], has_answer: np.ndarray, span_f1: np.ndarray, threshold: float
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    features = np.array([score_features(r, threshold) for r in readings])
    empty = np.array([not r.spans or r.difference > threshold for r in readings])
    right = np.where(empty, ~has_answer, span_f1 >= RIGHT_F1)
    return _curve(features[~empty], right[~empty]), _curve(features[empty], right[empty])


def _curve(features: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """Return (bias, margin weight, span weight); too few examples: the plain rate."""
    if min(right.sum(), (~right).sum()) < MIN_OF_A_KIND:
        rate = (right.sum() + 1) / (len(right) + 2)
        return float(np.log(rate / (1 - rate))), 0.0, 0.0
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(features, right)
    return float(model.intercept_[0]), float(model.coef_[0, 0]), float(model.coef_[0, 1])
