"""Cells brought together: means over seeds with intervals, one row a policy. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from loadtest.lab.grid import Cell

# Of the tables and the page: measure, heading, digits.
COLUMNS = (
    ("joint", "joint", 3),
    ("joint_feasible", "joint, feasible", 3),
    ("in_time", "in time", 3),
    ("floor_met", "floor met", 3),
    ("by_certificate", "by certificate", 3),
    ("rejected", "rejected", 3),
    ("expired", "expired", 3),
    ("goodput_per_s", "goodput /s", 1),
    ("served_f1", "served F1", 3),
    ("compute_ms", "core ms an answer", 1),
    ("compute_in_time_ms", "core ms per SLO met", 1),
    ("covered_p95", "within p95", 3),
    ("covered_p99", "within p99", 3),
    ("width_p95", "p95 predicted / seen", 2),
    ("strict_met", "strict met", 3),
    ("escalated", "escalated", 3),
    ("escalation_cut", "escalation cut", 3),
    ("worst_f1", "worst 5 s F1", 3),
    ("worst_in_time", "worst 5 s in time", 3),
    ("recovery_s", "recovery s", 1),
)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds with the half width of its 95 % interval; nan: fewer than two seeds."""

    value: float
    half: float


@dataclass(frozen=True, slots=True)
class Spot:
    """One (mix, arrival, load) of the grid: what every policy did there, seed by seed."""

    mix: str
    arrival: str
    load: float
    cells: dict[str, list[Cell]]  # by policy, in the order of the seeds

    def mean(self, policy: str, name: str) -> Mean:
        return mean_of([c.value(name) for c in self.cells.get(policy, [])])

    def difference(self, a: str, b: str, name: str) -> Mean:
        """Return a - b, paired by seed: both played the same traces."""
        pairs = zip(self.cells[a], self.cells[b], strict=True)
        return mean_of([x.value(name) - y.value(name) for x, y in pairs])


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean with Student's 95 % interval; values that are not there are left out."""
    from scipy import stats  # takes seconds to import, which every other command would pay

    there = np.array([v for v in values if v == v])
    if not len(there):
        return Mean(nan, nan)
    if len(there) == 1:
        return Mean(float(there[0]), nan)
    spread = float(there.std(ddof=1)) / sqrt(len(there))
    return Mean(float(there.mean()), float(stats.t.ppf(0.975, len(there) - 1)) * spread)


def spots(cells: Sequence[Cell]) -> list[Spot]:
    """Return the grid's spots, in the order they were run."""
    found: dict[tuple[str, str, float], Spot] = {}
    for cell in cells:
        p = cell.place
        spot = found.setdefault((p.mix, p.arrival, p.load), Spot(p.mix, p.arrival, p.load, {}))
        spot.cells.setdefault(cell.policy, []).append(cell)
    return list(found.values())


def by_load(cells: Sequence[Cell]) -> dict[float, dict[str, dict[str, Mean]]]:
    """Return load -> policy -> measure -> mean over arrivals, mixes and seeds."""
    grouped: dict[float, dict[str, list[Cell]]] = {}
    for cell in cells:
        grouped.setdefault(cell.place.load, {}).setdefault(cell.policy, []).append(cell)
    return {
        load: {
            policy: {name: mean_of([c.value(name) for c in group]) for name, _, _ in COLUMNS}
            for policy, group in policies.items()
        }
        for load, policies in grouped.items()
    }


def classes_of(cells: Sequence[Cell], policy: str) -> dict[float, dict[str, dict[str, Mean]]]:
    """Return load -> class -> measure -> mean, of one policy."""
    grouped: dict[float, dict[str, list[Cell]]] = {}
    for cell in cells:
        if cell.policy == policy:
            for name in cell.found["classes"]:
                grouped.setdefault(cell.place.load, {}).setdefault(name, []).append(cell)
    names = ("joint", "in_time", "floor_met", "by_certificate", "rejected", "served_f1", "p95_ms")
    return {
        load: {
            c: {n: mean_of([_number(x.found["classes"][c][n]) for x in group]) for n in names}
            for c, group in classes.items()
        }
        for load, classes in grouped.items()
    }


def _number(value: float | None) -> float:
    return nan if value is None else value
