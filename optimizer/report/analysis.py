"""Values that a report computes from its inputs: hypervolume, rank correlation, knob importance. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np

from gateway.catalog.schema import Variant
from optimizer.benchmarks.results import Run
from optimizer.study import pareto
from optimizer.study.config import ELASTIC, StudentConfig
from optimizer.study.space import RECIPE_KNOBS, Candidate

MIN_TRIALS = 3  # with fewer, a share of the variance means nothing
MAX_MOMENTS = 80  # points of a line over time


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial as the search recorded it; None: unknown, or the trial ended before."""

    number: int
    candidate: Candidate
    p95_ms: float | None = None
    size_bytes: int | None = None
    f1: float | None = None
    n_questions: int | None = None
    feasible: bool = True
    reason: str | None = None  # why it is infeasible
    rung: int | str | None = None  # the last one it reached
    seconds: float | None = None
    variant: str | None = None  # name of the variant, if it was finished

    @property
    def scored(self) -> tuple[float, float, int] | None:
        """Return F1, p95 in ms and bytes where all three are known."""
        if self.f1 is None or self.p95_ms is None or self.size_bytes is None:
            return None
        return self.f1, self.p95_ms, self.size_bytes


@dataclass(frozen=True, slots=True)
class ReferenceCorner:
    """The far corner of the hypervolume's box, with F1 0."""

    p95_ms: float
    size_bytes: int


def reference_of(trials: Sequence[Trial]) -> ReferenceCorner | None:
    """Return the slowest p95 and the largest size of any trial; None: nothing was measured."""
    measured = [t for t in trials if t.p95_ms is not None and t.size_bytes is not None]
    if not measured:
        return None
    return ReferenceCorner(
        max(t.p95_ms for t in measured if t.p95_ms is not None),
        max(t.size_bytes for t in measured if t.size_bytes is not None),
    )


def top_rung(trials: Sequence[Trial]) -> list[Trial]:
    """Return the feasible trials scored on the most questions: F1 on fewer is too optimistic."""
    scored = [t for t in trials if t.feasible and t.scored]
    most = max((t.n_questions or 0 for t in scored), default=0)
    return [t for t in scored if (t.n_questions or 0) == most]


def hypervolumes(
    trials: Sequence[Trial], reference: ReferenceCorner
) -> Iterator[tuple[int, float]]:
    """Yield (trial number, share of the box that trials up to it dominate), where it grows."""
    found: list[tuple[float, float, float]] = []
    last = 0.0
    for trial in sorted(top_rung(trials), key=lambda t: t.number):
        assert trial.scored is not None
        f1, p95_ms, size_bytes = trial.scored
        found.append((1 - f1, p95_ms / reference.p95_ms, size_bytes / reference.size_bytes))
        now = pareto.hypervolume(np.array(found), (1.0, 1.0, 1.0))
        if now > last:
            yield trial.number, now
            last = now


def finished(
    students: Sequence[StudentConfig], trials: Sequence[Trial], variants: Sequence[Variant]
) -> list[tuple[Trial, Variant]]:
    """Return the trials that were finished and published, each with its variant."""
    by_name = {v.name: v for v in variants}
    wanted = {t.variant: t for t in trials if t.variant}
    for student in students:
        if student.start == ELASTIC and student.name not in wanted:
            sliced = (t for t in trials if t.f1 is not None and _is_slice(student, t.candidate))
            if (trial := next(sliced, None)) is not None:
                wanted[student.name] = trial
    pairs = [(t, by_name[name]) for name, t in wanted.items() if name in by_name]
    return [(t, v) for t, v in pairs if t.f1 is not None and v.quality]


def _is_slice(student: StudentConfig, candidate: Candidate) -> bool:
    shape = student.candidate(candidate.heads)
    return replace(shape, precision=candidate.precision) == candidate


def _in_recipe(name: str, candidate: Candidate) -> float:
    return dict(candidate.recipe).get(name, 0.0)


KNOBS: dict[str, Callable[[Candidate], float | str]] = {
    "layers": lambda c: len(c.layers),
    "heads": lambda c: c.heads,
    "ffn": lambda c: c.ffn,
    "bits": lambda c: c.embedding_bits,
    "precision": lambda c: c.precision.value,
    "rank": lambda c: c.rank,
    "hidden": lambda c: c.hidden,
    "keep": lambda c: c.keep,
    "drop after": lambda c: c.drop_after,
    **{name: partial(_in_recipe, name) for name in RECIPE_KNOBS},
}


def importance(trials: Sequence[Trial]) -> dict[str, tuple[float, float, float]]:
    """Return by knob the shares of the variance of F1, p95 and size that it explains alone.

    Source: the correlation ratio (eta squared), Fisher 1925.
    """
    scored = [t for t in trials if t.scored]
    values = np.array([t.scored for t in scored], np.float64)
    if len(scored) < MIN_TRIALS:
        return {}
    total = values.var(axis=0)
    found = {}
    for name, knob in KNOBS.items():
        labels = np.array([str(knob(t.candidate)) for t in scored])
        between = np.zeros(3)
        for label in set(labels.tolist()):
            group = values[labels == label]
            between += len(group) / len(values) * (group.mean(0) - values.mean(0)) ** 2
        f1, p95, size = np.divide(between, total, out=np.zeros(3), where=total > 0).tolist()
        found[name] = (f1, p95, size)
    return found


@dataclass(frozen=True, slots=True)
class Moment:
    """Hypervolumes that the runs of one method had reached at a time, over their seeds."""

    minutes: float
    low: float
    middle: float
    high: float


def progress(runs: Sequence[Run]) -> list[Moment]:
    """Return median and range of the runs' hypervolumes at the times when one of them grows.

    At most MAX_MOMENTS times. A run that has ended keeps its last value.
    """
    moments = sorted({step.minutes for run in runs for step in run.curve})
    if not moments:
        return []
    picked = np.unique(np.linspace(0, len(moments) - 1, MAX_MOMENTS).round().astype(int))
    end = max(run.minutes for run in runs)
    times = [*(moments[i] for i in picked), *([end] if end > moments[-1] else [])]
    found = []
    for minutes in times:
        volumes = [run.at(minutes) for run in runs]
        found.append(Moment(minutes, min(volumes), median(volumes), max(volumes)))
    return found


@dataclass(frozen=True, slots=True)
class Economy:
    """Time per search candidate, compared with a separate training. Seconds; None: unknown."""

    candidates: int  # that passed through the cost gate
    scored: int  # that were scored with an F1
    candidate_s: float | None  # median of those with an F1
    elastic_share_s: float | None  # training time of the elastic student, divided by `scored`
    training_s: float | None  # median over the trainings of finished students

    @property
    def times_cheaper(self) -> float | None:
        """Training seconds over candidate seconds, without the share of the elastic student."""
        return _ratio(self.training_s, self.candidate_s)

    @property
    def times_cheaper_in_all(self) -> float | None:
        if self.elastic_share_s is None or self.candidate_s is None:
            return None
        return _ratio(self.training_s, self.candidate_s + self.elastic_share_s)


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def economy(
    trials: Sequence[Trial], elastic_s: float | None, trainings_s: Sequence[float]
) -> Economy:
    """Return the times from the recorded seconds."""
    scored = [t for t in trials if t.f1 is not None]
    took = [t.seconds for t in scored if t.seconds]
    return Economy(
        candidates=len(trials),
        scored=len(scored),
        candidate_s=median(took) if took else None,
        elastic_share_s=elastic_s / len(scored) if elastic_s is not None and scored else None,
        training_s=median(trainings_s) if trainings_s else None,
    )
