"""A small world for the lab's tests: two variants, recorded answers made by a rule."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.catalog import Catalog
from gateway.domain import Size, Slo, SloPolicy
from loadtest.lab.recording import Recording, Said
from loadtest.lab.traces import Asked, Trace
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


def trace(arrivals_ms: Sequence[float], promise: Slo | None = None) -> Trace:
    promise = promise or slo()
    return [Asked(i, t, promise, i % N) for i, t in enumerate(arrivals_ms)]


def slo(
    latency_ms: float = 100.0,
    min_f1: float = 0.0,
    policy: SloPolicy = SloPolicy.PREFER_LATENCY,
) -> Slo:
    timeout_ms = latency_ms * (1 if policy is SloPolicy.STRICT else 4)
    return Slo(latency_ms, min_f1, policy, timeout_ms, "test")
