"""Scores of labels are those that GLUE reports."""

from __future__ import annotations

import pytest

from optimizer.data import class_scores
from optimizer.data.labelled_texts import LabelledText

GOLD = ("yes", "yes", "yes", "no", "no", "yes", "yes", "no")


def rows(labels: tuple[str, ...], gold: tuple[str, ...] = GOLD) -> list[LabelledText]:
    return [
        LabelledText(str(i), f"t{i}", None, labels.index(g), labels) for i, g in enumerate(gold)
    ]


def test_scores_of_two_labels() -> None:
    """Counted by hand: 4 true positives, 2 true negatives, 1 false positive, 1 false negative."""
    found = class_scores.scores(
        rows(("no", "yes")), ["yes", "yes", "yes", "no", "no", "yes", "no", "yes"]
    )
    assert (found.n, found.accuracy) == (8, 0.75)
    assert found.others["f1"] == pytest.approx(0.8)
    assert found.others["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.others["matthews"] == pytest.approx((4 * 2 - 1) / 15)


def test_a_constant_answer_has_no_correlation() -> None:
    """Most of the accuracy may be the mix of labels alone; of three labels there is no positive one."""
    examples = rows(("no", "yes", "maybe"))
    assert class_scores.majority(examples) == "yes"
    found = class_scores.scores(examples, ["yes"] * len(examples))
    assert found.accuracy == 5 / 8
    assert found.others == {"macro_f1": pytest.approx(10 / 13 / 3), "matthews": 0.0}
