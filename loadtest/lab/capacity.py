"""Capacity planning: the replicas and variants that meet an SLO on a trace, and what one more nine costs.

A replica is a host like the one emulated, with every chosen variant loaded. Replicas are one pool:
a balancer that never errs, so a real one needs a little more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loadtest.lab import contenders
from loadtest.lab.engine import simulate
from loadtest.lab.measures import measure
from loadtest.lab.traces import Trace
from loadtest.lab.world import World

MAX_REPLICAS = 64
SEED = 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Variants, replicas, and the share of feasible requests in time by a plan certified as asked."""

    variants: tuple[str, ...]
    replicas: int
    attained: float
    compute_ms: float  # of cores, an answer


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a target needs; None: no fleet of at most MAX_REPLICAS reaches it."""

    target: float
    fleet: Fleet | None
    next_target: float  # one more nine
    next_fleet: Fleet | None
    tried: tuple[Fleet, ...]


def one_more_nine(target: float) -> float:
    return 1 - (1 - target) / 10


def plan(world: World, trace: Trace, target: float, say: Callable[[str], None]) -> Capacity:
    """Return the smallest fleet for the target; fewer variants win among equals."""
    tried: list[Fleet] = []

    def smallest(wanted: float) -> Fleet | None:
        found: Fleet | None = None
        for names in _sets(world):
            most = found.replicas if found else MAX_REPLICAS
            fleet = _fewest(world, trace, names, wanted, most, tried)
            if fleet is not None and (found is None or _rank(fleet) < _rank(found)):
                found = fleet
                say(f"{wanted:g}: {fleet.replicas} replicas of {', '.join(names)}")
        return found

    first, more = smallest(target), one_more_nine(target)
    return Capacity(target, first, more, smallest(more) if first else None, tuple(tried))


def _sets(world: World) -> Iterator[tuple[str, ...]]:
    """Return each variant alone, and the n dearest and n cheapest together for every n.

    All subsets would be 2^V; a set is dominated unless it has what is cheap or what is accurate.
    """
    by_cost = sorted(world.catalog.variants, key=lambda v: v.profile.cells[0].p50_ms)
    names = [v.name for v in by_cost]
    found: list[tuple[str, ...]] = [(n,) for n in names]
    for n in range(2, len(names) + 1):
        found += [tuple(names[:n]), tuple(names[-n:])]
    return iter(dict.fromkeys(found))


def _fewest(
    world: World,
    trace: Trace,
    names: tuple[str, ...],
    wanted: float,
    most: int,
    tried: list[Fleet],
) -> Fleet | None:
    """Double, then halve: attainment rises with replicas but for noise."""
    some = world.with_variants(names)

    def at(replicas: int) -> Fleet:
        known = [f for f in tried if (f.variants, f.replicas) == (names, replicas)]
        if not known:
            known = [_play(some.scaled(replicas), trace, names)]
            tried.append(known[0])
        return known[0]

    low, high = 0, 1
    while at(high).attained < wanted:
        stuck = high >= 4 and at(high).attained <= at(high // 2).attained
        if high >= most or stuck:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle).attained >= wanted else (middle, high)
    return at(high)


def _play(world: World, trace: Trace, names: tuple[str, ...]) -> Fleet:
    policy = contenders.make(contenders.OURS, world, {}, SEED)
    found = measure(world, trace, simulate(world, trace, policy, SEED))["all"]
    feasible = sum(request.feasible for request in trace) or 1
    kept = found["by_certificate"] * len(trace) / feasible
    return Fleet(names, world.replicas, kept, found["compute_ms"])


def _rank(fleet: Fleet) -> tuple[int, int, float]:
    return fleet.replicas, len(fleet.variants), fleet.compute_ms
