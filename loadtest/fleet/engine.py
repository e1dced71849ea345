"""Plays a trace through a fleet on a virtual clock: gateways choose among Tritons, zones fail, catalogs roll.

Requests and hosts are simulated as in the lab. Policy, prediction, choice of a Triton, the estimate of others'
load, breakers and the budget of retries are the gateway's own code. A balancer sends each request to a gateway that
it believes to be up. The network takes no time, and polls cost no work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from math import inf
from random import Random

from gateway.backends.breaker import Breaker, GuardedCall, RetryBudget
from gateway.backends.external_load import Counted
from gateway.qa.codec import TYPICAL_TOKENS
from gateway.routing.admission_queue import TICK_MS
from loadtest.fleet.choices import OURS, Choice, View, choose
from loadtest.fleet.kinds import Kind
from loadtest.fleet.layout import Layout
from loadtest.lab.engine import CLIENT, GATEWAY, Fate, Gateway, Requests
from loadtest.lab.host import EmulatedHost, HostJob
from loadtest.lab.prediction import Prediction
from loadtest.lab.rivals import Bertier
from loadtest.lab.traces import Trace

POLL_MS = 1_000.0  # `others_poll_ms`
RETRY_SHARE = 0.1  # `retry_share`
WATCH_MS = 2_000.0  # `catalog_poll_ms`: then a gateway asks whether its Tritons are ready
SILENCE_MS = 5_000.0  # until a gateway stops waiting for that answer
READMIT_MS = 1_000.0  # between looks for Tritons that are back
NOTICE_MS = 1_000.0  # until a balancer takes a silent gateway out
ROLL = "(roll)"  # the work of a new catalog on a host


@dataclass(frozen=True, slots=True)
class ZoneLost:
    """All hosts of zone 0 are gone for a while; `silent`: nothing refuses a connection, calls hang."""

    at_ms: float
    back_ms: float
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """A new catalog: hosts load and check it, `waves` of them one after the other, every `gap_ms`."""

    at_ms: float
    waves: int
    gap_ms: float
    work_ms: float  # of one core, on each host


Event = ZoneLost | Rollout


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated, but for the requests; `poll_ms` 0: gateways do not see others' load."""

    kind: Kind
    layout: Layout
    choice: Choice = OURS
    poll_ms: float = POLL_MS
    events: tuple[Event, ...] = ()


@dataclass(slots=True)
class _Machine:
    """A host's cores; an entry of the heap of job ends with an older `stamp` is out of date."""

    number: int
    zone: int
    slots: dict[str, int]
    cores: int
    up: bool = True
    stamp: int = 0


class _Triton:
    """One Triton: what is there, and what its statistics say."""

    def __init__(self, number: int, machine: _Machine, variants: Sequence[str]) -> None:
        self.number, self.machine = number, machine
        self.places = {v: f"{v}@{number}" for v in variants}
        self.up = True
        self.work_ms = 0.0  # profiled, of all gateways
        self.spent_s = dict.fromkeys(variants, 0.0)
        self.answered: Counter[str] = Counter()


class _Seat:
    """One Triton as one gateway process sees it; `work_ms` is what its choice looks at."""

    __slots__ = ("breaker", "in_flight", "own_ms", "seen_ms", "triton", "work_ms")

    def __init__(self, triton: _Triton) -> None:
        self.triton = triton
        self.own_ms = self.seen_ms = self.work_ms = 0.0
        self.in_flight = 0
        self.breaker: Breaker | None = None  # None: closed, nothing has failed

    def count(self, change: int, work_ms: float) -> None:
        self.in_flight += change
        self.own_ms = self.own_ms + change * work_ms if self.in_flight else 0.0
        self.work_ms = self.own_ms + self.seen_ms

    def see(self, others_ms: float) -> None:
        self.seen_ms = others_ms
        self.work_ms = self.own_ms + others_ms

    def begin(self, now_ms: float) -> GuardedCall:
        """Return a call of a Triton that may fail."""
        if self.breaker is None:
            self.breaker = Breaker()
        return self.breaker.begin(now_ms)


