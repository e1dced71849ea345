"""Summary of a run: SLO attainment by class, accuracy, answering plans. Pure.

As in the lab (loadtest.lab.measures): a class meets its floor when the mean F1 of its answers is at
least the mean floor asked for; joint: in time, and of such a class; whatever was not answered is a
miss. F1 is the measured one, of these very answers to real questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan, sqrt
from typing import Any

import numpy as np

from gateway.domain import SloPolicy
from loadtest.drive.open_loop import Run
from loadtest.drive.outcomes import Outcome, Result

NOT_ACCEPTED = (Outcome.SHED, Outcome.REFUSED)


@dataclass(frozen=True, slots=True)
class Attainment:
    """One class of requests, or all. Shares are of its requests; nan where there is nothing."""

    n: int
    in_time: float
    floor_met: float  # 1 or 0; of all: the share of requests whose class meets its floor
    joint: float
    joint_feasible: float  # of requests that some plan could serve
    by_certificate: float  # in time, by a plan that certifies the floor asked for
    strict_met: float  # of strict requests that were accepted: in time
    answered: float
    shed: float
    refused: float
    expired: float
    failed: float  # any other failure, lost and silent ones included
    f1: float  # mean of the answers
    f1_error: float  # its standard error
    floor: float  # mean of those answered
    p50_ms: float  # of the answers, from when they were due
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run in numbers."""

    every: Attainment
    classes: dict[str, Attainment]
    plans: dict[str, int]  # answers by plan
    outcomes: dict[str, int]
    failures: dict[str, int]  # what was said of what is neither answered, shed nor refused
    rate_per_s: float
    goodput_per_s: float  # joint

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON has it: what does not exist is null."""
        return {
            "all": _plain(self.every),
            "classes": {name: _plain(found) for name, found in self.classes.items()},
            "plans": self.plans,
            "outcomes": self.outcomes,
            "failures": self.failures,
            "rate_per_s": round(self.rate_per_s, 3),
            "goodput_per_s": round(self.goodput_per_s, 3),
        }


def summarize(run: Run) -> Summary:
    """Return what a run was worth."""
    results = run.results
    by_class: dict[str, list[Result]] = {}
    for result in results:
        by_class.setdefault(result.request.slo.slo_class, []).append(result)
    kept = {name: _keeps_floor(found) for name, found in sorted(by_class.items())}
    every = _attainment(results, kept)
    seconds = max(results[-1].request.at_ms / 1e3, 1e-9) if results else nan
    return Summary(
        every=every,
        classes={name: _attainment(by_class[name], kept) for name in kept},
        plans=_counts(r.reply.plan for r in results if r.answered),
        outcomes=_counts(str(r.reply.outcome) for r in results),
        failures=_counts(r.reply.detail for r in results if _failed(r)),
        rate_per_s=len(results) / seconds,
        goodput_per_s=every.joint * len(results) / seconds if results else nan,
    )


def _failed(result: Result) -> bool:
    return result.reply.outcome in (Outcome.FAILED, Outcome.LOST, Outcome.SILENT)


def _counts(words: Any) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _keeps_floor(results: Sequence[Result]) -> bool:
    answered = [r for r in results if r.answered]
    if not answered:
        return False
    floor = _mean([r.request.slo.min_f1 for r in answered])
    return _mean([r.f1 for r in answered]) >= floor


def _attainment(results: Sequence[Result], kept: dict[str, bool]) -> Attainment:
    answered = [r for r in results if r.answered]
    floors = [kept[r.request.slo.slo_class] for r in results]
    joint = [r.in_time and floor for r, floor in zip(results, floors, strict=True)]
    feasible = [j for j, r in zip(joint, results, strict=True) if r.request.feasible]
    accepted = [r for r in results if r.reply.outcome not in NOT_ACCEPTED]
    strict = [r.in_time for r in accepted if r.request.slo.policy is SloPolicy.STRICT]
    f1s = [r.f1 for r in answered]
    p50, p95, p99 = _quantiles([r.latency_ms for r in answered])
    return Attainment(
        n=len(results),
        in_time=_mean([r.in_time for r in results]),
        floor_met=_mean(floors),
        joint=_mean(joint),
        joint_feasible=_mean(feasible),
        by_certificate=_mean([r.in_time and r.certified for r in results]),
        strict_met=_mean(strict),
        answered=_mean([r.answered for r in results]),
        shed=_share(results, Outcome.SHED),
        refused=_share(results, Outcome.REFUSED),
        expired=_share(results, Outcome.EXPIRED),
        failed=_mean([_failed(r) for r in results]),
        f1=_mean(f1s),
        f1_error=float(np.std(f1s)) / sqrt(len(f1s)) if f1s else nan,
        floor=_mean([r.request.slo.min_f1 for r in answered]),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )


def _share(results: Sequence[Result], outcome: Outcome) -> float:
    return _mean([r.reply.outcome is outcome for r in results])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else nan


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return nan, nan, nan
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99))
    return float(p50), float(p95), float(p99)


def _plain(found: Attainment) -> dict[str, float | None]:
    summary: dict[str, float | None] = {}
    for name, value in asdict(found).items():
        summary[name] = (round(value, 4) if isfinite(value) else None) if name != "n" else value
    return summary
