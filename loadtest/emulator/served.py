"""Plays traces on a real gateway with Triton, once each; stores the results in the lab's format."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import psutil

from gateway.catalog.schema import Plan
from gateway.domain import SloViolation
from loadtest.drive import load_clients, open_loop, schedule
from loadtest.drive.open_loop import Client
from loadtest.drive.outcomes import Outcome, Result
from loadtest.lab.engine import End, Fate
from loadtest.lab.traces import Trace
from loadtest.lab.world import World
from loadtest.stack import Stack
from optimizer.data.question_sets import Example

_ENDS = {Outcome.ANSWERED: End.ANSWERED, Outcome.SHED: End.REFUSED, Outcome.REFUSED: End.REFUSED}
_KEPT = ("plan", "variant", "latency_ms", "predicted_ms", "stage", "cut")


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU time of one run, ms."""

    gateway: float
    client: float
    triton: float  # and its model processes


@dataclass(frozen=True, slots=True)
class Played:
    """What became of a trace's requests, in its order; `complaint`: why the run says nothing of the server."""

    fates: Sequence[Fate]
    spent: Spent
    complaint: str = ""

    def count(self, end: End) -> int:
        return sum(fate.end is end for fate in self.fates)


class Player:
    """Plays traces against stacks; a killed command goes on with those that are missing."""

    def __init__(
        self, world: World, examples: Sequence[Example], folder: Path, max_lag_ms: float
    ) -> None:
        self._world, self._examples = world, examples
        self._folder, self._max_lag_ms = folder, max_lag_ms

    def kept(self, name: str, trace: Trace) -> Played | None:
        """Return what was played under this name, if it was this trace."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        if found["key"] != self._key(trace):
            return None
        return Played(from_json(found["fates"]), Spent(**found["spent"]))

    def play(self, name: str, trace: Trace, stack: Stack) -> Played:
        """Return what is kept of this trace, else play it; a run with a complaint is not kept."""
        kept = self.kept(name, trace)
        if kept is not None:
            return kept
        print(f"{name}: {len(trace)} requests", file=sys.stderr, flush=True)
        results, spent, client = asyncio.run(_drive(stack, trace, self._examples))
        fates = [fate_of(r, self._world.plans) for r in results]
        found = Played(fates, spent, client.complaint(self._max_lag_ms))
        if not found.complaint:
            stored = {"key": self._key(trace), "fates": as_json(fates), "spent": asdict(spent)}
            self._folder.mkdir(parents=True, exist_ok=True)
            part = self._folder / f"{name}.part"
            part.write_text(json.dumps(stored))
            os.replace(part, self._folder / f"{name}.json")
        return found

    def _key(self, trace: Trace) -> list[Any]:
        return [len(trace), trace[-1].arrival_ms, self._world.recording.digest]


def fate_of(result: Result, plans: Mapping[str, Plan]) -> Fate:
    """Return a real request as the lab tells one: compute is not known, so it is 0."""
    reply = result.reply
    stages = plans[reply.plan].variants if reply.plan in plans else ()
    return Fate(
        end=_ENDS.get(reply.outcome, End.EXPIRED),
        plan=reply.plan,
        variant=reply.variant,
        latency_ms=result.latency_ms,
        predicted_ms=reply.predicted_ms,
        stage=stages.index(reply.variant) if reply.variant in stages else 0,
        cut=SloViolation.ESCALATION_CUT in reply.met.split(","),
    )


def as_json(fates: Sequence[Fate]) -> list[dict[str, Any]]:
    """Return what `from_json` reads."""
    return [
        {"end": int(f.end)}
        | {k: None if v == inf else v for k, v in ((k, getattr(f, k)) for k in _KEPT)}
        for f in fates
    ]


def from_json(lines: Sequence[Mapping[str, Any]]) -> list[Fate]:
    def number(value: float | None) -> float:
        return inf if value is None else value

    return [
        Fate(
            end=End(x["end"]),
            plan=x["plan"],
            variant=x["variant"],
            latency_ms=number(x["latency_ms"]),
            predicted_ms=number(x["predicted_ms"]),
            stage=x["stage"],
            cut=x["cut"],
        )
        for x in lines
    ]


async def _drive(
    stack: Stack, trace: Trace, examples: Sequence[Example]
) -> tuple[tuple[Result, ...], Spent, Client]:
    gateway, client_s = psutil.Process(stack.pid), time.process_time()
    before = _cpu_ms(gateway)
    async with load_clients.HttpLoadClient(stack.http_url) as load_client:
        run = await open_loop.play(schedule.of_trace(trace, examples), load_client)
    own_ms, others_ms = (b - a for a, b in zip(before, _cpu_ms(gateway), strict=True))
    client_ms = (time.process_time() - client_s) * 1e3
    return run.results, Spent(own_ms, client_ms, others_ms), run.client


def _cpu_ms(gateway: psutil.Process) -> tuple[float, float]:
    """Return the CPU time of the gateway, and of Triton with all its model processes."""
    others = [child.cpu_times() for child in gateway.children(recursive=True)]
    own = gateway.cpu_times()
    return (own.user + own.system) * 1e3, sum((t.user + t.system) * 1e3 for t in others)
