"""The simulation that counts how often intervals of feedback cover the truth."""

from __future__ import annotations

import numpy as np

from loadtest.quality.feedback_intervals import Answers, Case, count


def recorded(rng: np.random.Generator) -> Answers:
    score = rng.random(500)
    f1 = (rng.random(500) < score).astype(float)
    return Answers(f1, score, rng.random(500) < 0.5 + f1 / 4)


def test_a_calibrated_score_makes_intervals_narrow_and_they_cover() -> None:
    """The table of the documentation is made by this function."""
    found = count(recorded(np.random.default_rng(3)), Case("plan", 50, 0.0), streams=60, seed=1)
    assert found.covered >= 0.88
    assert found.width < found.width_alone
    assert found.worth > 1.0
