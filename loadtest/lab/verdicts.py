"""Does routing keep what it claims? Each claim judged in each spot of the grid, good or bad. Pure.

Where there is room (load <= 0.9): among policies within a point of the best joint attainment ours
spends the least compute an answer, and less than half of always-largest. Where there is none (load
>= 0.9): ours has the highest joint attainment, at least twice always-largest's; its served F1 is
above the best fixed plan's that attains as much by 30 % of the gap between the most and the least
accurate plan; its regret to the oracle's bound is at most 5 %. Far above capacity (load >= 5) ours still
answers as many requests a second, within their SLOs, as nine tenths of its best load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.lab import oracle
from loadtest.lab.contenders import FIXED, OURS
from loadtest.lab.tables import Mean, Spot

ROOM = 0.9
POINT = 0.01
GAP_SHARE = 0.3
REGRET = 0.05
FAR_ABOVE = 5.0
GOODPUT_KEPT = 0.9


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim in one spot."""

    claim: str
    spot: str
    holds: bool
    details: str


def judge(spots: Sequence[Spot], largest: str) -> list[Verdict]:
    """Return every verdict that the policies of the grid allow; `largest`: always-largest."""
    found: list[Verdict] = []
    for spot in spots:
        if OURS not in spot.cells:
            continue
        if spot.load <= ROOM:
            found += _with_room(spot, largest)
        if ROOM <= spot.load < FAR_ABOVE:
            found += _without_room(spot, largest)
        if spot.load >= FAR_ABOVE:
            found += _far_above(spot, spots)
    return found


def _far_above(spot: Spot, spots: Sequence[Spot]) -> Iterator[Verdict]:
    """Yield whether goodput holds; loads of the same arrivals and mix are compared."""
    same = [s for s in spots if (s.mix, s.arrival) == (spot.mix, spot.arrival) and OURS in s.cells]
    found = {s.load: s.mean(OURS, "goodput_per_s").value for s in same}
    peak = max(found, key=lambda load: found[load])
    share = found[spot.load] / found[peak] if found[peak] else 0.0
    details = f"{share:.2f} of the {found[peak]:.0f}/s at load {peak:g}"
    yield _verdict(
        "goodput holds far above capacity", spot, holds=share >= GOODPUT_KEPT, details=details
    )


def _with_room(spot: Spot, largest: str) -> Iterator[Verdict]:
    rivals = _rivals(spot)
    joint = {p: spot.mean(p, "joint").value for p in (OURS, *rivals)}
    cost = {p: spot.mean(p, "compute_ms").value for p in (OURS, *rivals)}
    near = [p for p in joint if joint[p] >= max(joint.values()) - POINT]
    cheapest = min(near, key=lambda p: cost[p])
    details = f"{len(near)} within a point of {max(joint.values()):.3f}; ours {joint[OURS]:.3f}, "
    details += f"{cost[OURS]:.1f} ms; cheapest {cheapest}, {cost[cheapest]:.1f} ms"
    yield _verdict(
        "least compute among the best",
        spot,
        holds=OURS in near and cheapest == OURS,
        details=details,
    )
    if largest in cost:
        share = cost[OURS] / cost[largest]
        yield _verdict(
            "half of always-largest's compute",
            spot,
            holds=share < 0.5,
            details=f"{share:.2f} of it",
        )


def _without_room(spot: Spot, largest: str) -> Iterator[Verdict]:
    rivals = _rivals(spot)
    ours = spot.mean(OURS, "joint")
    if rivals:
        best = max(rivals, key=lambda p: spot.mean(p, "joint").value)
        ahead = spot.difference(OURS, best, "joint")
        details = f"ours {ours.value:.3f}, next {best}: {_signed(ahead)} in favour of ours"
        yield _verdict("highest joint attainment", spot, holds=ahead.value >= 0, details=details)
    if largest in spot.cells:
        theirs = spot.mean(largest, "joint").value
        details = f"{ours.value:.3f} against {theirs:.3f}"
        yield _verdict(
            "twice always-largest's", spot, holds=ours.value >= 2 * theirs, details=details
        )
    yield from _accuracy(spot)
    if oracle.NAME in spot.cells:
        most = spot.mean(oracle.NAME, "joint").value
        regret = 1 - ours.value / most if most else 0.0
        details = f"{regret:.3f} of the bound {most:.3f}"
        yield _verdict(
            "regret to the oracle's bound", spot, holds=regret <= REGRET, details=details
        )


def _accuracy(spot: Spot) -> Iterator[Verdict]:
    fixed = {p: spot.mean(p, "served_f1").value for p in spot.cells if p.startswith(FIXED)}
    if len(fixed) < 2:
        return
    mine, reached = spot.mean(OURS, "served_f1").value, spot.mean(OURS, "in_time").value
    equal = [p for p in fixed if spot.mean(p, "in_time").value >= reached - POINT]
    if not equal:
        details = "no fixed plan attains as much"
        yield _verdict("served F1 at equal attainment", spot, holds=True, details=details)
        return
    best = max(equal, key=lambda p: fixed[p])
    share = (mine - fixed[best]) / (max(fixed.values()) - min(fixed.values()))
    details = f"{share:+.2f} of the gap over {best}"
    yield _verdict("served F1 at equal attainment", spot, holds=share >= GAP_SHARE, details=details)


def _rivals(spot: Spot) -> list[str]:
    return [p for p in spot.cells if p not in (OURS, oracle.NAME)]


def _verdict(claim: str, spot: Spot, *, holds: bool, details: str) -> Verdict:
    return Verdict(claim, f"{spot.mix}, {spot.arrival}, load {spot.load:g}", holds, details)


def _signed(mean: Mean) -> str:
    half = f" +- {mean.half:.3f}" if mean.half == mean.half else ""
    return f"{mean.value:+.3f}{half}"
