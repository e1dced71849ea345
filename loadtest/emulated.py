"""Is the lab honest? The same traces on the lab's engine and on a real gateway with Triton, compared.

What the engine is told of this host is measured on it: the CPU time of every recorded question on
every variant, and what gateway, client and Triton take for a request beside the models. It is never
told anything of the runs that it is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite, nan
from typing import Any

import numpy as np

from loadtest.drive.outcomes import Outcome, Result
from loadtest.lab.contenders import OURS, make
from loadtest.lab.engine import End, Fate, simulate
from loadtest.lab.measures import measure
from loadtest.lab.recording import Recording
from loadtest.lab.traces import Trace
from loadtest.lab.world import World

POINTS, SHARE = 0.03, 0.15  # how far off the lab may be: attainment, latency
ATTAINMENTS = ("in_time", "joint", "rejected")
QUANTILES = ("p50_ms", "p95_ms", "p99_ms")

_ENDS = {Outcome.ANSWERED: End.ANSWERED, Outcome.SHED: End.REFUSED, Outcome.REFUSED: End.REFUSED}


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU time of one run, ms; `models`: what the recording says its windows take."""

    requests: int
    gateway: float
    client: float
    triton: float
    models: float

    @property
    def gateway_cpu_ms(self) -> float:
        """Return what a request takes in the gateway's one thread, and in the client beside it."""
        return (self.gateway + self.client) / self.requests

    def triton_cpu_ms(self, windows: int) -> float:
        """Return what Triton takes for a window beside the model; it is never less than nothing."""
        return max(0.0, (self.triton - self.models) / max(1, windows))


def fate_of(result: Result) -> Fate:
    """Return a real request as the lab tells one: compute is not known, so it is 0."""
    reply = result.reply
    return Fate(
        end=_ENDS.get(reply.outcome, End.EXPIRED),
        plan=reply.plan,
        variant=reply.variant,
        latency_ms=result.latency_ms,
        predicted_ms=reply.predicted_ms,
    )


def model_ms(world: World, trace: Trace, fates: Sequence[Fate]) -> tuple[float, int]:
    """Return the recorded CPU time, ms, and the windows of what was answered, by every stage."""
    total_ms, windows = 0.0, 0
    recorded = world.recording
    for asked, fate in zip(trace, fates, strict=True):
        if fate.end is not End.ANSWERED:
            continue
        stages = world.plans[fate.plan].variants
        for name in stages[: stages.index(fate.variant) + 1]:
            total_ms += recorded.said[name].cpu_ms[asked.question]
            windows += recorded.sizes[asked.question].n_windows
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


def as_json(fates: Sequence[Fate]) -> list[dict[str, Any]]:
    """Return what `from_json` reads."""
    kept = ("plan", "variant", "latency_ms", "predicted_ms")
    return [
        {"end": int(f.end)}
        | {k: None if v == inf else v for k, v in ((k, getattr(f, k)) for k in kept)}
        for f in fates
    ]


def from_json(lines: Sequence[Mapping[str, Any]]) -> list[Fate]:
    def number(value: float | None) -> float:
        return inf if value is None else value

    return [
        Fate(
            End(x["end"]),
            x["plan"],
            x["variant"],
            number(x["latency_ms"]),
            number(x["predicted_ms"]),
        )
        for x in lines
    ]


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
    told = {k: _json(v) for k, v in asdict(found).items()}
    return told | {"apart": _json(found.apart), "within": found.within}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