@dataclass(slots=True)
class _Call(HostJob):
    """A window on its way to one Triton."""

    seat: _Seat | None = None
    variant: str = ""
    profiled_ms: float = 0.0
    began_ms: float = 0.0
    guard: GuardedCall | None = None  # of a Triton that is silent


class Simulation:
    """One trace through one fleet."""

    def __init__(
        self, setup: Setup, trace: Trace, seed: int, learned: Prediction | None = None
    ) -> None:
        """`learned`: gateways begin with what this one knows of such hosts."""
        self.setup, self.seed = setup, seed
        self.world = setup.kind.world
        self.requests = Requests.of(self.world, trace, seed)
        self.learned = learned
        self.draw = Random(f"{seed} choice")
        self._trace, self.fates = trace, self.requests.fates
        self._balance = Random(f"{seed} balancer")
        self._owner: list[_Worker | None] = [None] * len(trace)
        self._left = len(trace)
        self._due: list[tuple[float, int, int]] = []  # heap of when a machine's next job ends
        self._acts: list[tuple[float, int, Callable[[float], None]]] = []  # heap
        self._serial = 0
        self.silent = False  # lost hosts do not refuse connections: calls hang
        self.profiled = {
            v.name: {
                size.bucket: v.profile.cell(size.bucket).p50_ms
                for size in self.world.recording.sizes
            }
            for v in self.world.catalog.variants
        }
        self.typical_ms = {
            v.name: v.profile.cell(TYPICAL_TOKENS).p50_ms for v in self.world.catalog.variants
        }
        self._build()
        for event in setup.events:
            self._plan(event)

    def play(self) -> list[Fate]:
        """Return the fate of every request of the trace, in its order."""
        times, n, i = [a.arrival_ms for a in self._trace], len(self._trace), 0
        timers, acts = self.requests.timers, self._acts
        while self._left:
            arrives = times[i] if i < n else inf
            due, ends = self._due_ms(), timers[0][0] if timers else inf
            other = acts[0][0] if acts else inf
            if due <= ends and due <= arrives and due <= other:
                self._finish(self._machines[heappop(self._due)[2]], due)
            elif ends <= arrives and ends <= other:
                self._expire(heappop(timers)[1], ends)
            elif other <= arrives:
                heappop(acts)[2](other)
            else:
                self._arrived(i, arrives)
                i += 1
        return self.fates

    @property
    def prediction(self) -> Prediction:
        """Return what the first gateway has learned."""
        return self._sites[0].prediction

    def at(self, when_ms: float, act: Callable[[float], None]) -> None:
        """Have something done at a time."""
        self._serial += 1
        heappush(self._acts, (when_ms, self._serial, act))

    def start(self, machine: _Machine, job: HostJob, now_ms: float) -> None:
        """Begin a job on a machine; on one that is gone, nothing happens."""
        if machine.up:
            self._hosts[machine.number].submit(job, now_ms)
            self._look(machine)

    def lose(self, i: int) -> None:
        """End a request whose gateway is gone."""
        fate = self.fates[i]
        if not fate.over:
            fate.over = True
            self._left -= 1

    def ended(self, _: int, __: float) -> None:
        self._left -= 1

    # Building.

    def _build(self) -> None:
        kind, layout, variants = self.setup.kind, self.setup.layout, list(self.world.instances)
        shared = not kind.gateway_cores
        n_machines = 1 if layout.together else layout.hosts * (1 if shared else 2)
        self._machines = [
            _Machine(
                n,
                layout.zone_of(n % layout.hosts),
                {ROLL: 1},
                self.world.cores if n < layout.hosts else kind.gateway_cores,
            )
            for n in range(n_machines)
        ]
        self._tritons = [
            _Triton(n, self._machines[0 if layout.together else n], variants)
            for n in range(layout.hosts)
        ]
        for triton in self._tritons:
            for variant, instances in self.world.instances.items():
                triton.machine.slots[triton.places[variant]] = instances
        if layout.together:
            self._machines[0].slots[CLIENT] = 1
        self._sites: list[_Site] = []
        for gateway in range(layout.gateways):
            n = 0 if layout.together else layout.host_of(gateway) + (0 if shared else layout.hosts)
            machine = self._machines[n]
            asked = [self._tritons[t] for t in layout.asked_by(gateway, self.seed)]
            self._sites.append(_Site(self, gateway, machine, asked))
        self._workers = [worker for site in self._sites for worker in site.workers]
        self._takers = list(self._workers)  # that the balancer sends requests to
        self._hosts = [self._new_host(machine) for machine in self._machines]
        if self.setup.poll_ms and (layout.gateways > 1):
            phases = Random(f"{self.seed} polls")
            for site in self._sites:
                self.at(phases.random() * self.setup.poll_ms, site.poll)

    def _new_host(self, machine: _Machine) -> EmulatedHost:
        weight = 1.0 if self.setup.kind.gateway_cores else self.world.gateway_weight
        fates = self.fates
        return EmulatedHost(
            machine.cores,
            machine.slots,
            contention=self.world.contention,
            weights={place: weight for place in machine.slots if place.startswith(GATEWAY)},
            dead=lambda job: job.request >= 0 and fates[job.request].over,
        )

    # The clock.

    def _look(self, machine: _Machine) -> None:
        """Note when the machine's next job ends, which may have changed."""
        machine.stamp += 1
        due = self._hosts[machine.number].next_ms()
        if due < inf:
            heappush(self._due, (due, machine.stamp, machine.number))

    def _due_ms(self) -> float:
        heap, machines = self._due, self._machines
        while heap and heap[0][1] != machines[heap[0][2]].stamp:
            heappop(heap)
        return heap[0][0] if heap else inf

    def _arrived(self, i: int, now_ms: float) -> None:
        if not self._takers:
            self.lose(i)
            return
        worker = self._takers[int(self._balance.random() * len(self._takers))]
        self._owner[i] = worker
        if not worker.up:
            self.lose(i)
            return
        heappush(self.requests.timers, (now_ms + self._trace[i].slo.timeout_ms, i))
        if self.world.client_cpu_ms and self.setup.layout.together:
            self.start(worker.machine, HostJob(i, CLIENT, self.world.client_cpu_ms), now_ms)
        else:
            worker.life.arrived(i, now_ms)

    def _finish(self, machine: _Machine, now_ms: float) -> None:
        job = self._hosts[machine.number].finish(now_ms)
        self._look(machine)
        worker = None if job.request < 0 else self._owner[job.request]
        if worker is None or not worker.up:
            return
        if job.place == CLIENT:
            worker.life.arrived(job.request, now_ms)
            return
        if isinstance(job, _Call):
            worker.answered(job, now_ms)
        else:
            job.place = GATEWAY
        worker.life.finished(job, now_ms)
        worker.tick_soon(now_ms)

    def _expire(self, i: int, now_ms: float) -> None:
        worker, fate = self._owner[i], self.fates[i]
        if fate.over or worker is None:
            return
        worker.expire(i, now_ms)

    # Events.

    def _plan(self, event: Event) -> None:
        if isinstance(event, ZoneLost):
            self.silent = event.silent
            self.at(event.at_ms, self._lose_zone)
            self.at(event.back_ms, self._bring_back)
            return
        hosts = [t.machine for t in self._tritons]
        for wave in range(event.waves):
            machines = hosts[wave :: event.waves]
            self.at(event.at_ms + wave * event.gap_ms, partial(self._roll, machines, event.work_ms))

    def _roll(self, machines: Sequence[_Machine], work_ms: float, now_ms: float) -> None:
        for machine in machines:
            self.start(machine, HostJob(-1, ROLL, work_ms), now_ms)

    def _lose_zone(self, now_ms: float) -> None:
        self._end_zone()
        alive = [worker for worker in self._workers if worker.up]
        self.at(now_ms + (NOTICE_MS if self.silent else 0.0), lambda _: self._balance_over(alive))
        for site in self._sites:
            if not site.lost:
                wait_ms = self.draw.random() * WATCH_MS + (SILENCE_MS if self.silent else 0.0)
                self.at(now_ms + wait_ms, site.notice)
        for worker in alive:
            worker.notice_lost_calls(now_ms)

    def _end_zone(self) -> None:
        """End all hosts of zone 0, and the requests that their gateways had."""
        for machine in self._machines:
            if machine.zone == 0:
                machine.up, machine.stamp = False, machine.stamp + 1
        for triton in self._tritons:
            triton.up = triton.machine.up
        for worker in self._workers:
            if not worker.machine.up:
                worker.end()
        for i, owner in enumerate(self._owner):
            if owner is not None and not owner.up:
                self.lose(i)

    def _balance_over(self, workers: Sequence[_Worker]) -> None:
        self._takers = list(workers)

    def _bring_back(self, now_ms: float) -> None:
        self.learned = None  # what starts again knows nothing
        for machine in self._machines:
            if not machine.up:
                machine.up = True
                self._hosts[machine.number] = self._new_host(machine)
        for triton in self._tritons:
            if not triton.up:
                triton.up, triton.work_ms = True, 0.0
        for n, site in enumerate(self._sites):
            if site.lost:
                self._sites[n] = _Site(self, site.number, site.machine, site.tritons)
                if self.setup.poll_ms:
                    self.at(now_ms + self.setup.poll_ms, self._sites[n].poll)
            else:
                wait_ms = self.draw.random() * (WATCH_MS + READMIT_MS)
                self.at(now_ms + wait_ms, site.readmit)
        self._workers = [worker for site in self._sites for worker in site.workers]
        self._balance_over(self._workers)


