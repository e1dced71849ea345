"""Plays a trace through a policy on a virtual clock: arrival, the gateway's work, choice, windows, answer.

Knows no rule of choosing and draws no random number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from itertools import compress
from math import inf
from typing import Protocol

from gateway.cascade import RESERVE
from gateway.domain import Option, Slo
from gateway.policy import escalation_left_ms
from loadtest.lab.host import Host, Job
from loadtest.lab.prediction import Ticket
from loadtest.lab.traces import Asked, Trace
from loadtest.lab.world import World

GATEWAY = "(gateway)"  # its event loop: one thread
CLIENT = "(client)"  # where it shares the host: one thread, too


class Policy(Protocol):
    """What chooses; one fresh object a simulation, so it may remember."""

    name: str
    cascades: bool  # does it choose from them, too?

    def quantile(self, slo: Slo) -> float:
        """Return which quantile of the latency it wants predicted."""

    def decide(
        self, asked: Asked, options: Sequence[Option], spent_ms: float, now_ms: float
    ) -> Option | None:
        """Return one of the options, or None: refused."""

    def finished(self, asked: Asked, option: Option, latency_ms: float, now_ms: float) -> None:
        """Learn what became of a request; `latency_ms` is inf when its deadline ended it."""

    def turns_away(self, asked: Asked, waited_ms: float, queued_ms: float) -> bool:
        """Say whether to refuse before the request is parsed, when its turn has come.

        It waited for that, and would have to wait for the models.
        """

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
    variant: str = ""  # that gives the answer, or was asked for it last
    latency_ms: float = inf  # from the arrival
    predicted_ms: float = inf  # from the arrival, when it was chosen
    compute_ms: float = 0.0  # of one core, all that was spent on it
    left: int = 0  # windows to come
    stage: int = 0
    cut: bool = False  # the answer was doubted, and there was no time for the next variant
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
        self._direct = [len(p.variants) == 1 for p in world.catalog.plans]
        self._all = policy.cascades or all(self._direct)
        self._host = Host(
            world.all_cores,
            {**world.instances, GATEWAY: world.replicas, CLIENT: 1},
            contention=world.contention,
            weights={GATEWAY: world.gateway_weight},
            begins=self._begins,
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
                self._arrived(i, arrives)
                i += 1

    def _arrived(self, i: int, now_ms: float) -> None:
        heappush(self._timers, (now_ms + self._trace[i].slo.timeout_ms, i))
        if self._world.client_cpu_ms:
            self._host.submit(Job(i, CLIENT, self._world.client_cpu_ms), now_ms)
        else:
            self._sent(i, now_ms)

    def _sent(self, i: int, now_ms: float) -> None:
        self._host.submit(Job(i, GATEWAY, self._world.gateway_cpu_ms), now_ms)

    def _begins(self, job: Job, now_ms: float) -> None:
        """When its turn in the gateway has come, a request may be refused for little."""
        if job.place != GATEWAY:
            return
        asked, fate = self._trace[job.request], self._fates[job.request]
        if fate.over or fate.option is not None:
            return
        queued_ms = self._prediction.wait_ms(now_ms)
        if self._policy.turns_away(asked, now_ms - asked.arrival_ms, queued_ms):
            job.work_ms = self._world.refusal_cpu_ms
            fate.end, fate.over = End.REFUSED, True

    def _finished(self, job: Job, now_ms: float) -> None:
        if job.place == CLIENT:
            self._sent(job.request, now_ms)
            return
        for part in (job, *job.with_it):
            fate = self._fates[part.request]
            fate.compute_ms += job.work_ms / (1 + len(job.with_it))
            if fate.over:
                continue
            if job.place == GATEWAY:
                if fate.option is None:
                    self._choose(part.request, now_ms)
                else:
                    self._infer(part.request, now_ms)
                continue
            fate.left -= 1
            if not fate.left:
                self._said(part.request, now_ms)

    def _choose(self, i: int, now_ms: float) -> None:
        asked, fate = self._trace[i], self._fates[i]
        spent_ms = now_ms - asked.arrival_ms
        quantile = self._policy.quantile(asked.slo)
        options = self._prediction.options(self._sizes[i], quantile, now_ms)
        if not self._all:
            options = list(compress(options, self._direct))
        option = self._policy.decide(asked, options, spent_ms, now_ms)
        if option is None:
            fate.end, fate.over = End.REFUSED, True
            return
        fate.option, fate.plan = option, option.plan.name
        fate.predicted_ms = spent_ms + option.predicted_ms
        self._infer(i, now_ms)

    def _infer(self, i: int, now_ms: float) -> None:
        fate, size = self._fates[i], self._sizes[i]
        assert fate.option is not None
        variant = fate.option.plan.variants[fate.stage]
        fate.variant, fate.left = variant, size.n_windows
        fate.ticket = self._prediction.started(variant, size, now_ms)
        work_ms = self._window_ms[variant][i]
        for _ in range(size.n_windows):
            self._host.submit(Job(i, variant, work_ms), now_ms)

    def _said(self, i: int, now_ms: float) -> None:
        """A variant has answered: keep its answer, or ask the next one."""
        fate = self._fates[i]
        assert fate.option is not None
        assert fate.ticket is not None
        self._prediction.ended(fate.ticket, now_ms)
        fate.ticket = None
        plan = fate.option.plan
        if self._world.stops[plan.name][self._trace[i].question] > fate.stage:
            fate.cut = not self._escalate(i, plan.variants[fate.stage + 1], now_ms)
            if not fate.cut:
                return
        self._answered(i, now_ms)

    def _escalate(self, i: int, variant: str, now_ms: float) -> bool:
        """Ask the next variant if the time left covers it, by the gateway's own rule."""
        asked, fate = self._trace[i], self._fates[i]
        quantile = self._policy.quantile(asked.slo)
        takes_ms = self._prediction.stage_ms(variant, self._sizes[i], quantile, now_ms)
        if takes_ms > escalation_left_ms(asked.slo, now_ms - asked.arrival_ms):
            return False
        fate.stage += 1
        gives_up_ms = asked.arrival_ms + (1 - RESERVE) * asked.slo.timeout_ms
        heappush(self._timers, (gives_up_ms, i))
        self._host.submit(Job(i, GATEWAY, self._world.escalation_cpu_ms), now_ms)
        return True

    def _answered(self, i: int, now_ms: float) -> None:
        asked, fate = self._trace[i], self._fates[i]
        assert fate.option is not None
        fate.end, fate.over = End.ANSWERED, True
        fate.variant = fate.option.plan.variants[fate.stage]
        fate.latency_ms = now_ms - asked.arrival_ms
        self._policy.finished(asked, fate.option, fate.latency_ms, now_ms)

    def _expire(self, i: int, now_ms: float) -> None:
        """End a request at its deadline: what waits is dropped, what runs runs on for nobody.

        An escalation ends a little earlier, with the answer at hand.
        """
        fate = self._fates[i]
        if fate.over:
            return
        if fate.ticket is not None:
            self._prediction.cancelled(fate.ticket, now_ms)
        if fate.stage:
            fate.stage, fate.cut = fate.stage - 1, True
            self._answered(i, now_ms)
            return
        fate.over = True
        if fate.option is not None:
            self._policy.finished(self._trace[i], fate.option, inf, now_ms)
