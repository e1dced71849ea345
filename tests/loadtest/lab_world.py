"""A small world for the lab's tests: two variants, recorded answers made by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateway.catalog.schema import Plan
from gateway.catalog.store import Catalog
from gateway.domain import Size, Slo, SloPolicy
from loadtest.lab import contenders
from loadtest.lab.engine import Policy
from loadtest.lab.recording import Recording, Said
from loadtest.lab.traces import Trace, TraceRequest
from loadtest.lab.world import World
from tests.fakes import small_and_large

N = 20
RIGHT = {"small": 11, "large": 15}  # of N questions: mean F1 0.55 and 0.75, above both floors


def recorded(catalog: Catalog, n_windows: int = 1) -> Recording:
    said = {
        v.name: Said(
            v.sha256,
            ("an answer",) * N,
            (0.5,) * N,
            tuple(float(i < RIGHT[v.name]) for i in range(N)),
            (1.0,) * N,
        )
        for v in catalog.variants
    }
    return Recording("test", tuple(f"q{i}" for i in range(N)), (Size(128, n_windows),) * N, said)


def world(cores: int = 2, n_windows: int = 1) -> World:
    """Return `small`, 5 ms a window, and `large`, 20 ms, on `cores`; the gateway takes 1 ms."""
    catalog = small_and_large()
    return World(catalog, recorded(catalog, n_windows), cores, gateway_cpu_ms=1.0)


def doubtful(doubted: int = 10) -> World:
    """Return a world with the cascade `both`; `small` doubts its answers to the last questions."""
    there = world()
    small, large = there.catalog.variants
    certificate = replace(
        there.catalog.plans[0].certificate, floor=0.68, model_sha256=(small.sha256, large.sha256)
    )
    both = Plan("both", ("small", "large"), (0.4,), certificate, (1.0, doubted / N))
    unsure = replace(
        there.recording.said["small"],
        confidence=tuple(0.5 if i < N - doubted else 0.3 for i in range(N)),
    )
    said = {**there.recording.said, "small": unsure}
    return replace(
        there,
        catalog=replace(there.catalog, plans=(*there.catalog.plans, both)),
        recording=replace(there.recording, said=said),
    )


def ours(there: World | None = None) -> Policy:
    """Return the gateway's own policy."""
    return contenders.make(contenders.OURS, there or world(), {}, 0)


def trace(arrivals_ms: Sequence[float], requested: Slo | None = None) -> Trace:
    requested = requested or slo()
    return [TraceRequest(i, t, requested, i % N) for i, t in enumerate(arrivals_ms)]


def slo(
    latency_ms: float = 100.0,
    min_f1: float = 0.0,
    policy: SloPolicy = SloPolicy.PREFER_LATENCY,
) -> Slo:
    timeout_ms = latency_ms * (1 if policy is SloPolicy.STRICT else 4)
    return Slo(latency_ms, min_f1, policy, timeout_ms, "test")
