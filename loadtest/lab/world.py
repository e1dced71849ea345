"""What a simulation happens in: a catalog, recorded answers, a host, service times. Built once a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from gateway.catalog.schema import Plan
from gateway.catalog.store import Catalog
from gateway.domain import Option, Size
from gateway.qa.codec import TYPICAL_TOKENS
from loadtest.lab import mixes, paths, recording
from loadtest.lab.paths import End
from loadtest.lab.prediction import Prediction
from loadtest.lab.recording import Recording
from loadtest.lab.traces import Trace

# CPU of the gateway's thread (docs/experiments): of one request, beside busy models (`bertier-loadtest overhead`); of
# asking a further variant (decode, predict, call); of a refusal before parsing (0.41 over HTTP without models).
GATEWAY_CPU_MS = 4.0
ESCALATION_CPU_MS = 1.5
REFUSAL_CPU_MS = 0.5
# Of the gateway's thread to the kernel, a model's being 1: it runs Triton at a lower priority.
GATEWAY_WEIGHT = 3.0
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
    escalation_cpu_ms: float = ESCALATION_CPU_MS
    refusal_cpu_ms: float = REFUSAL_CPU_MS
    gateway_weight: float = GATEWAY_WEIGHT
    client_cpu_ms: float = 0.0  # of a request in the client, where that runs on the same host
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
    def direct(self) -> Sequence[Plan]:
        """Return the plans of one variant: what a system without cascades chooses from."""
        return [p for p in self.catalog.plans if len(p.variants) == 1]

    @cached_property
    def typical(self) -> Sequence[Option]:
        """Return every plan for a request of usual size, on an idle system."""
        return self.prediction().options(Size(TYPICAL_TOKENS, 1), 0.5, 0.0)

    @cached_property
    def stops(self) -> Mapping[str, Sequence[int]]:
        """Return the stage at which a plan is sure of its answer, by plan and question."""
        return {p.name: paths.stops(p, self.recording).tolist() for p in self.catalog.plans}

    @cached_property
    def worth(self) -> Mapping[End, Mapping[int, float]]:
        """Return the mean recorded F1 by how a plan came to its answer, and length bucket.

        An answer is credited with it where a floor is judged: which single questions a short run
        happens to draw says nothing of a policy, since none sees them.
        """
        found: dict[End, Mapping[int, float]] = {}
        for plan in self.catalog.plans:
            found.update(paths.worth(plan, self.recording))
        return found

    def prediction(self) -> Prediction:
        """Return a predictor that has seen nothing yet."""
        return Prediction(self.catalog, self.all_cores, self.instances)

    def window_ms(self, trace: Trace, seed: int) -> Mapping[str, list[float]]:
        """Return what a window of each request takes on each variant, alone on a core.

        Noise is one draw a request, the same for every variant and policy: comparisons are paired.
        """
        luck = np.random.default_rng([seed, 3]).random(len(trace))
        questions = np.array([a.question for a in trace], dtype=np.int64)
        buckets = np.array([self.recording.sizes[q].bucket for q in questions], dtype=np.int64)
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
            found[variant.name] = [float(x) for x in base[questions] * stretch]
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
