"""Kinds of hosts: the one that the catalog was profiled on, and one with a GPU whose profile is assumed.

The GPU's times are not measured. A window takes LAUNCH_MS a layer plus its arithmetic at GPU_FLOPS. Accuracy and
certificates are assumed to be those of the INT8 variants. Windows are not batched, though a GPU would gain from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gateway.catalog.schema import Cell, Profile, Shape, Variant
from gateway.errors import BertierError
from loadtest.lab import mixes
from loadtest.lab.world import Times, World

LAUNCH_MS = 0.1  # of a layer's kernels, however short the text
GPU_FLOPS = 30e12  # of FP16 with one window at a time: a quarter of a small inference GPU's peak
GPU_TAILS = (1.1, 1.3)  # p95 and p99 over p50
GPU_CORES = 4  # of the host's processor, for the gateway's workers
CPU, GPU = "cpu", "gpu"


class UnknownKind(BertierError):
    """No such kind of host; the message lists those there are."""

    def __init__(self, name: str) -> None:
        super().__init__(f"--kinds {name}: no such kind of host; there are {CPU} and {GPU}")


@dataclass(frozen=True)
class Kind:
    """One kind of host: what runs the models, what runs the gateway, and what an hour costs."""

    name: str
    about: str
    world: World  # one host: `cores` run the models
    price_per_hour: float
    gateway_cores: int = 0  # cores that run the gateway's workers alone; 0: it shares the models'
    workers: int = 1  # gateway processes a host

    @property
    def capacity_per_s(self) -> float:
        """Return the rate that is load 1: the dearest variant answers everything, and a part is full."""
        if not self.gateway_cores:
            return self.world.capacity_per_s
        world = self.world
        work_ms = world.base_ms[mixes.dearest(world.catalog).name]
        windows = [size.n_windows for size in world.recording.sizes]
        models_per_s = 1e3 * world.cores / float(np.mean(np.multiply(work_ms, windows)))
        return min(models_per_s, 1e3 * self.gateway_cores / world.gateway_cpu_ms)


def make(name: str, world: World, price_per_hour: float) -> Kind:
    """Return a kind of host. Raises: UnknownKind."""
    if name == CPU:
        about = f"{world.cores} cores of {_host(world)}, one Triton and one gateway"
        return Kind(CPU, about, world, price_per_hour)
    if name == GPU:
        about = (
            f"assumed, not measured: one GPU at {GPU_FLOPS / 1e12:g} TFLOP/s and {LAUNCH_MS:g} ms a layer,"
            f" one window at a time; {GPU_CORES} cores for {GPU_CORES} workers of one gateway"
        )
        return Kind(GPU, about, _with_gpu(world), price_per_hour, GPU_CORES, GPU_CORES)
    raise UnknownKind(name)


def _host(world: World) -> str:
    host = world.catalog.variants[0].profile.host
    return host.cpu if world.times is Times.PROFILE else "this host"


def _with_gpu(world: World) -> World:
    variants = tuple(_on_gpu(v) for v in world.catalog.variants)
    catalog = replace(world.catalog, variants=variants)
    return replace(world, catalog=catalog, cores=1, times=Times.PROFILE)


def _on_gpu(variant: Variant) -> Variant:
    cells = tuple(
        Cell(c.bucket, c.batch, ms, ms * GPU_TAILS[0], ms * GPU_TAILS[1])
        for c in variant.profile.cells
        for ms in (c.batch * gpu_ms(variant.shape, c.bucket),)
    )
    host = replace(variant.profile.host, gpu="assumed")
    return replace(variant, instances=1, profile=Profile(host, 1, cells))


def gpu_ms(shape: Shape, tokens: int) -> float:
    """Return the assumed time of one window, ms: every layer is launched, then computed.

    A layer multiplies each token by 4 h^2 + 2 h f weights, and with every other token twice (attention).
    """
    h, f = shape.hidden, sum(shape.all_ffn) / shape.layers
    flops = 2 * tokens * (4 * h * h + 2 * h * f) + 4 * tokens * tokens * h
    return shape.layers * (LAUNCH_MS + 1e3 * flops / GPU_FLOPS)
