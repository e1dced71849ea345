"""The trials of a search as values, and its limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np

from optimizer.study import pareto
from optimizer.study.pareto import Points
from optimizer.study.space import RANK_STEP, Candidate

MEGABYTE = 1e6
MIN_PAIRS = 3  # with fewer, a rank correlation means nothing
RECIPE_SHARE = 0.1  # by which two recipes without a common value set one shape apart


@dataclass(frozen=True, slots=True)
class Cost:
    """The serving cost of a candidate, which depends on its shape only."""

    p95_ms: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Point:
    """One finished trial."""

    trial: int
    candidate: Candidate
    cost: Cost
    f1: dict[int, float] = field(default_factory=dict)  # by questions; none: ended at the cost gate
    seconds: float = 0.0  # duration of the trial

    @property
    def questions(self) -> int:
        """Return the number of questions of the highest rung that it reached."""
        return max(self.f1, default=0)

    @property
    def best_f1(self) -> float | None:
        return self.f1.get(self.questions)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of feasible candidates; None: no limit."""

    min_f1: float | None = None
    max_p95_ms: float | None = None
    max_size_mb: float | None = None

    def excess(self, cost: Cost, f1: float | None) -> dict[str, float]:
        """Return the relative excess over each limit; 0 or less: within the limit.

        Without an F1 nothing is said of `min_f1`.
        """
        found = {}
        if self.min_f1 is not None and f1 is not None:
            found["min_f1"] = 1 - f1 / self.min_f1
        if self.max_p95_ms is not None:
            found["max_p95_ms"] = cost.p95_ms / self.max_p95_ms - 1
        if self.max_size_mb is not None:
            found["max_size_mb"] = cost.size_bytes / MEGABYTE / self.max_size_mb - 1
        return found

    def binding(self, point: Point) -> tuple[str, float] | None:
        """Return the most exceeded limit with its relative excess; None: within all limits."""
        excess = self.excess(point.cost, point.best_f1)
        worst = max(excess, key=lambda name: excess[name], default=None)
        return (worst, excess[worst]) if worst is not None and excess[worst] > 0 else None

    def reason(self, point: Point) -> str | None:
        """Return why a point is infeasible, in words; None: it is feasible."""
        found = self.binding(point)
        if found is None:
            return None
        name = found[0]
        has = {
            "min_f1": f"F1 {point.best_f1 or 0:.3f} < min_f1 {self.min_f1}",
            "max_p95_ms": f"p95 {point.cost.p95_ms:.1f} ms > max_p95_ms {self.max_p95_ms}",
            "max_size_mb": (
                f"size {point.cost.size_bytes / MEGABYTE:.1f} MB > max_size_mb {self.max_size_mb}"
            ),
        }
        return has[name]


def objectives(points: Sequence[Point], questions: int | None = None) -> Points:  # -> (n, 3)
    """Return -F1, p95 in ms and bytes of points that have an F1: all to be minimised.

    `questions`: take the F1 on so many; None: each point's own best.
    """
    rows = [(-_f1(p, questions), p.cost.p95_ms, p.cost.size_bytes) for p in points]
    return np.array(rows, np.float64).reshape(-1, 3)


def _f1(point: Point, questions: int | None) -> float:
    return point.f1[point.questions if questions is None else questions]


def goes_on(point: Point, others: Sequence[Point], limits: Limits, share: float) -> bool:
    """Return whether a point goes on to the next rung, compared with all points of its rung.

    Compared on the same number of questions: a rank there can only get worse with more points.
    """
    if limits.reason(point):
        return False
    n = point.questions
    field_ = [point, *(p for p in others if n in p.f1 and not limits.reason(p))]
    return bool(pareto.promoted(pareto.ranks(objectives(field_, n)), share)[0])


def is_unfinished(
    point: Point, others: Sequence[Point], limits: Limits, rungs: Sequence[int], share: float
) -> bool:
    """Return whether a point would be asked more questions under these limits.

    It was judged under others: what ended it there need not end it here.
    """
    if limits.reason(point) or point.questions >= max(rungs):
        return False
    return not point.f1 or goes_on(point, others, limits, share)


def front_of(points: Sequence[Point], limits: Limits) -> list[Point]:
    """Return the Pareto front of the feasible points, the most accurate first.

    Only points of the highest rung that any reached: an F1 on few questions flatters.
    """
    useful = [p for p in points if p.f1 and not limits.reason(p)]
    top = max((p.questions for p in useful), default=0)
    best = [p for p in useful if p.questions == top]
    kept = pareto.front(objectives(best))
    members = [p for p, keep in zip(best, kept, strict=True) if keep]
    return sorted(members, key=lambda p: -p.f1[top])


def nearest(points: Sequence[Point], limits: Limits) -> Point | None:
    """Return the point with the smallest worst excess; scored points come before others."""

    def off(point: Point) -> tuple[bool, float]:
        found = limits.binding(point)
        return not point.f1, found[1] if found else 0.0

    return min(points, key=off, default=None)


def guess_f1(candidate: Candidate, points: Sequence[Point], otherwise: float) -> float:
    """Return the F1 of the most similar candidate that has one.

    For candidates that end at the cost gate: a sampler wants a value, and this one says nothing
    against their shape. They are never on a Pareto front.
    """
    known = [(unlike(candidate, p.candidate), p.f1[p.questions]) for p in points if p.f1]
    return min(known, key=lambda pair: pair[0])[1] if known else otherwise


def unlike(a: Candidate, b: Candidate) -> float:
    """Return the distance of two candidates; 0: they compute with the same weights."""
    together = set(a.layers) | set(b.layers)
    apart = len(set(a.layers) ^ set(b.layers)) / len(together)
    widths = abs(log(a.heads / b.heads)) + abs(log(a.ffn / b.ffn))
    tokens = abs(log(a.keep / b.keep)) + abs(_seeing_all(a) - _seeing_all(b))
    thin = abs(_thinness(a.rank) - _thinness(b.rank)) + abs(
        _thinness(a.hidden) - _thinness(b.hidden)
    )
    return apart + widths + tokens + thin + RECIPE_SHARE * _recipes_apart(a, b)


def _recipes_apart(a: Candidate, b: Candidate) -> float:
    """Return the share of the keys of two recipes in which they differ."""
    names = {*dict(a.recipe), *dict(b.recipe)}
    differing = sum(dict(a.recipe).get(name) != dict(b.recipe).get(name) for name in names)
    return differing / len(names) if names else 0.0


def _seeing_all(candidate: Candidate) -> float:
    """Return the share of layers that see all tokens."""
    return candidate.drop_after / len(candidate.layers) if candidate.drops else 1.0


def _thinness(width: int) -> float:
    """Return 0 for words or states in full width, more for narrower ones."""
    return RANK_STEP / width if width else 0.0


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None for too few pairs or when one side is constant."""
    if len(a) < MIN_PAIRS or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    from scipy.stats import spearmanr  # here because the import takes a second

    return float(spearmanr(a, b).statistic)


def hypervolume(points: Sequence[Point], reference: Cost) -> float:
    """Return the share of the box under the reference that the points dominate, 0..1.

    The box reaches from F1 0 to 1, and from nothing to the reference's latency and size.
    """
    scaled = objectives(points) / (1.0, reference.p95_ms, reference.size_bytes)
    scaled[:, 0] += 1.0
    return pareto.hypervolume(scaled, (1.0, 1.0, 1.0))
