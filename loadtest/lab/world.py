"""What a simulation happens in: a catalog, recorded answers, a host, service times. Built once a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from gateway.catalog import Catalog
from gateway.domain import Size
from gateway.published import Plan
from loadtest.lab import mixes, recording
from loadtest.lab.prediction import Prediction
from loadtest.lab.recording import Recording
from loadtest.lab.traces import Trace

GATEWAY_CPU_MS = 4.0  # of one request, beside busy models (`bertier-loadtest overhead`, README)
KNOTS = (0.0, 0.5, 0.95, 0.99, 1.0)  # quantiles that a profile's cell fixes; 0 and 1 extend it


class Times(StrEnum):
    """Where service times come from."""

    PROFILE = "profile"  # the catalog's quantiles per bucket: the host that the catalog names
    RECORDED = "recorded"  # CPU time of each question as recorded: this host


@dataclass(frozen=True)
class World:
    """Everything but the requests and the policy."""

    catalog: Catalog
    recording: Recording
    cores: int
    times: Times = Times.PROFILE
    gateway_cpu_ms: float = GATEWAY_CPU_MS
    contention: float = 1.0
    replicas: int = 1  # hosts like this one, balanced perfectly: one pool of all their cores

    def __post_init__(self) -> None:
        recording.check(self.recording, self.catalog)

    @property
    def all_cores(self) -> int:
        return self.cores * self.replicas

    @cached_property
    def plans(self) -> Mapping[str, Plan]:
        return {p.name: p for p in self.catalog.plans}

    @cached_property
    def instances(self) -> Mapping[str, int]:
        """Return instances by variant, over all replicas."""
        return {v.name: v.instances * self.replicas for v in self.catalog.variants}

    @cached_property
    def base_ms(self) -> Mapping[str, tuple[float, ...]]:
        """Return the median core time of one window, by variant and question."""
        found = {}
        for variant in self.catalog.variants:
            cpu = self.recording.said[variant.name].cpu_ms
            found[variant.name] = tuple(
                variant.profile.cell(size.bucket).p50_ms
                if self.times is Times.PROFILE
                else cpu[i] / size.n_windows
                for i, size in enumerate(self.recording.sizes)
            )
        return found

    @cached_property
    def capacity_per_s(self) -> float:
        """Return the rate that fills all cores when the dearest variant answers everything."""
        name = mixes.dearest(self.catalog).name
        sizes = self.recording.sizes
        work = [ms * size.n_windows for ms, size in zip(self.base_ms[name], sizes, strict=True)]
        return 1e3 * self.all_cores / (float(np.mean(work)) + self.gateway_cpu_ms)

    @cached_property
    def typical_f1(self) -> Mapping[str, Mapping[int, float]]:
        """Return the mean recorded F1 by variant and length bucket.

        An answer is credited with it where a floor is judged: which single questions a short run
        happens to draw says nothing of a policy, since none sees them.
        """
        found: dict[str, dict[int, float]] = {}
        buckets = np.array([size.bucket for size in self.recording.sizes])
        for name, said in self.recording.said.items():
            f1 = np.array(said.f1)
            found[name] = {int(b): float(f1[buckets == b].mean()) for b in np.unique(buckets)}
        return found

    def prediction(self) -> Prediction:
        """Return a predictor that has seen nothing yet."""
        return Prediction(self.catalog, self.all_cores, self.instances)

    def window_ms(self, trace: Trace, seed: int) -> Mapping[str, list[float]]:
        """Return what a window of each request takes on each variant, alone on a core.

        Noise is one draw a request, the same for every variant and policy: comparisons are paired.
        """
        luck = np.random.default_rng([seed, 3]).random(len(trace))
        asked = np.array([a.question for a in trace], dtype=np.int64)
        buckets = np.array([self.recording.sizes[q].bucket for q in asked], dtype=np.int64)
        found = {}
        for variant in self.catalog.variants:
            stretch = np.ones(len(trace))
            for bucket in np.unique(buckets):
                cell = variant.profile.cell(int(bucket))
                over = (cell.p95_ms / cell.p50_ms, cell.p99_ms / cell.p50_ms)
                curve = (2 - over[0], 1.0, *over, over[1] + (over[1] - over[0]))
                rows = buckets == bucket
                stretch[rows] = np.interp(luck[rows], KNOTS, np.maximum(curve, 0.5))
            base = np.array(self.base_ms[variant.name])
            found[variant.name] = [float(x) for x in base[asked] * stretch]
        return found

    def sizes_of(self, trace: Trace) -> list[Size]:
        return [self.recording.sizes[a.question] for a in trace]

    def with_variants(self, names: Sequence[str]) -> World:
        """Return the world whose catalog holds only these variants and their plans."""
        plans = tuple(p for p in self.catalog.plans if all(v in names for v in p.variants))
        variants = tuple(v for v in self.catalog.variants if v.name in names)
        return replace(self, catalog=replace(self.catalog, variants=variants, plans=plans))

    def scaled(self, replicas: int) -> World:
        return replace(self, replicas=replicas)
