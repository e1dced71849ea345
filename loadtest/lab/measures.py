"""Measures of a run: SLO attainment, served accuracy, compute. Pure: fates in, numbers out.

Legend: N requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.domain import SloPolicy
from loadtest.lab import paths
from loadtest.lab.engine import End, Fate
from loadtest.lab.traces import Trace, TraceRequest
from loadtest.lab.world import World

BURST_WINDOW_MS = 5_000.0
RECOVERED = 0.9  # of the run's median window

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measures:
    """One run, or one class of it. Shares are of all its requests; nan where there is nothing.

    `floor_met`: the F1 of the class's answers, on average, is at least the floor asked for, each
    answer credited with what its plan scores on recorded questions of that length; of a run, the
    share of requests that are of such a class. `joint`: in time and floor met. A
    rejection and an expiry are misses. `by_certificate`: in time, by a plan whose certified floor is
    at least the request's, its escalation not cut: the SLO request by request, where `joint` lets a class's answers
    make up for each other.
    """

    n: int
    in_time: float
    floor_met: float
    joint: float
    joint_feasible: float
    by_certificate: float
    answered: float
    rejected: float
    expired: float
    accepted_in_time: float  # of those not rejected
    escalated: float  # of the answers: by a later variant than a plan's first
    escalation_cut: float  # of the answers: doubted, and the next variant not waited for
    strict_met: float  # of the strict ones that were accepted: in time
    goodput_per_s: float  # joint
    served_f1: float  # mean recorded F1 of the answers
    compute_ms: float  # of cores, spent on anything, a request's answer
    compute_in_time_ms: float  # the same, an answer that met the SLO
    p50_ms: float
    p95_ms: float
    p99_ms: float
    covered_p95: float  # of non-strict accepted ones: done within the predicted p95
    covered_p99: float  # of strict ones: within the predicted p99
    width_p95: float  # mean predicted p95 over the p95 that was seen
    worst_f1: float  # mean F1 of the worst window of 5 s, an unanswered request counting 0
    worst_in_time: float  # share of the worst window
    recovery_s: float  # longest stretch of windows with less than 0.9 of the median joint share


def measure(world: World, trace: Trace, fates: Sequence[Fate]) -> dict[str, Any]:
    """Return the measures of the run, of each class, and how often each plan was used."""
    facts = _Facts(world, trace, fates)
    names = sorted({a.slo.slo_class for a in trace})
    kept = np.zeros(len(trace), dtype=bool)
    for name in names:
        rows = facts.of_class(name)
        kept[rows] = facts.keeps_floor(rows)
    every = np.ones(len(trace), dtype=bool)
    plans: dict[str, int] = {}
    for fate in fates:
        plans[fate.plan or "(none)"] = plans.get(fate.plan or "(none)", 0) + 1
    return {
        "all": _plain(facts.measures(every, kept)),
        "classes": {n: _plain(facts.measures(facts.of_class(n), kept)) for n in names},
        "plans": plans,
    }


class _Facts:
    """The fates as columns."""

    def __init__(self, world: World, trace: Trace, fates: Sequence[Fate]) -> None:
        floors = {name: plan.certified_f1 for name, plan in world.plans.items()}
        self.slo_class = np.array([a.slo.slo_class for a in trace])
        self.strict = np.array([a.slo.policy is SloPolicy.STRICT for a in trace], dtype=bool)
        self.feasible = np.array([a.feasible for a in trace], dtype=bool)
        self.floor = np.array([a.slo.min_f1 for a in trace])
        self.target = np.array([a.slo.latency_ms for a in trace])
        self.arrival = np.array([a.arrival_ms for a in trace])
        self.latency = np.array([f.latency_ms for f in fates])
        self.predicted = np.array([f.predicted_ms for f in fates])
        self.compute = np.array([f.compute_ms for f in fates])
        self.answered = np.array([f.end is End.ANSWERED for f in fates], dtype=bool)
        self.refused = np.array([f.end is End.REFUSED for f in fates], dtype=bool)
        self.certified_floor = np.array([0.0 if f.cut else floors.get(f.plan, 0.0) for f in fates])
        self.escalated = np.array([f.stage > 0 for f in fates], dtype=bool)
        self.cut = np.array([f.cut for f in fates], dtype=bool)
        self.f1 = np.array([_f1(world, a, f) for a, f in zip(trace, fates, strict=True)])
        self.credit = np.array([_credit(world, a, f) for a, f in zip(trace, fates, strict=True)])
        self.in_time = self.answered & (self.latency <= self.target)

    def of_class(self, name: str) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = self.slo_class == name
        return found

    def keeps_floor(self, rows: npt.NDArray[np.bool_]) -> bool:
        """Is the mean credit of these requests' answers at least their mean floor?"""
        answered = rows & self.answered
        return bool(answered.any() and self.credit[answered].mean() >= self.floor[answered].mean())

    def measures(self, rows: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_]) -> Measures:
        joint = self.in_time & kept
        answered, accepted = rows & self.answered, rows & ~self.refused
        chosen = accepted & np.isfinite(self.predicted)
        usual, strict = chosen & ~self.strict, chosen & self.strict
        seconds = max(1e-9, (self.arrival.max() - self.arrival.min()) / 1e3)
        p50, p95, p99 = _quantiles(self.latency[answered])
        seen95 = _quantiles(self.latency[usual & self.answered])[1]
        worst_f1, worst_in_time, recovery_s = self._burst(rows, joint)
        certified = self.in_time & (self.certified_floor >= self.floor)
        return Measures(
            n=int(rows.sum()),
            in_time=_mean(self.in_time[rows]),
            floor_met=_mean(kept[rows]),
            joint=_mean(joint[rows]),
            joint_feasible=_mean(joint[rows & self.feasible]),
            by_certificate=_mean(certified[rows]),
            answered=_mean(self.answered[rows]),
            rejected=_mean(self.refused[rows]),
            expired=_mean(~(self.answered | self.refused)[rows]),
            accepted_in_time=_mean(self.in_time[accepted]),
            escalated=_mean(self.escalated[answered]),
            escalation_cut=_mean(self.cut[answered]),
            strict_met=_mean(self.in_time[accepted & self.strict]),
            goodput_per_s=float(joint[rows].sum()) / seconds,
            served_f1=_mean(self.f1[answered]),
            compute_ms=_over(self.compute[rows].sum(), answered.sum()),
            compute_in_time_ms=_over(self.compute[rows].sum(), joint[rows].sum()),
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            covered_p95=_mean((self.latency <= self.predicted)[usual]),
            covered_p99=_mean((self.latency <= self.predicted)[strict]),
            width_p95=_mean(self.predicted[usual & self.answered]) / seen95,
            worst_f1=worst_f1,
            worst_in_time=worst_in_time,
            recovery_s=recovery_s,
        )

    def _burst(
        self, rows: npt.NDArray[np.bool_], joint: npt.NDArray[np.bool_]
    ) -> tuple[float, float, float]:
        window = (self.arrival // BURST_WINDOW_MS).astype(int)
        several = [w for w in np.unique(window[rows]) if (rows & (window == w)).sum() >= 5]
        if not several:
            return nan, nan, nan
        parts = [rows & (window == w) for w in several]
        f1 = [_mean(np.where(self.answered, self.f1, 0.0)[p]) for p in parts]
        in_time = [_mean(self.in_time[p]) for p in parts]
        shares = [_mean(joint[p]) for p in parts]
        usual, run, longest = float(np.median(shares)), 0, 0
        for share in shares:
            run = run + 1 if share < RECOVERED * usual else 0
            longest = max(longest, run)
        return min(f1), min(in_time), longest * BURST_WINDOW_MS / 1e3


def _plain(measures: Measures) -> dict[str, float | None]:
    """Return the measures as JSON has them: what does not exist is None."""
    return {k: v if isfinite(v) else None for k, v in asdict(measures).items()}


def _f1(world: World, request: TraceRequest, fate: Fate) -> float:
    if fate.end is not End.ANSWERED:
        return nan
    return world.recording.said[fate.variant].f1[request.question]


def _credit(world: World, request: TraceRequest, fate: Fate) -> float:
    if fate.end is not End.ANSWERED:
        return nan
    end = paths.End(fate.plan, fate.stage, fate.cut)
    return world.worth[end][world.recording.sizes[request.question].bucket]


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else nan


def _over(a: float, b: float) -> float:
    return float(a) / float(b) if b else nan


def _quantiles(values: Values) -> tuple[float, float, float]:
    if not len(values):
        return nan, nan, nan
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99))
    return float(p50), float(p95), float(p99)
