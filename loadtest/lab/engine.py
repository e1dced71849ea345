"""Plays a trace through a policy on a virtual clock: arrival, the gateway's work, choice, windows, answer.

Knows no rule of choosing and draws no random number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from gateway.domain import Option, Slo
from loadtest.lab.host import Host, Job
from loadtest.lab.prediction import Ticket
from loadtest.lab.traces import Asked, Trace
from loadtest.lab.world import World

GATEWAY = "(gateway)"  # its event loop: one thread


class Policy(Protocol):
    """What chooses; one fresh object a simulation, so it may remember."""

    name: str

    def quantile(self, slo: Slo) -> float:
        """Return which quantile of the latency it wants predicted."""

    def decide(
        self, asked: Asked, options: Sequence[Option], spent_ms: float, now_ms: float
    ) -> Option | None:
        """Return one of the options, or None: refused."""

    def finished(self, asked: Asked, option: Option, latency_ms: float, now_ms: float) -> None:
        """Learn what became of a request; `latency_ms` is inf when its deadline ended it."""

    def batch(self, variant: str) -> int:
        """Return how many windows an instance may take at once."""


class End(IntEnum):
    ANSWERED = 0
    REFUSED = 1
    EXPIRED = 2


@dataclass(slots=True)
class Fate:
    """What became of one request."""

    end: End = End.EXPIRED
    plan: str = ""
    variant: str = ""  # that gave the answer
    latency_ms: float = inf  # from the arrival
    predicted_ms: float = inf  # from the arrival, when it was chosen
    compute_ms: float = 0.0  # of one core, all that was spent on it
    left: int = 0  # windows to come
    stage: int = 0
    over: bool = False
    option: Option | None = None
    ticket: Ticket | None = field(default=None, repr=False)


def simulate(world: World, trace: Trace, policy: Policy, seed: int) -> list[Fate]:
    """Return the fate of every request of the trace, in its order."""
    return _Run(world, trace, policy, seed).play()


class _Run:
    def __init__(self, world: World, trace: Trace, policy: Policy, seed: int) -> None:
        self._world, self._trace, self._policy = world, trace, policy
        self._prediction = world.prediction()
        self._window_ms = world.window_ms(trace, seed)
        self._sizes = world.sizes_of(trace)
        self._fates = [Fate() for _ in trace]
        self._timers: list[tuple[float, int]] = []  # heap of deadlines
        self._host = Host(
            world.all_cores,
            {**world.instances, GATEWAY: world.replicas},
            contention=world.contention,
            dead=lambda job: self._fates[job.request].over,
            batch=policy.batch,
        )

    def play(self) -> list[Fate]:
        times = [a.arrival_ms for a in self._trace]
        n, i = len(times), 0
        host, timers = self._host, self._timers
        while True:
            arrives = times[i] if i < n else inf
            due = host.next_ms()
            ends = timers[0][0] if timers else inf
            if due <= ends and due <= arrives:
                if due == inf:
                    return self._fates
                self._finished(host.finish(due), due)
            elif ends <= arrives:
                self._expire(heappop(timers)[1], ends)
            else:
                work_ms = self._world.gateway_cpu_ms
                heappush(timers, (arrives + self._trace[i].slo.timeout_ms, i))
                host.submit(Job(i, GATEWAY, work_ms), arrives)
                i += 1

    def _finished(self, job: Job, now_ms: float) -> None:
        for part in (job, *job.with_it):
            fate = self._fates[part.request]
            fate.compute_ms += job.work_ms / (1 + len(job.with_it))
            if fate.over:
                continue
            if job.place == GATEWAY:
                self._choose(part.request, now_ms)
                continue
            fate.left -= 1
            if not fate.left:
                self._answered(part.request, now_ms)

    def _choose(self, i: int, now_ms: float) -> None:
        asked, fate = self._trace[i], self._fates[i]
        spent_ms = now_ms - asked.arrival_ms
        quantile = self._policy.quantile(asked.slo)
        options = self._prediction.options(self._sizes[i], quantile, now_ms)
        option = self._policy.decide(asked, options, spent_ms, now_ms)
        if option is None:
            fate.end, fate.over = End.REFUSED, True
            return
        fate.option, fate.plan = option, option.plan.name
        fate.predicted_ms = spent_ms + option.predicted_ms
        self._infer(i, option.plan.variants[0], now_ms)

    def _infer(self, i: int, variant: str, now_ms: float) -> None:
        fate, size = self._fates[i], self._sizes[i]
        fate.variant, fate.left = variant, size.n_windows
        fate.ticket = self._prediction.started(variant, size, now_ms)
        work_ms = self._window_ms[variant][i]
        for _ in range(size.n_windows):
            self._host.submit(Job(i, variant, work_ms), now_ms)

    def _answered(self, i: int, now_ms: float) -> None:
        asked, fate = self._trace[i], self._fates[i]
        assert fate.option is not None
        assert fate.ticket is not None
        self._prediction.ended(fate.ticket, now_ms)
        latency_ms = now_ms - asked.arrival_ms
        further = self._next_stage(i, asked.slo.timeout_ms - latency_ms)
        if further is not None:
            fate.stage += 1
            self._infer(i, further, now_ms)
            return
        fate.end, fate.over, fate.latency_ms = End.ANSWERED, True, latency_ms
        self._policy.finished(asked, fate.option, latency_ms, now_ms)

    def _next_stage(self, i: int, left_ms: float) -> str | None:
        """Return what a cascade asks next: it doubts the answer, and there is time for another."""
        fate = self._fates[i]
        assert fate.option is not None
        plan, stage = fate.option.plan, fate.stage
        if stage + 1 >= len(plan.variants):
            return None
        said = self._world.recording.said[plan.variants[stage]]
        further = plan.variants[stage + 1]
        sure = said.confidence[self._trace[i].question] >= plan.thresholds[stage]
        return None if sure or self._window_ms[further][i] > left_ms else further

    def _expire(self, i: int, now_ms: float) -> None:
        """End a request at its deadline: what waits is dropped, what runs runs on for nobody."""
        fate = self._fates[i]
        if fate.over:
            return
        fate.over = True
        if fate.ticket is not None:
            self._prediction.cancelled(fate.ticket, now_ms)
            assert fate.option is not None
            self._policy.finished(self._trace[i], fate.option, inf, now_ms)