class _Site:
    """One gateway: its prediction, which all of its workers share, and what it saw of others' load."""

    def __init__(
        self, simulation: Simulation, number: int, machine: _Machine, tritons: Sequence[_Triton]
    ) -> None:
        self.number, self.machine, self.tritons = number, machine, tritons
        self._simulation = simulation
        self.ours: dict[int, Counter[str]] = {t.number: Counter() for t in tritons}
        self._counted: dict[int, Counted] = {}
        self.prediction = Prediction(simulation.world.catalog, *self._capacity(len(tritons)))
        if simulation.learned is not None:
            self.prediction.learn_from(simulation.learned)
        self.workers = [_Worker(simulation, self, n) for n in range(simulation.setup.kind.workers)]

    @property
    def lost(self) -> bool:
        """Whether its processes have ended."""
        return not self.workers[0].up

    def poll(self, now_ms: float) -> None:
        """Count what others had at each Triton since the last poll, by the gateway's own arithmetic."""
        if self.lost:
            return
        total: Counter[str] = Counter()
        for triton in self.tritons:
            if not triton.up:
                continue
            ours = self.ours[triton.number]
            now = Counted(
                now_ms / 1e3, dict(triton.spent_s), Counter(triton.answered), Counter(ours)
            )
            before = self._counted.get(triton.number)
            self._counted[triton.number] = now
            external = {} if before is None else now.external_since(before)
            total.update(external)
            if self._simulation.setup.choice.view is View.POLLED:
                self._show(triton, external)
        windows = {name: round(n) for name, n in total.items()}
        self.prediction.set_external(windows, now_ms)
        self._simulation.at(now_ms + self._simulation.setup.poll_ms, self.poll)

    def _show(self, triton: _Triton, external: dict[str, float]) -> None:
        typical_ms = self._simulation.typical_ms
        others_ms = sum(n * typical_ms[name] for name, n in external.items())
        for worker in self.workers:
            seat = worker.by_triton.get(triton.number)
            if seat is not None:
                seat.see(others_ms)

    def notice(self, _: float) -> None:
        """Ask the Tritons whether they are ready, and dismiss those that are not."""
        for worker in self.workers:
            for seat in [s for s in worker.seats if not s.triton.up]:
                worker.dismiss(seat)
        self._resize()

    def readmit(self, _: float) -> None:
        """Ask Tritons again that are back and were checked."""
        for worker in self.workers:
            worker.readmit(self.tritons)
        self._resize()

    def _resize(self) -> None:
        if not self.lost:
            self.prediction.resize(*self._capacity(len(self.workers[0].seats)))

    def _capacity(self, servers: int) -> tuple[int, dict[str, int]]:
        world, n = self._simulation.world, max(1, servers)
        return world.cores * n, {v: instances * n for v, instances in world.instances.items()}


