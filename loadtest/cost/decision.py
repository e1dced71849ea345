"""The CPU time of a routing decision: predicting every plan and choosing one."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.domain import Size, Slo, SloPolicy, Trust
from gateway.latency.model import LatencyModel, Work
from gateway.qa.codec import SpanEncoder
from gateway.routing import policy
from gateway.serving_set import ServingSet

PLANS = 20
IN_FLIGHT = 8
DECISIONS = 4000
SIZE = Size(192, 1)


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time, us; `predict` is one plan's share of predicting all."""

    name: str
    p50_us: float
    p99_us: float


def measure(repository: Path, decisions: int = DECISIONS) -> list[Cost]:
    """Decide among 20 plans with work of many variants in flight, again and again."""
    serving = _twenty_plans(repository)
    slo = Slo(60.0, 0.0, SloPolicy.PREFER_LATENCY, 1_000.0, "any")
    rng, latency, now_ms = random.Random(0), serving.latency, 0.0
    works: list[Work] = []
    spent: dict[str, list[float]] = {"predict": [], "decide": [], "begin": [], "finish": []}
    for _ in range(decisions):
        now_ms += rng.expovariate(0.1)
        began = time.thread_time_ns()
        latency.predict(serving.plans(), SIZE, 0.95, now_ms)
        spent["predict"].append((time.thread_time_ns() - began) / 1e3 / PLANS)
        now_ms += 0.01
        began = time.thread_time_ns()
        policy.choose(slo, serving.options(SIZE, 0.95, now_ms), 1.0)
        spent["decide"].append((time.thread_time_ns() - began) / 1e3)
        began = time.thread_time_ns()
        works.append(latency.begin(rng.choice(serving.plans()).variants[0], SIZE, now_ms))
        spent["begin"].append((time.thread_time_ns() - began) / 1e3)
        if len(works) > IN_FLIGHT:
            began = time.thread_time_ns()
            latency.finish(works.pop(0), now_ms)
            spent["finish"].append((time.thread_time_ns() - began) / 1e3)
    return [_cost(name, taken) for name, taken in spent.items()]


def _cost(name: str, taken_us: Sequence[float]) -> Cost:
    ordered = sorted(taken_us)
    p50_us, p99_us = (ordered[int(q * len(ordered))] for q in (0.5, 0.99))
    return Cost(name, p50_us, p99_us)


def _twenty_plans(repository: Path) -> ServingSet:
    """Return the repository's plans, repeated under other names until there are twenty."""
    catalog = store.read_questions(repository)
    direct = [p for p in catalog.plans if len(p.variants) == 1]
    variants, plans = [], []
    for i in range(PLANS):
        plan = direct[i % len(direct)]
        name = f"{plan.name}.{i}"
        variants.append(replace(catalog.variant(plan.variants[0]), name=name))
        plans.append(replace(plan, name=name, variants=(name,)))
    many: Catalog = replace(catalog, variants=tuple(variants), plans=tuple(plans))
    profiles = {v.name: v.profile for v in variants}
    return ServingSet(
        catalog=many,
        encoder=SpanEncoder.from_file(repository / store.TOKENIZER),
        trust=dict.fromkeys(profiles, Trust.CERTIFIED),
        profiles=profiles,
        latency=LatencyModel(profiles, 2, {v.name: v.instances for v in variants}),
    )
