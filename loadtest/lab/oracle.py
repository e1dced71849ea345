"""What nobody can beat: the largest joint attainment that arrivals and service times leave room for.

The oracle knows every arrival, every SLO, what each request would take on each variant, where each
cascade would doubt its answer, and the mean F1 of what ends so on recorded questions of its length; not
which single answers will be right, which no policy sees either. It may split a request between plans,
preempt, use all cores for one request at once, and knows no queue: only that within its slots of time
the work on a request must fit beside all other work, and the gateway's share of it on the gateway's one
thread a host. Arrivals are rounded down and deadlines up to whole slots. Each of these gives it more than
any policy in the simulator has, so its optimum, a linear programme, bounds them all from above (unless
late answers lift a class's mean F1, which it does not count). It is not attained: between it and the best
policy lie the queueing inside a slot and the future unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from loadtest.lab.paths import End
from loadtest.lab.traces import Trace, TraceRequest
from loadtest.lab.world import World

if TYPE_CHECKING:  # scipy takes seconds to import, which every other command would pay
    from scipy.sparse import coo_array

SLOT_MS = 200.0
THRIFT = 1e-6  # what a unit of mean work weighs against an answer: ties go to less compute
NAME = "oracle (bound)"


@dataclass(frozen=True, slots=True)
class Bound:
    """The optimum of the programme."""

    joint: float  # share of all requests
    compute_ms: float  # of cores, an answer
    served_f1: float  # mean F1 of the plans that answer


@dataclass(frozen=True, slots=True)
class _Choice:
    """One request answered by one plan."""

    request: int
    gateway_ms: float
    models_ms: float
    f1: float

    @property
    def work_ms(self) -> float:
        return self.gateway_ms + self.models_ms


def bound(world: World, trace: Trace, seed: int) -> Bound:
    """Return the bound on every policy that plays this trace with this seed's service times."""
    choices = _choices(world, trace, seed)
    if not choices:
        return Bound(0.0, 0.0, 0.0)
    x = _solve(world, trace, choices)
    answered = float(x.sum())
    work, f1 = (np.array([getattr(c, k) for c in choices]) for k in ("work_ms", "f1"))
    if not answered:
        return Bound(0.0, 0.0, 0.0)
    return Bound(answered / len(trace), float(x @ work) / answered, float(x @ f1) / answered)


def _choices(world: World, trace: Trace, seed: int) -> list[_Choice]:
    """Return the ways that could answer each request in time if it were alone."""
    window_ms, sizes = world.window_ms(trace, seed), world.sizes_of(trace)
    found: list[_Choice] = []
    for i, request in enumerate(trace):
        own: list[_Choice] = []
        n, bucket = sizes[i].n_windows, sizes[i].bucket
        for plan in world.catalog.plans:
            stop, each_ms = world.stops[plan.name][request.question], 0.0
            for stage in range(stop + 1):
                each_ms += window_ms[plan.variants[stage]][i]
                gateway_ms = world.gateway_cpu_ms + stage * world.escalation_cpu_ms
                if gateway_ms + each_ms * ceil(n / world.all_cores) > request.slo.latency_ms:
                    break
                f1 = world.worth[End(plan.name, stage, stage < stop)][bucket]
                own.append(_Choice(i, gateway_ms, each_ms * n, f1))
        found += _undominated(own)
    return found


def _undominated(choices: Sequence[_Choice]) -> list[_Choice]:
    """Return those that no other is at least as accurate as for no more work: an optimum needs no other."""
    kept: list[_Choice] = []
    for c in sorted(choices, key=lambda c: (c.gateway_ms, c.models_ms, -c.f1)):
        if not any(k.f1 >= c.f1 and k.models_ms <= c.models_ms for k in kept):
            kept.append(c)
    return kept


def _solve(world: World, trace: Trace, choices: Sequence[_Choice]) -> np.ndarray:
    """Return the share of each choice.

    Variables: those; then, by group of requests with the same slots and by slot, s of the gateway's work
    and of the models'.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for k, c in enumerate(choices):
        groups[_slots(trace[c.request])].append(k)
    rows = _Rows()
    for k, c in enumerate(choices):
        rows.add(("once", c.request), k, 1.0, 1.0)
        slo = trace[c.request].slo
        rows.add(("floor", slo.slo_class), k, slo.min_f1 - c.f1, 0.0)
    at, room_s = len(choices), world.all_cores * SLOT_MS / 1e3
    thread_s = world.replicas * SLOT_MS / 1e3
    for (first, last), members in groups.items():
        for k in members:
            rows.add(("gateway", (first, last)), k, choices[k].gateway_ms / 1e3, 0.0)
            rows.add(("models", (first, last)), k, choices[k].models_ms / 1e3, 0.0)
        for slot in range(first, last + 1):
            rows.add(("gateway", (first, last)), at, -1.0, 0.0)
            rows.add(("models", (first, last)), at + 1, -1.0, 0.0)
            rows.add(("slot", slot), at, 1.0, room_s)
            rows.add(("slot", slot), at + 1, 1.0, room_s)
            rows.add(("thread", slot), at, 1.0, thread_s)
            at += 2
    mean_work = np.mean([c.work_ms for c in choices])
    gain = np.zeros(at)
    gain[: len(choices)] = [1.0 - THRIFT * c.work_ms / mean_work for c in choices]
    upper: list[tuple[float, float | None]] = [(0.0, 1.0)] * len(choices)
    upper += [(0.0, None)] * (at - len(choices))
    matrix, limits = rows.matrix(at)
    from scipy.optimize import linprog

    solved = linprog(-gain, A_ub=matrix, b_ub=limits, bounds=upper, method="highs")
    assert solved.success, solved.message
    shares: np.ndarray = solved.x[: len(choices)]
    return shares


def _slots(request: TraceRequest) -> tuple[int, int]:
    end_ms = request.arrival_ms + request.slo.latency_ms
    return int(request.arrival_ms // SLOT_MS), ceil(end_ms / SLOT_MS) - 1


class _Rows:
    """Constraints `row . x <= limit`, gathered entry by entry under names."""

    def __init__(self) -> None:
        self._number: dict[object, int] = {}
        self._limits: list[float] = []
        self._entries: tuple[list[int], list[int], list[float]] = ([], [], [])

    def add(self, name: object, variable: int, factor: float, limit: float) -> None:
        row = self._number.setdefault(name, len(self._limits))
        if row == len(self._limits):
            self._limits.append(limit)
        rows, columns, values = self._entries
        rows.append(row)
        columns.append(variable)
        values.append(factor)

    def matrix(self, n_variables: int) -> tuple[coo_array, list[float]]:
        from scipy.sparse import coo_array

        rows, columns, values = self._entries
        shape = (len(self._limits), n_variables)
        return coo_array((values, (rows, columns)), shape=shape).tocsr(), self._limits
