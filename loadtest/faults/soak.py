"""A long steady run with switches, killed model processes and long papers: what grows, and what is left at the end?

The verdicts are pure functions of samples of `/debug/state` and of the requests' outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

FIRST_TENTH = 1  # that is compared with the last one: the tenth before holds the first switch
MOST_GROWTH = 0.01
MOST_DROP = 0.05  # of attainment, from the second quarter to the last


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway at one moment."""

    at_s: float  # since the load began
    rss_bytes: int
    open_files: int
    tasks: int
    busy: int  # everything that counts work in flight, added up
    models_bytes: int = 0  # memory of Triton and its model processes

    @classmethod
    def of(cls, at_s: float, state: dict[str, Any], models_bytes: int) -> Sample:
        process = state["process"]
        counts = process["rss_bytes"], process["open_files"], process["tasks"], busy(state)
        return cls(at_s, *counts, models_bytes)


@dataclass(frozen=True, slots=True)
class Event:
    """What was done to the gateway while it answered: a `switch` or a `kill`."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """One request: when it was sent, and its outcome."""

    at_s: float
    outcome: str  # met, violated, refused, or the kind of a failure


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that must hold."""

    what: str
    seen: str
    allowed: str
    holds: bool


def busy(state: dict[str, Any]) -> int:
    """Return what a gateway's counters of work in flight add up to; 0: nothing is left."""
    admission, queue = state["admission"], state.get("queue", {"in_flight": 0, "variants": {}})
    lines = sum(line["windows"] + line["waiting"] for line in queue["variants"].values())
    held = admission["in_flight"] + admission["waiting"] + admission["refusals_held"]
    return int(held + queue["in_flight"] + lines + state["shadow"]["waiting"])


def verdicts(
    samples: Sequence[Sample], outcomes: Sequence[SoakRequest], before: Sample, after: Sample
) -> list[Verdict]:
    """Judge a run that began when all was warm; `before` and `after`: the idle gateway.

    Raises: ValueError for too short a run.
    """
    if len(samples) < 10 or len(outcomes) < 10:
        raise ValueError("too few samples or requests to judge; run longer")
    failed = [a for a in outcomes if a.outcome not in ("met", "violated", "refused")]
    return [
        _memory(samples),
        _count("open files", before.open_files, after.open_files),
        _count("tasks", before.tasks, after.tasks),
        _attainment(outcomes, samples[-1].at_s),
        Verdict("work left in flight", str(after.busy), "0", after.busy == 0),
        Verdict("requests that failed", _failures(failed), "0", not failed),
    ]


def _memory(samples: Sequence[Sample]) -> Verdict:
    """Compare the last tenth of the run with the second."""
    n = max(1, len(samples) // 10)
    first = FIRST_TENTH * n
    warm = mean(s.rss_bytes for s in samples[first : first + n])
    last = mean(s.rss_bytes for s in samples[-n:])
    growth = last / warm - 1
    seen = f"{warm / 2**20:.1f} to {last / 2**20:.1f} MiB, {growth:+.2%}"
    return Verdict("memory after warm-up", seen, f"below {MOST_GROWTH:+.0%}", growth < MOST_GROWTH)


def _count(what: str, before: int, after: int) -> Verdict:
    """An idle gateway has no more of them than before; keep-alive connections of the load are closed."""
    return Verdict(f"{what}, idle", f"{before} to {after}", "no more", after <= before)


def _attainment(outcomes: Sequence[SoakRequest], end_s: float) -> Verdict:
    quarters = [
        [a.outcome == "met" for a in outcomes if q * end_s / 4 <= a.at_s < (q + 1) * end_s / 4]
        for q in range(4)
    ]
    shares = [mean(q) if q else 0.0 for q in quarters]
    seen = ", ".join(f"{share:.1%}" for share in shares)
    allowed = f"last quarter at most {MOST_DROP:.0%} below the second"
    return Verdict("SLO met, by quarter", seen, allowed, shares[3] >= shares[1] - MOST_DROP)


def _failures(failed: Sequence[SoakRequest]) -> str:
    kinds = sorted({a.outcome for a in failed})
    return f"{len(failed)} ({', '.join(kinds)})" if failed else "0"
