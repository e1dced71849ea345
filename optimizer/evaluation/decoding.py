"""Fits how a variant's logits become answers or labels: the no-answer threshold and calibrated probabilities.

Reads the search split only. Pure, but for the solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from gateway.catalog.schema import Decoding
from gateway.qa.codec import Reading, score_features
from optimizer.data.evaluate import f1, forced_answers
from optimizer.data.items import LabelReading
from optimizer.data.labelled_texts import LabelledText
from optimizer.data.question_sets import DataError, Example

TEMPERATURES = (0.05, 20.0)  # between which one is looked for
RIGHT_F1 = 0.5  # an answer counts as right from this F1 on
MIN_OF_A_KIND = 20  # fewer rights or wrongs than this do not carry a curve


def fit(examples: Sequence[Any], readings: Sequence[Any]) -> Decoding:
    """Return the decoding fitted on questions, or on labelled texts."""
    if any(isinstance(reading, LabelReading) for reading in readings):
        return fit_temperature(examples, readings)
    return fit_answers(examples, readings)


def fit_temperature(examples: Sequence[LabelledText], readings: Sequence[LabelReading]) -> Decoding:
    """Return the temperature under which the labels' probabilities are the likeliest.

    Raises: DataError without texts to fit it on. Source: Guo et al. 2017, section 4.2.
    """
    if not examples:
        raise DataError(
            "the search split of the certifying sources is empty, so nothing can be calibrated; let a larger"
            " [[data]] certify"
        )
    logits = np.array([r.logits for r in readings])  # (n, L)
    gold = np.array([e.label for e in examples])[:, None]

    def loss(log_temperature: float) -> float:
        shares = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(np.take_along_axis(shares, gold, axis=1).mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return Decoding(temperature=round(float(np.exp(found.x)), 4))


def fit_answers(examples: Sequence[Example], readings: Sequence[Reading]) -> Decoding:
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
