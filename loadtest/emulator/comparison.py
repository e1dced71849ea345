"""Is the lab honest? The same traces on the lab's engine and on a real gateway with Triton, compared.

What the engine knows of this host is measured on it: the CPU time of every recorded question on
every variant, and what gateway, client and Triton take for a request beside the models. It is never
given anything of the runs that it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, nan
from typing import Any

import numpy as np

from loadtest.emulator.served import Played
from loadtest.lab.contenders import OURS, make
from loadtest.lab.engine import End, Fate, simulate
from loadtest.lab.measures import measure
from loadtest.lab.recording import Recording
from loadtest.lab.traces import Trace
from loadtest.lab.world import World

POINTS, SHARE = 0.03, 0.15  # how far off the lab may be: attainment, latency
ATTAINMENTS = ("in_time", "joint", "rejected")
QUANTILES = ("p50_ms", "p95_ms", "p99_ms")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one run took, beside what the recording says its models take. Times in ms."""

    played: Played
    seconds: float
    models_ms: float
    windows: int


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU time besides the models, ms: parameters of the lab's host."""

    answer: float  # of the gateway's thread, a request that is read
    refusal: float  # the same, one that is refused
    background: float  # the same, a second, whatever comes
    client: float  # of the client's thread, a request
    window: float  # of Triton, a window


def costs(runs: Sequence[Calibration]) -> Costs:
    """Return the costs that explain these runs best (least squares); none is less than nothing.

    Runs differ in rate and in the share that is refused: otherwise the gateway's three costs cannot be separated.
    """
    spent = [run.played.spent for run in runs]
    refused = np.array([run.played.count(End.REFUSED) for run in runs], dtype=float)
    request = np.array([len(run.played.fates) for run in runs], dtype=float)
    seconds = np.array([run.seconds for run in runs])
    work = np.stack([request - refused, refused, seconds], axis=1)
    gateway_ms = np.array([s.gateway for s in spent])
    answer, refusal, background = np.linalg.lstsq(
        work / request[:, None], gateway_ms / request, rcond=None
    )[0]
    beside_ms = sum(s.triton for s in spent) - sum(run.models_ms for run in runs)
    return Costs(
        answer=max(0.0, float(answer)),
        refusal=max(0.0, float(refusal)),
        background=max(0.0, float(background)),
        client=sum(s.client for s in spent) / float(request.sum()),
        window=max(0.0, beside_ms / max(1, sum(run.windows for run in runs))),
    )


def with_costs(world: World, found: Costs, rate: float) -> World:
    """Return the world with these costs, when `rate` requests come a second."""
    return replace(
        world,
        recording=dearer(world.recording, found.window),
        gateway_cpu_ms=found.answer + found.background / rate,
        refusal_cpu_ms=found.refusal,
        client_cpu_ms=found.client,
    )


def model_ms(world: World, trace: Trace, fates: Sequence[Fate]) -> tuple[float, int]:
    """Return the recorded CPU time, ms, and the windows of what was answered, by every stage."""
    total_ms, windows = 0.0, 0
    recorded = world.recording
    for request, fate in zip(trace, fates, strict=True):
        if fate.end is not End.ANSWERED:
            continue
        stages = world.plans[fate.plan].variants
        for name in stages[: stages.index(fate.variant) + 1]:
            total_ms += recorded.said[name].cpu_ms[request.question]
            windows += recorded.sizes[request.question].n_windows
    return total_ms, windows


def dearer(recording: Recording, window_ms: float) -> Recording:
    """Return the recording with so much more work in every window."""
    said = {
        name: replace(
            s,
            cpu_ms=tuple(
                ms + window_ms * size.n_windows
                for ms, size in zip(s.cpu_ms, recording.sizes, strict=True)
            ),
        )
        for name, s in recording.said.items()
    }
    return replace(recording, said=said)


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of one trace: served, emulated, and how far apart."""

    measure: str
    served: float
    emulated: float

    @property
    def apart(self) -> float:
        """Return points for an attainment, a share of the served value for a latency."""
        off = self.emulated - self.served
        if self.measure in ATTAINMENTS:
            return off
        return off / self.served if self.served else nan

    @property
    def within(self) -> bool:
        allowed = POINTS if self.measure in ATTAINMENTS else SHARE
        return isfinite(self.apart) and abs(self.apart) <= allowed


def compare(world: World, trace: Trace, served: Sequence[Fate], seed: int) -> list[Difference]:
    """Return how far the lab is from what was served, over the whole trace, judged alike."""
    emulated = simulate(world, trace, make(OURS, world, {}, seed), seed)
    pairs = [measure(world, trace, fates)["all"] for fates in (served, emulated)]
    return [
        Difference(name, *(_number(p[name]) for p in pairs)) for name in (*ATTAINMENTS, *QUANTILES)
    ]


def _number(value: float | None) -> float:
    return nan if value is None else value


def table_row(found: Difference) -> tuple[str, ...]:
    """Return measure, served, emulated, difference, verdict."""
    if found.measure in ATTAINMENTS:
        numbers = (
            f"{found.served:.3f}",
            f"{found.emulated:.3f}",
            f"{100 * found.apart:+.1f} points",
        )
    else:
        numbers = (f"{found.served:.1f}", f"{found.emulated:.1f}", f"{100 * found.apart:+.0f} %")
    return (found.measure, *numbers, "yes" if found.within else "no")


def plain(found: Difference) -> dict[str, Any]:
    """Return a difference as JSON has it."""
    values = {k: _json(v) for k, v in asdict(found).items()}
    return values | {"apart": _json(found.apart), "within": found.within}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
