"""Plays a trace through a policy on a virtual clock: arrival, the gateway's work, choice, windows, answer.

Knows no rule of choosing and draws no random number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from heapq import heappop, heappush
from itertools import compress
from math import inf
from typing import Protocol

from gateway.domain import Option, Size, Slo, SloPolicy
from gateway.request.cascade import RESERVE
from gateway.routing import admission_queue
from gateway.routing.admission_queue import AdmissionQueue, Waiting
from gateway.routing.policy import escalation_left_ms
from loadtest.lab.host import EmulatedHost, HostJob
from loadtest.lab.prediction import Prediction, Ticket
from loadtest.lab.traces import Trace, TraceRequest
from loadtest.lab.world import World

GATEWAY = "(gateway)"  # its event loop: one thread
RETRY_AFTER_MS = 1_000.0  # the header's least, whole seconds
CLIENT = "(client)"  # where it shares the host: one thread, too


class Policy(Protocol):
    """What chooses; one fresh object a simulation, so it may remember."""

    name: str
    cascades: bool  # does it choose from them, too?
    admission: (
        AdmissionQueue | None
    )  # where its requests wait unread; None: all are read as they come

    def quantile(self, slo: Slo) -> float:
        """Return which quantile of the latency it wants predicted."""

    def decide_early(
        self,
        request: TraceRequest,
        cheapest_first: Iterable[Option],
        predict: Callable[[Option], Option],
        spent_ms: float,
    ) -> Option | None:
        """Return what `decide` would, from fewer predictions; None: it needs all of them."""

    def decide(
        self, request: TraceRequest, options: Sequence[Option], spent_ms: float, now_ms: float
    ) -> Option | None:
        """Return one of the options, or None: refused."""

    def finished(
        self, request: TraceRequest, option: Option, latency_ms: float, now_ms: float
    ) -> None:
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
    unread: bool = True  # only its headers were looked at
    waiting: Waiting | None = field(default=None, repr=False)
    admitted: Waiting | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Callers:
    """A closed loop: each of `n` callers sends its next request when it has what became of the last.

    `honour`: who is refused waits until it is said to be worth coming back, else it comes back at once.
    """

    n: int
    seconds: float
    honour: bool = False


def simulate(world: World, trace: Trace, policy: Policy, seed: int) -> list[Fate]:
    """Return the fate of every request of the trace, in its order."""
    return _Run(world, trace, policy, seed).play()


def simulate_closed(
    world: World, trace: Trace, policy: Policy, seed: int, callers: Callers
) -> tuple[Trace, list[Fate]]:
    """Return the requests that the callers sent, with the times at which they did, and their fates.

    Contents and order are those of `trace`; its times are not used.
    """
    run = _Run(world, list(trace), policy, seed, callers)
    return run.play_closed()


class Place(Protocol):
    """Where work is done: a host, or what passes it on to one of several."""

    def submit(self, job: HostJob, now_ms: float) -> None:
        """Begin the job, or let it wait for its turn."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a run, which all its gateways see: what they cost and what becomes of them."""

    trace: Trace
    fates: list[Fate]
    sizes: Sequence[Size]
    window_ms: Mapping[str, Sequence[float]]  # by variant and request
    timers: list[tuple[float, int]] = field(default_factory=list)  # heap of deadlines

    @classmethod
    def of(cls, world: World, trace: Trace, seed: int) -> Requests:
        fates = [Fate() for _ in trace]
        return cls(trace, fates, world.sizes_of(trace), world.window_ms(trace, seed))


def _nothing(_: int, __: float) -> None:
    return


