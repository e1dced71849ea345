"""Paired differences with their intervals: over contexts for models, over seeds for searches. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.qa.codec import Reading
from optimizer.benchmarks.results import Interval, Pair
from optimizer.data import evaluate
from optimizer.data.question_sets import Example

RESAMPLES = 5000


def over_contexts(
    contexts: Sequence[str],
    differences: np.ndarray,  # (n,) of each question
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean difference; its interval resamples whole contexts."""
    _, places = np.unique(np.array(contexts), return_inverse=True)
    totals, counts = np.bincount(places, weights=differences), np.bincount(places)
    low, high = evaluate.resampled_interval(totals, counts, resamples, seed)
    return Interval(float(differences.mean()), low, high)


def over_seeds(differences: Sequence[float]) -> Interval:
    """Return the mean with Student's t interval; from one seed nothing is known of its spread."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return Interval(mean, -1.0, 1.0)
    from scipy.stats import t  # a second to import

    error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    reach = float(t.ppf(0.975, len(differences) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def pair(
    names: tuple[str, str],
    data: str,
    examples: Sequence[Example],
    answers: tuple[Sequence[str], Sequence[str]],
    readings: tuple[Sequence[Reading], Sequence[Reading]],
) -> Pair:
    """Return two models' scores and what the first has more; `readings` give the forced answers."""
    contexts = [e.context for e in examples]
    first, second = (_scores(examples, found) for found in answers)
    has = np.array([e.answerable for e in examples], dtype=bool)
    forced_1, forced_2 = (_scores(examples, evaluate.forced_answers(r))[has] for r in readings)
    of_answerable = [c for c, keep in zip(contexts, has, strict=True) if keep]
    return Pair(
        first=names[0],
        second=names[1],
        data=data,
        n=len(examples),
        n_contexts=len(set(contexts)),
        f1=(float(first.mean()), float(second.mean())),
        f1_difference=over_contexts(contexts, first - second),
        forced_f1=(float(forced_1.mean()), float(forced_2.mean())) if has.any() else None,
        forced_difference=over_contexts(of_answerable, forced_1 - forced_2) if has.any() else None,
    )


def _scores(examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:  # -> (n,)
    return np.array([evaluate.f1(a, e.answers) for a, e in zip(answers, examples, strict=True)])
