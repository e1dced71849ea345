"""Who takes part: ours, every fixed plan, the rivals, each with the parameters it was tuned to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import numpy as np

from gateway.errors import BertierError
from loadtest.lab import mixes, rivals, traces
from loadtest.lab.engine import Policy, simulate
from loadtest.lab.measures import measure
from loadtest.lab.world import World

OURS = rivals.Bertier.name
FIXED = "fixed "
TUNING_SEED = 90_001  # far from the seeds of any grid
TUNING_SECONDS = 40.0
TUNING_TRACES = (("poisson", 0.6), ("mmpp", 0.9), ("gamma4", 1.2), ("poisson", 2.0))

Tuned = Mapping[str, Mapping[str, Any]]  # parameters by policy


class UnknownPolicy(BertierError):
    """No such contender; the message lists those there are."""


def names(world: World) -> list[str]:
    """Return everyone, ours first; all but ours choose from the direct plans."""
    fixed = [FIXED + p.name for p in world.direct]
    return [OURS, *fixed, rivals.Random.name, *_TUNABLE]


def make(name: str, world: World, tuned: Tuned, seed: int) -> Policy:
    """Return a fresh contender. Raises: UnknownPolicy."""
    parameters = tuned.get(name, {})
    if name == OURS:
        return rivals.Bertier()
    if name == rivals.Random.name:
        return rivals.Random(seed)
    if name in _TUNABLE:
        return _TUNABLE[name](world, **parameters)
    if name in names(world):
        return rivals.Fixed(name.removeprefix(FIXED))
    raise UnknownPolicy(f"{name}: no such policy; there are {', '.join(names(world))}")


def always_largest(world: World) -> str:
    """Return the fixed contender that answers everything with the most accurate plan."""
    return FIXED + max(world.direct, key=lambda p: p.certified_f1).name


def tunable(policies: Iterable[str]) -> list[str]:
    """Return which of them have parameters."""
    return [name for name in policies if name in _TUNABLE]


def tune(
    world: World, mix: mixes.Mix, wanted: Iterable[str], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Return each rival's parameters with the best mean joint attainment on traces of its own."""
    played = [
        traces.make(
            process,
            load * world.capacity_per_s,
            TUNING_SECONDS,
            mix,
            world.recording,
            TUNING_SEED + i,
        )
        for i, (process, load) in enumerate(TUNING_TRACES)
    ]
    best = {}
    for name in wanted:
        scores = []
        for parameters in _grid(name, world):
            joint = [_joint(name, parameters, world, t) for t in played]
            scores.append((float(np.mean(joint)), parameters))
        score, best[name] = max(scores, key=lambda s: s[0])
        say(f"tuned {name}: {best[name]}, joint {score:.3f} of {len(scores)} settings tried")
    return best


def _joint(name: str, parameters: Mapping[str, Any], world: World, trace: traces.Trace) -> float:
    policy = make(name, world, {name: parameters}, TUNING_SEED)
    found = measure(world, trace, simulate(world, trace, policy, TUNING_SEED))
    return float(found["all"]["joint"])


def _grid(name: str, world: World) -> Iterable[dict[str, Any]]:
    axes: dict[str, dict[str, Iterable[Any]]] = {
        rivals.InfaasStyle.name: {"headroom": (0.6, 0.8, 1.0)},
        rivals.ClipperStyle.name: {"plan": [p.name for p in world.direct], "decrease": (0.9,)},
        rivals.ProteusStyle.name: {"fill": (0.6, 0.7, 0.8, 0.9)},
        rivals.SlackBucket.name: {"headroom": (0.5, 0.7, 0.85, 1.0), "buckets": (4, 16)},
        rivals.MultiFactor.name: {"latency": (0.5, 1.0, 2.0), "cost": (0.0, 0.5, 1.0)},
    }
    chosen = axes[name]
    for values in product(*chosen.values()):
        yield dict(zip(chosen, values, strict=True))


def _clipper(world: World, **parameters: Any) -> Policy:
    first = {"plan": world.direct[0].name}
    return rivals.ClipperStyle(**(first | parameters))


def _proteus(world: World, **parameters: Any) -> Policy:
    return rivals.ProteusStyle(world.all_cores, overhead_ms=world.gateway_cpu_ms, **parameters)


_TUNABLE: Mapping[str, Callable[..., Policy]] = {
    rivals.InfaasStyle.name: lambda _, **p: rivals.InfaasStyle(**p),
    rivals.ClipperStyle.name: _clipper,
    rivals.ProteusStyle.name: _proteus,
    rivals.SlackBucket.name: lambda _, **p: rivals.SlackBucket(**p),
    rivals.MultiFactor.name: lambda _, **p: rivals.MultiFactor(**p),
}