class _Worker:
    """One gateway process: passes the models' work on to one of its Tritons."""

    def __init__(self, simulation: Simulation, site: _Site, number: int) -> None:
        self.machine = site.machine
        self.place = f"{GATEWAY}@{site.number}.{number}"
        self.machine.slots[self.place] = 1
        self.seats = [_Seat(triton) for triton in site.tritons]
        self.by_triton = {seat.triton.number: seat for seat in self.seats}
        self.up = True
        self.life = Gateway(
            simulation.world,
            simulation.requests,
            Bertier(),
            site.prediction,
            self,
            simulation.ended,
        )
        self._simulation, self._site = simulation, site
        self._choice = simulation.setup.choice
        self._budget = RetryBudget(RETRY_SHARE)
        self._open: dict[int, list[_Call]] = {}  # by request
        self._turn = 0
        self._wary = False  # a Triton has failed
        self._ticks = simulation.setup.layout.gateways > 1  # else all load is its own
        self._ticking = False

    def submit(self, job: HostJob, now_ms: float) -> None:
        """Do the gateway's own work here, and the models' at a Triton."""
        if job.place == GATEWAY:
            job.place = self.place
            self._simulation.start(self.machine, job, now_ms)
            return
        if not self._simulation.fates[job.request].over:  # another window of it may have failed
            self._budget.pay_in()
            self._ask(job.request, job.place, job.work_ms, now_ms, [])

    def tick_soon(self, now_ms: float) -> None:
        """Look for room again in a while, where a request waits: others' load may keep it from being let in."""
        if self._ticks and not self._ticking and self.life.waits:
            self._ticking = True
            self._simulation.at(now_ms + TICK_MS, self._tick)

    def _tick(self, now_ms: float) -> None:
        self._ticking = False
        if self.up:
            self.life.pump(now_ms)
            self.tick_soon(now_ms)

    def answered(self, call: _Call, now_ms: float) -> None:
        """Count a window that is done, as Triton's statistics and ours do."""
        if self._settle(call):
            assert call.seat is not None
            triton = call.seat.triton
            triton.spent_s[call.variant] += (now_ms - call.began_ms) / 1e3
            triton.answered[call.variant] += 1
            self._site.ours[triton.number][call.variant] += 1

    def expire(self, i: int, now_ms: float) -> None:
        """End a request at its deadline, or as no Triton answers; an answer of the stage before is kept."""
        self.life.expire(i, now_ms)
        if not self._simulation.fates[i].over:
            return
        for call in list(self._open.get(i, ())):
            self._settle(call)
            if call.guard is not None:  # the Triton is silent, and is blamed
                call.guard.gave_up(now_ms, call.profiled_ms)

    def notice_lost_calls(self, now_ms: float) -> None:
        """The calls at Tritons that are gone fail at once, or are silent."""
        for call in [c for calls in self._open.values() for c in calls]:
            assert call.seat is not None
            if call.seat.triton.up:
                continue
            if self._simulation.silent:
                self._wary, call.guard = True, call.seat.begin(call.began_ms)
            else:
                self._refused(call, now_ms, [])

    def end(self) -> None:
        """The process is gone, and its calls with it."""
        self.up = False
        for call in [c for calls in self._open.values() for c in calls]:
            self._settle(call)

    def dismiss(self, seat: _Seat) -> None:
        """Ask a Triton no more until it is back."""
        if seat in self.seats:
            self.seats.remove(seat)
            del self.by_triton[seat.triton.number]

    def readmit(self, tritons: Sequence[_Triton]) -> None:
        """Ask all Tritons that are up; one that was away or had failures starts without history."""
        known = {n: s for n, s in self.by_triton.items() if s.breaker is None}
        self.seats = [known.get(t.number) or _Seat(t) for t in tritons if t.up]
        self.by_triton = {seat.triton.number: seat for seat in self.seats}
        self._wary = False

    def _ask(self, i: int, variant: str, work_ms: float, now_ms: float, tried: list[_Seat]) -> None:
        simulation = self._simulation
        seat = self._pick(now_ms, tried)
        if seat is None:
            self.expire(i, now_ms)
            return
        triton = seat.triton
        profiled_ms = simulation.profiled[variant][simulation.requests.sizes[i].bucket]
        call = _Call(
            i,
            triton.places[variant],
            work_ms,
            seat=seat,
            variant=variant,
            profiled_ms=profiled_ms,
            began_ms=now_ms,
        )
        seat.count(1, profiled_ms)
        triton.work_ms += profiled_ms
        self._open.setdefault(i, []).append(call)
        if triton.up:
            simulation.start(triton.machine, call, now_ms)
        elif simulation.silent:
            self._wary, call.guard = True, seat.begin(now_ms)
        else:
            self._refused(call, now_ms, tried)

    def _pick(self, now_ms: float, tried: list[_Seat]) -> _Seat | None:
        able = self.seats
        if tried or self._wary:
            able = [
                s
                for s in able
                if s not in tried and (s.breaker is None or s.breaker.allows(now_ms))
            ]
        if not able:
            return None
        turn, self._turn = self._turn, self._turn + 1
        rule, draw = self._choice.rule, self._simulation.draw
        if self._choice.view is View.ALL:
            chosen = choose(rule, [seat.triton for seat in able], turn, draw)
            return self.by_triton[chosen.number]
        return choose(rule, able, turn, draw)

    def _refused(self, call: _Call, now_ms: float, tried: list[_Seat]) -> None:
        """A Triton refuses the connection, or drops it: ask another one, as far as the budget allows."""
        seat, simulation = call.seat, self._simulation
        assert seat is not None
        self._wary = True
        if seat.begin(now_ms).failed(now_ms):
            self.dismiss(seat)
        self._settle(call)
        if simulation.fates[call.request].over:
            return
        tried = [*tried, seat]
        request = simulation.requests.trace[call.request]
        in_time = now_ms + call.profiled_ms < request.arrival_ms + request.slo.timeout_ms
        others = any(s not in tried for s in self.seats)
        if others and in_time and self._budget.take():
            self._ask(call.request, call.variant, call.work_ms, now_ms, tried)
        else:
            self.expire(call.request, now_ms)

    def _settle(self, call: _Call) -> bool:
        """Remove a call from the open ones; False: it was not open."""
        calls = self._open.get(call.request, [])
        if not any(c is call for c in calls):
            return False
        left = [c for c in calls if c is not call]
        if left:
            self._open[call.request] = left
        else:
            del self._open[call.request]
        assert call.seat is not None
        call.seat.count(-1, call.profiled_ms)
        triton = call.seat.triton
        triton.work_ms = max(0.0, triton.work_ms - call.profiled_ms)
        return True


def simulate(
    setup: Setup, trace: Trace, seed: int, learned: Prediction | None = None
) -> tuple[list[Fate], Prediction]:
    """Return the fate of every request of the trace, and what the first gateway has learned."""
    simulation = Simulation(setup, trace, seed, learned)
    fates = simulation.play()
    return fates, simulation.prediction