class Gateway:
    """One gateway: the life of its requests, from the headers to the answer.

    `place` does its work and the models'; `ended` is called with a request that is over, and the time.
    """

    def __init__(
        self,
        world: World,
        requests: Requests,
        policy: Policy,
        prediction: Prediction,
        place: Place,
        ended: Callable[[int, float], None] = _nothing,
    ) -> None:
        self._world, self._policy, self._prediction = world, policy, prediction
        self._trace, self._fates, self._sizes = requests.trace, requests.fates, requests.sizes
        self._window_ms, self._timers = requests.window_ms, requests.timers
        self._host, self._on_end = place, ended
        self._admission = policy.admission
        self._index: dict[int, int] = {}  # requests, by the identity of what waits for them
        self._look_ms = 0.0  # then it is looked for who waits in vain
        self._reading: set[int] = set()  # let in, and not read to their end
        self._direct = [len(p.variants) == 1 for p in world.catalog.plans]
        self._all = policy.cascades or all(self._direct)

    def arrived(self, i: int, now_ms: float) -> None:
        """Read the headers of a request."""
        world, request = self._world, self._trace[i]
        if self._admission is None or request.slo.variant is not None:
            self._read(i, world.gateway_cpu_ms, now_ms)
        else:
            self._host.submit(HostJob(i, GATEWAY, world.refusal_cpu_ms), now_ms)

    def _read(self, i: int, work_ms: float, now_ms: float) -> None:
        self._fates[i].unread = False
        self._reading.add(i)
        self._host.submit(HostJob(i, GATEWAY, work_ms), now_ms)

    def _offer(self, i: int, now_ms: float) -> None:
        """The headers are read: wait for the turn, or, where it is now or never, be let in or refused."""
        assert self._admission is not None
        request, fate = self._trace[i], self._fates[i]
        waiting = Waiting(request.slo, request.arrival_ms, self._caller_of(i))
        if request.slo.policy is SloPolicy.STRICT:
            spent_ms = now_ms - request.arrival_ms
            if spent_ms + self._soonest(request.slo, now_ms) > request.slo.latency_ms:
                self._refuse(i, now_ms)
            else:
                self._let_in(i, waiting, now_ms)
            return
        fate.waiting = waiting
        self._index[id(waiting)] = i
        self._admission.add(waiting)

    def _let_in(self, i: int, waiting: Waiting, now_ms: float) -> None:
        fate = self._fates[i]
        fate.waiting, fate.admitted = None, waiting
        if self._admission is not None:
            self._admission.enter(waiting)
        self._read(i, self._world.gateway_cpu_ms - self._world.refusal_cpu_ms, now_ms)

    def _refuse(self, i: int, now_ms: float) -> None:
        fate = self._fates[i]
        fate.end, fate.over, fate.waiting = End.REFUSED, True, None
        self._ended(i, now_ms)

    def _ended(self, i: int, now_ms: float) -> None:
        """A request is over, however it ended."""
        self._reading.discard(i)
        admitted = self._fates[i].admitted
        if self._admission is not None and admitted is not None:
            self._admission.leave(admitted)
        self._on_end(i, now_ms)

    def _caller_of(self, i: int) -> int:
        caller = self._trace[i].caller
        return i if caller < 0 else caller

    def _soonest(self, slo: Slo, now_ms: float) -> float:
        """Return when the fastest plan that may answer this would have, ms from now."""
        quantile = self._policy.quantile(slo)
        return admission_queue.soonest_ms(
            slo, self._prediction.options(admission_queue.SMALLEST, quantile, now_ms)
        )

    @property
    def waits(self) -> bool:
        """Whether a request waits for admission."""
        return bool(self._admission)

    def pump(self, now_ms: float) -> None:
        """Let in who waits, as far as there is room, and refuse who waits in vain."""
        queue = self._admission
        if not queue:
            return
        quantile = self._policy.quantile
        if now_ms >= self._look_ms:
            self._look_ms = now_ms + admission_queue.LOOK_MS
            soonest = admission_queue.Soonest(
                lambda slo: self._prediction.options(
                    admission_queue.SMALLEST, quantile(slo), now_ms
                )
            )
            for waiting in queue.take_hopeless(now_ms, soonest):
                self._refuse(self._index.pop(id(waiting)), now_ms)
        while not self._reading:
            if self._prediction.wait_ms(now_ms) <= admission_queue.ROOM_MS:
                found = queue.take(now_ms)
            else:
                found = queue.take_preempting(now_ms, self._prediction.cores)
            if found is None:
                return
            self._let_in(self._index.pop(id(found)), found, now_ms)

    def finished(self, job: HostJob, now_ms: float) -> None:
        """Go on with the requests of a job that is done."""
        self._finished_work(job, now_ms)
        self.pump(now_ms)

    def _finished_work(self, job: HostJob, now_ms: float) -> None:
        if job.place == GATEWAY and not self._fates[job.request].unread:
            self._reading.discard(job.request)
        for part in (job, *job.with_it):
            fate = self._fates[part.request]
            fate.compute_ms += job.work_ms / (1 + len(job.with_it))
            if fate.over:
                continue
            if job.place == GATEWAY:
                if fate.unread:
                    self._offer(part.request, now_ms)
                elif fate.option is None:
                    self._choose(part.request, now_ms)
                else:
                    self._infer(part.request, now_ms)
                continue
            fate.left -= 1
            if not fate.left:
                self._said(part.request, now_ms)

    def _choose(self, i: int, now_ms: float) -> None:
        request, fate = self._trace[i], self._fates[i]
        spent_ms = now_ms - request.arrival_ms
        option = self._decide(request, self._sizes[i], spent_ms, now_ms)
        if option is None:
            self._refuse(i, now_ms)
            return
        fate.option, fate.plan = option, option.plan.name
        fate.predicted_ms = spent_ms + option.predicted_ms
        self._infer(i, now_ms)

    def _decide(
        self, request: TraceRequest, size: Size, spent_ms: float, now_ms: float
    ) -> Option | None:
        """Return the option to answer with, from as few predictions as the policy needs."""
        quantile = self._policy.quantile(request.slo)
        head_starts_ms: Sequence[float] = ()
        if self._admission is not None:
            left_ms = request.slo.latency_ms - spent_ms
            head_starts_ms = self._admission.head_starts_ms(left_ms, now_ms)
        predictor = self._prediction.predictor(size, quantile, now_ms, head_starts_ms)
        cheapest_first = self._prediction.cheapest_first(size)
        early = self._policy.decide_early(request, cheapest_first, predictor, spent_ms)
        if early is not None:
            return early
        options = [predictor(known) for known in self._prediction.plans(size)]
        if not self._all:
            options = list(compress(options, self._direct))
        return self._policy.decide(request, options, spent_ms, now_ms)

    def _infer(self, i: int, now_ms: float) -> None:
        fate, size = self._fates[i], self._sizes[i]
        assert fate.option is not None
        variant = fate.option.plan.variants[fate.stage]
        fate.variant, fate.left = variant, size.n_windows
        fate.ticket = self._prediction.started(variant, size, now_ms)
        work_ms = self._window_ms[variant][i]
        for _ in range(size.n_windows):
            self._host.submit(HostJob(i, variant, work_ms), now_ms)

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
        request, fate = self._trace[i], self._fates[i]
        quantile = self._policy.quantile(request.slo)
        takes_ms = self._prediction.stage_ms(variant, self._sizes[i], quantile, now_ms)
        if takes_ms > escalation_left_ms(request.slo, now_ms - request.arrival_ms):
            return False
        fate.stage += 1
        gives_up_ms = request.arrival_ms + (1 - RESERVE) * request.slo.timeout_ms
        heappush(self._timers, (gives_up_ms, i))
        self._host.submit(HostJob(i, GATEWAY, self._world.escalation_cpu_ms), now_ms)
        return True

    def _answered(self, i: int, now_ms: float) -> None:
        request, fate = self._trace[i], self._fates[i]
        assert fate.option is not None
        fate.end, fate.over = End.ANSWERED, True
        fate.variant = fate.option.plan.variants[fate.stage]
        fate.latency_ms = now_ms - request.arrival_ms
        self._policy.finished(request, fate.option, fate.latency_ms, now_ms)
        self._ended(i, now_ms)

    def expire(self, i: int, now_ms: float) -> None:
        """End a request at its deadline: what waits is dropped, what runs runs on for nobody.

        An escalation ends a little earlier, with the answer at hand.
        """
        fate = self._fates[i]
        if fate.over:
            return
        if fate.waiting is not None and self._admission is not None:
            self._admission.remove(fate.waiting)
            self._index.pop(id(fate.waiting))
            self._refuse(i, now_ms)
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
        self._ended(i, now_ms)


