"""The scores of a classification, as GLUE reports them: accuracy, F1, macro F1, Matthews' correlation. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.data.labelled_texts import LabelledText

F1, MACRO_F1, MATTHEWS = "f1", "macro_f1", "matthews"


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Accuracy 0..1 of n rows, and what GLUE reports beside it."""

    n: int
    accuracy: float
    # F1 of the second label, where there are two; F1 0..1 as the mean over all labels; -1..1.
    others: Mapping[str, float]


def scores(examples: Sequence[LabelledText], texts: Sequence[str]) -> ClassScores:
    """Return the scores of one label per row, in the same order; the positive label is the second of two.

    A label that neither the rows nor the answers have counts as F1 0 in the macro mean.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef  # a second to import, and rarely needed

    labels = examples[0].labels
    number = {label: i for i, label in enumerate(labels)}
    gold = np.array([e.label for e in examples])
    found = np.array([number[text] for text in texts])
    of_each = f1_score(gold, found, labels=range(len(labels)), average=None, zero_division=0.0)
    others = {F1: float(of_each[1])} if len(labels) == 2 else {}
    others |= {MACRO_F1: float(of_each.mean()), MATTHEWS: float(matthews_corrcoef(gold, found))}
    return ClassScores(len(gold), float((gold == found).mean()), others)


def majority(examples: Sequence[LabelledText]) -> str:
    """Return the most frequent label: the constant answer that a classifier must beat."""
    most, _ = Counter(e.label for e in examples).most_common(1)[0]
    return examples[0].labels[most]
