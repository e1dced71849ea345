"""What a fleet attained, and what it cost. Pure: fates in, numbers out.

A request is attained if it is answered in time by a plan that certifies the floor it asked for, and its escalation
was not cut. Shares are of the requests that some plan could meet on an idle host; the traffic also has requests that
no plan can meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

import numpy as np

from loadtest.lab.engine import End, Fate
from loadtest.lab.traces import Trace, TraceRequest
from loadtest.lab.world import World

MILLION = 1e6


@dataclass(slots=True)
class ClassFound:
    """One SLO class."""

    n: float = 0.0  # requests
    feasible: float = 0.0  # of them, those that some plan could meet
    attained: float = 0.0  # of those
    compute_ms: float = 0.0  # spent on all of them

    @property
    def share(self) -> float:
        return self.attained / self.feasible if self.feasible else nan

    def add(self, other: ClassFound, weight: float = 1.0) -> None:
        self.n += weight * other.n
        self.feasible += weight * other.feasible
        self.attained += weight * other.attained
        self.compute_ms += weight * other.compute_ms


@dataclass(frozen=True, slots=True)
class Found:
    """One run. Latencies are of all answers; `lost`: share without any answer, refusals left out."""

    n: int
    attained: float
    answered: float
    refused: float
    lost: float
    p50_ms: float
    p99_ms: float
    classes: Mapping[str, ClassFound] = field(default_factory=dict)


def measure(
    world: World,
    trace: Trace,
    fates: Sequence[Fate],
    counted_ms: tuple[float, float],
    beside_ms: float = 0.0,
) -> Found:
    """Return what became of the requests that arrived in an interval.

    `beside_ms`: of a request's compute, what is left out, as it is not done by what the host is sized by.
    """
    floors = {plan.name: plan.certified_f1 for plan in world.catalog.plans}
    pairs = [
        (a, f)
        for a, f in zip(trace, fates, strict=True)
        if counted_ms[0] <= a.arrival_ms < counted_ms[1]
    ]
    classes: dict[str, ClassFound] = {}
    for request, fate in pairs:
        ms = max(0.0, fate.compute_ms - beside_ms)
        met = float(attained(floors, request, fate))
        one = ClassFound(1.0, float(request.feasible), met, ms)
        classes.setdefault(request.slo.slo_class, ClassFound()).add(one)
    latencies = [f.latency_ms for _, f in pairs if f.end is End.ANSWERED]
    p50, p99 = np.quantile(latencies, (0.5, 0.99)) if latencies else (nan, nan)
    ends = [f.end for _, f in pairs]
    n = max(1, len(pairs))
    return Found(
        len(pairs),
        total(classes.values()).share,
        ends.count(End.ANSWERED) / n,
        ends.count(End.REFUSED) / n,
        ends.count(End.EXPIRED) / n,
        float(p50),
        float(p99),
        dict(sorted(classes.items())),
    )


def attained(floors: Mapping[str, float], request: TraceRequest, fate: Fate) -> bool:
    """Return whether a request's SLO was met; one that nobody could meet was not."""
    return (
        request.feasible
        and fate.end is End.ANSWERED
        and fate.latency_ms <= request.slo.latency_ms
        and not fate.cut
        and floors[fate.plan] >= request.slo.min_f1
    )


def total(classes: Iterable[ClassFound]) -> ClassFound:
    """Return all classes together."""
    found = ClassFound()
    for each in classes:
        found.add(each)
    return found


def over_time(
    world: World, trace: Trace, fates: Sequence[Fate], window_ms: float
) -> list[tuple[float, float]]:
    """Return the middle of each window, s, and the share of its feasible requests that were attained."""
    floors = {plan.name: plan.certified_f1 for plan in world.catalog.plans}
    windows: dict[int, ClassFound] = {}
    for request, fate in zip(trace, fates, strict=True):
        one = ClassFound(1.0, float(request.feasible), float(attained(floors, request, fate)))
        windows.setdefault(int(request.arrival_ms // window_ms), ClassFound()).add(one)
    return [
        ((w + 0.5) * window_ms / 1e3, found.share)
        for w, found in sorted(windows.items())
        if found.feasible
    ]


def recovered_s(points: Sequence[tuple[float, float]], from_s: float, usual: float) -> float:
    """Return how long after a time the share stays at 0.98 of the usual one; nan: it does not."""
    late = [at for at, share in points if at > from_s and share < 0.98 * usual]
    last = max((at for at, _ in points), default=from_s)
    if not late:
        return 0.0
    return nan if max(late) >= last else max(late) - from_s


@dataclass(frozen=True, slots=True)
class Cost:
    """What a million requests of one class cost, and a million that met their SLO."""

    requests: float  # a day
    share: float  # of the fleet's compute
    per_million: float
    per_million_met: float


def day_of(slices: Iterable[tuple[Mapping[str, ClassFound], float]]) -> dict[str, ClassFound]:
    """Return a day's classes: each slice's, times the seconds of the day that stand for one of its own."""
    found: dict[str, ClassFound] = {}
    for classes, weight in slices:
        for name, each in classes.items():
            found.setdefault(name, ClassFound()).add(each, weight)
    return dict(sorted(found.items()))


def costs(classes: Mapping[str, ClassFound], day_price: float) -> dict[str, Cost]:
    """Return what each class costs: the whole fleet's day is shared by compute, idle hours included."""
    compute_ms = total(classes.values()).compute_ms
    found = {}
    for name, each in classes.items():
        share = each.compute_ms / compute_ms if compute_ms else nan
        paid = share * day_price
        found[name] = Cost(each.n, share, _over(paid, each.n), _over(paid, each.attained))
    return found


def _over(paid: float, n: float) -> float:
    return MILLION * paid / n if n else nan