class _Run:
    """One gateway on one host."""

    def __init__(
        self,
        world: World,
        trace: Trace,
        policy: Policy,
        seed: int,
        callers: Callers | None = None,
    ) -> None:
        self._callers = callers
        self._due: list[tuple[float, int]] = []  # heap of when a caller sends again, and which
        self._n_sent = 0
        self._world, self._trace = world, trace
        requests = Requests.of(world, trace, seed)
        self._fates, self._timers = requests.fates, requests.timers
        self._host = EmulatedHost(
            world.all_cores,
            {**world.instances, GATEWAY: world.replicas, CLIENT: 1},
            contention=world.contention,
            weights={GATEWAY: world.gateway_weight},
            dead=lambda job: self._fates[job.request].over,
            batch=policy.batch,
        )
        self._gateway = Gateway(
            world, requests, policy, world.prediction(), self._host, self._ended
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
                self._gateway.expire(heappop(timers)[1], ends)
            else:
                self._arrived(i, arrives)
                i += 1

    def play_closed(self) -> tuple[Trace, list[Fate]]:
        assert self._callers is not None
        host, timers, due = self._host, self._timers, self._due
        self._due.extend((0.0, caller) for caller in range(self._callers.n))
        while True:
            sends = due[0][0] if due else inf
            works, ends = host.next_ms(), timers[0][0] if timers else inf
            if min(sends, works, ends) == inf:
                return self._trace[: self._n_sent], self._fates[: self._n_sent]
            if works <= ends and works <= sends:
                self._finished(host.finish(works), works)
            elif ends <= sends:
                self._gateway.expire(heappop(timers)[1], ends)
            else:
                now_ms, caller = heappop(due)
                self._send_next(caller, now_ms)

    def _send_next(self, caller: int, now_ms: float) -> None:
        assert self._callers is not None
        i = self._n_sent
        if now_ms >= self._callers.seconds * 1e3 or i >= len(self._trace):
            return
        self._n_sent += 1
        self._trace[i] = replace(self._trace[i], arrival_ms=now_ms, caller=caller)
        self._arrived(i, now_ms)

    def _arrived(self, i: int, now_ms: float) -> None:
        heappush(self._timers, (now_ms + self._trace[i].slo.timeout_ms, i))
        if self._world.client_cpu_ms:
            self._host.submit(HostJob(i, CLIENT, self._world.client_cpu_ms), now_ms)
        else:
            self._gateway.arrived(i, now_ms)

    def _finished(self, job: HostJob, now_ms: float) -> None:
        if job.place == CLIENT:
            self._gateway.arrived(job.request, now_ms)
        else:
            self._gateway.finished(job, now_ms)

    def _ended(self, i: int, now_ms: float) -> None:
        """Let the caller of a request that is over send its next one."""
        if self._callers is not None:
            refused = self._fates[i].end is End.REFUSED and self._callers.honour
            pause_ms = RETRY_AFTER_MS if refused else 0.0
            heappush(self._due, (now_ms + pause_ms, self._trace[i].caller))
