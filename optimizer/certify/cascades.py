"""Cascades of variants: evaluates them on the variants' answers and picks those to certify. Pure.

Legend: n questions, k stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from optimizer.study import pareto

STAGES = (2, 3)
# Shares of the questions, least sure first, that may be escalated from one stage.
SHARES = {2: np.linspace(0.04, 0.96, 24), 3: np.linspace(0.05, 0.95, 11)}
CANDIDATES = 6  # each further candidate leaves less of delta to the others
DECIMALS = 4  # of a threshold


@dataclass(frozen=True, slots=True)
class VariantAnswers:
    """F1, score and cost of one variant's answer to each question."""

    name: str
    f1: np.ndarray  # (n,)
    score: np.ndarray  # (n,) calibrated P(the answer is right), as served
    cost_ms: np.ndarray  # (n,) of one core


@dataclass(frozen=True, slots=True)
class Chain:
    """Variants in the order in which they run; the next one runs when a score is below its threshold."""

    variants: tuple[str, ...]  # (k,)
    thresholds: tuple[float, ...]  # (k - 1,)


@dataclass(frozen=True, slots=True)
class CascadeResult:
    """F1 and cost of a plan's answer to each question, and which stages ran."""

    f1: np.ndarray  # (n,)
    ran: np.ndarray  # (k, n) bool
    cost_ms: np.ndarray  # (n,)

    @property
    def reach(self) -> tuple[float, ...]:
        """Return the share of the questions that each stage answers."""
        return tuple(float(share) for share in self.ran.mean(axis=1))


def play(chain: Chain, answers: Sequence[VariantAnswers]) -> CascadeResult:
    """Return the result of the plan on questions that each of its variants has answered."""
    by_name = {a.name: a for a in answers}
    variants = [by_name[name] for name in chain.variants]
    stage = last_stages([a.score for a in variants], chain.thresholds)
    ran = np.arange(len(variants))[:, None] <= stage
    f1 = np.choose(stage, [a.f1 for a in variants])
    return CascadeResult(f1, ran, np.where(ran, [a.cost_ms for a in variants], 0.0).sum(axis=0))


def last_stages(
    scores: Sequence[np.ndarray],  # (k, n)
    thresholds: Sequence[float],  # (k - 1,)
) -> np.ndarray:  # (n,)
    """Return the stage that gives each answer: the first whose score is not below its threshold."""
    found = np.full(len(scores[0]), len(thresholds))
    for stage in reversed(range(len(thresholds))):
        found[np.asarray(scores[stage]) >= thresholds[stage]] = stage
    return found


def chains(answers: Sequence[VariantAnswers]) -> Iterator[Chain]:
    """Yield every cascade from cheaper to costlier variants, with thresholds at quantiles of the scores."""
    by_cost = sorted(answers, key=lambda a: float(a.cost_ms.mean()))
    for k in STAGES:
        for stages in combinations(by_cost, k):
            levels = [_levels(stage.score, k) for stage in stages[:-1]]
            for thresholds in product(*levels):
                yield Chain(tuple(stage.name for stage in stages), thresholds)


def _levels(score: np.ndarray, k: int) -> list[float]:
    return sorted({round(float(q), DECIMALS) for q in np.quantile(score, SHARES[k])})


def worth_certifying(
    answers: Sequence[VariantAnswers],
    weights: np.ndarray,  # (n,) of a mean over contexts, sum 1
    count: int = CANDIDATES,
) -> list[Chain]:
    """Return the cascades that, with the single variants, dominate the most of (F1, cost).

    Cascades that cost more than the costliest variant are left out. The scores on these questions are
    optimistic, because the cascades are chosen by them: certify the cascades on other questions.
    """
    found = [Chain((a.name,), ()) for a in answers] + list(chains(answers))
    points = np.array([_point(play(chain, answers), weights) for chain in found])
    dearest = points[: len(answers), 1].max()
    kept = [i for i in np.flatnonzero(pareto.front(points)) if i >= len(answers)]
    kept = [i for i in kept if points[i, 1] < dearest]
    best = pareto.subset(points[kept], count)
    return [found[kept[i]] for i in best]


def _point(played: CascadeResult, weights: np.ndarray) -> tuple[float, float]:
    return -float(played.f1 @ weights), float(played.cost_ms.mean())
