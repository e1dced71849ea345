"""How the hypervolume of a run's front grew, and by how much one method's is larger. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optimizer.benchmarks import pairs
from optimizer.benchmarks.results import Against, Run, Step
from optimizer.search import subarchitecture
from optimizer.study import trials
from optimizer.study.trials import Cost, Limits, Point


@dataclass(frozen=True, slots=True)
class Tried:
    """What a run tried, in order."""

    points: tuple[Point, ...]
    minutes: tuple[float, ...]  # charged until each was judged

    def within(self, minutes: float | None) -> Tried:
        """Return what fitted into so many minutes; None: all."""
        if minutes is None:
            return self
        n = sum(spent <= minutes for spent in self.minutes)
        return Tried(self.points[:n], self.minutes[:n])


def common_questions(runs: Sequence[Tried], limits: Limits) -> int:
    """Return the most questions on which every run scored something useful; 0: there are none.

    A run that scored nothing useful has no say: it is worth nothing, whatever is asked.
    """
    asked = [{n for p in _useful(run.points, limits) for n in p.f1} for run in runs]
    asked = [rungs for rungs in asked if rungs]
    return max(set.intersection(*asked), default=0) if asked else 0


def _useful(points: Sequence[Point], limits: Limits) -> list[Point]:
    return [p for p in points if p.f1 and not limits.reason(p)]


def curve(tried: Tried, limits: Limits, reference: Cost, questions: int) -> tuple[Step, ...]:
    """Return where the Pareto front's share of the reference's box grew; F1 on so many questions alone.

    Scaled to the reference and cut off there, so a point beyond it adds nothing.
    """
    front: list[Point] = []
    steps: list[Step] = []
    for i, (point, minutes) in enumerate(zip(tried.points, tried.minutes, strict=True), 1):
        if questions not in point.f1 or limits.reason(point):
            continue
        seen = [*front, replace(point, f1={questions: point.f1[questions]})]
        front = trials.front_of(seen, Limits())
        now = trials.hypervolume(front, reference)
        if now > (steps[-1].hypervolume if steps else 0.0):
            steps.append(Step(i, minutes, now))
    return tuple(steps)


def best_w(tried: Tried, limits: Limits, reference: Cost, questions: int) -> float:
    """Return the largest W-coefficient, of which the reference is the maximum point; F1 as in `curve`.

    A candidate that saves nothing in size or in time is worth nothing by it.
    """
    useful = (p for p in tried.points if questions in p.f1 and not limits.reason(p))
    small = (
        p
        for p in useful
        if p.cost.p95_ms < reference.p95_ms and p.cost.size_bytes < reference.size_bytes
    )
    return max(
        (subarchitecture.w_coefficient(p.cost, 1 - p.f1[questions], reference) for p in small),
        default=0.0,
    )


def against(first: Sequence[Run], other: Sequence[Run]) -> list[Against]:
    """Return the paired differences after as many candidates, and after as many minutes.

    The shorter run of a pair says how many. A method with a budget in minutes is not compared by
    candidates; where it was given fewer minutes than the first took, also `end` against end.
    """
    by_seed = {run.seed: run for run in other}
    pairs = [(run, by_seed[run.seed]) for run in first if run.seed in by_seed]
    if not pairs:
        return []
    volumes: dict[str, list[tuple[float, float]]] = {"candidates": [], "minutes": [], "end": []}
    for a, b in pairs:
        n, minutes = min(a.candidates, b.candidates), min(a.minutes, _minutes(b))
        volumes["candidates"].append((a.after(n), b.after(n)))
        volumes["minutes"].append((a.at(minutes), b.at(minutes)))
        volumes["end"].append((a.hypervolume, b.hypervolume))
    timed = any(b.budget_minutes is not None for _, b in pairs)
    short = timed and any(_minutes(b) < a.minutes for a, b in pairs)
    wanted = {"candidates": not timed, "minutes": True, "end": short}
    return [_against(other[0].method, at, volumes[at]) for at, yes in wanted.items() if yes]


def _minutes(run: Run) -> float:
    return run.minutes if run.budget_minutes is None else run.budget_minutes


def _against(method: str, at: str, volumes: Sequence[tuple[float, float]]) -> Against:
    differences = [a - b for a, b in volumes]
    wins = sum(difference > 0 for difference in differences)
    interval = pairs.over_seeds(differences)
    return Against(method, at, len(volumes), wins, interval)
