"""Prediction-powered intervals: they cover, whatever the predictions are, and good ones make them narrow."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.monitoring.prediction_powered import FEWEST, Interval, Outcomes, student_quantile


def outcomes(y: np.ndarray, f: np.ndarray, known: int) -> Outcomes:
    """Return all answers, the first ones with their outcome."""
    found = Outcomes()
    for t, (outcome, prediction) in enumerate(zip(y.tolist(), f.tolist(), strict=True)):
        if t < known:
            found.add_known(outcome, prediction)
        else:
            found.add_other(prediction)
    return found


def intervals(rng: np.random.Generator, noise: float, bias: float) -> tuple[Interval, Interval]:
    """Return both intervals of 30 outcomes of 300, rate 0.7, and predictions that are this wrong."""
    y = (rng.random(300) < 0.7).astype(float)
    f = np.clip(y + bias + noise * rng.standard_normal(300), 0, 1)
    found = outcomes(y, f, known=30)
    powered, alone = found.interval(), found.of_known_alone()
    assert powered
    assert alone
    return powered, alone


@pytest.mark.parametrize(("noise", "bias"), [(0.2, 0.0), (0.2, -0.5), (100.0, 0.0)])
def test_the_truth_is_covered_whatever_is_predicted(noise: float, bias: float) -> None:
    """A biased prediction, or one of no use, must not make a wrong number."""
    rng = np.random.default_rng(7)
    found = [intervals(rng, noise, bias)[0] for _ in range(300)]
    assert np.mean([each.low <= 0.7 <= each.high for each in found]) >= 0.92


def test_good_predictions_are_worth_outcomes_and_bad_ones_cost_none() -> None:
    """This is why they are used, and why they may be used unseen."""
    rng = np.random.default_rng(8)
    good = [intervals(rng, 0.1, 0.0) for _ in range(50)]
    bad = [intervals(rng, 100.0, 0.0) for _ in range(50)]
    assert np.mean([p.width / a.width for p, a in good]) < 0.6
    assert np.mean([p.width / a.width for p, a in bad]) < 1.03


def test_an_answer_that_is_taken_out_leaves_nothing() -> None:
    """The numbers are of the last answers alone."""
    rng = np.random.default_rng(9)
    y, f = rng.random(80), rng.random(80)
    found = outcomes(y, f, known=40)
    expected = found.interval()
    for outcome, prediction in zip(y.tolist(), f.tolist(), strict=True):
        found.add_known(outcome, prediction)
        found.add_other(prediction)
    for outcome, prediction in zip(y.tolist(), f.tolist(), strict=True):
        found.add_known(outcome, prediction, -1)
        found.add_other(prediction, -1)
    after = found.interval()
    assert expected
    assert after
    assert (after.low, after.high) == pytest.approx((expected.low, expected.high))


def test_few_outcomes_give_no_interval() -> None:
    """The central limit theorem says nothing of three."""
    y = np.ones(200)
    assert outcomes(y, y, FEWEST - 1).interval() is None
    assert outcomes(y, y, FEWEST).interval() is not None


def test_equal_outcomes_are_no_certainty() -> None:
    """Thirty right answers do not make the next one right."""
    y = np.ones(200)
    found = outcomes(y, y / 2, 30).interval()
    assert found
    assert found.low < 0.96
    assert found.high == 1.0


def test_the_quantile_is_students() -> None:
    """By tables, 19 and 199 degrees of freedom."""
    assert student_quantile(19) == pytest.approx(2.093, abs=2e-3)
    assert student_quantile(199) == pytest.approx(1.972, abs=1e-3)
