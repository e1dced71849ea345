"""Do predicted latencies hold? A virtual host with queues, asked of gateway.latency.model as the gateway asks.

A discrete-event simulation: each variant is first come, first served by its instances; running
windows share the cores. Service times scatter about the profile, with stalls; the host as a whole
speeds up and slows down. Nothing sleeps and nothing is timed.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import exp, inf, nan
from statistics import fmean

from gateway.catalog.schema import Variant
from gateway.catalog.store import Catalog
from gateway.domain import Size
from gateway.latency.model import LatencyModel, Work

BUCKETS = {128: 0.25, 192: 0.55, 256: 0.12, 384: 0.08}  # lengths of SQuAD questions, roughly
WINDOWS = {1: 0.94, 2: 0.03, 4: 0.03}
SCATTER = 0.06  # log standard deviation of a service time
STALLS, STALLED_MS = 0.004, 30.0  # share of windows that lose the core, and for how long, mean
SPELL_MS = 20_000.0
SLOWDOWNS = (1.0, 1.0, 1.15, 1.33)  # of the whole host against its profile, one a spell
GATEWAY_MS = 1.2  # what this host's gateway takes; the model expects another
ENOUGH = 500  # requests of a cell about which something is said
STEP_MS = 10_000.0
DONE_MS = 1e-6  # what is left of a window that has ended: more than the rounding of a long time

Load = Callable[[float], float]  # time, ms -> share of capacity


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    work: Work
    variant: Variant
    cell: tuple[str, int]
    at_ms: float
    left: int  # windows


@dataclass(slots=True, eq=False)
class _Run:
    request: SimulatedRequest
    left_ms: float


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """An answered request, with its latency and the predicted quantiles."""

    at_ms: float
    cell: tuple[str, int]
    took_ms: float
    p95_ms: float | None  # None, here and below: what was predicted is not known
    p99_ms: float | None


@dataclass
class VirtualHost:
    """Cores that run windows; `slowdown` of a time, 1: as profiled."""

    cores: int
    slowdown: Callable[[float], float]
    rng: random.Random
    scatter: float = SCATTER
    stalls: float = STALLS
    waiting: dict[str, list[tuple[SimulatedRequest, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    running: list[_Run] = field(default_factory=list)

    def submit(self, request: SimulatedRequest, window_ms: float) -> None:
        for _ in range(request.left):
            ms = window_ms * exp(self.rng.gauss(0.0, self.scatter))
            if self.rng.random() < self.stalls:
                ms += self.rng.expovariate(1 / STALLED_MS)
            self.waiting[request.variant.name].append((request, ms))
        self._start(request.variant)

    def rate(self, now_ms: float) -> float:
        """Return the work that each running window gets done in a ms."""
        return min(1.0, self.cores / max(1, len(self.running))) / self.slowdown(now_ms)

    def next_ms(self, now_ms: float) -> float:
        if not self.running:
            return inf
        return now_ms + min(run.left_ms for run in self.running) / self.rate(now_ms)

    def serve(self, from_ms: float, to_ms: float) -> list[SimulatedRequest]:
        """Run until `to_ms`; return the requests whose last window ended."""
        done_ms = (to_ms - from_ms) * self.rate(from_ms)
        for run in self.running:
            run.left_ms -= done_ms
        ended = [run for run in self.running if run.left_ms <= DONE_MS]
        self.running = [run for run in self.running if run.left_ms > DONE_MS]
        for run in ended:
            run.request.left -= 1
            self._start(run.request.variant)
        return [run.request for run in ended if run.request.left == 0]

    def _start(self, variant: Variant) -> None:
        slots = max(1, min(self.cores, variant.instances))
        queue = self.waiting[variant.name]
        busy = sum(run.request.variant is variant for run in self.running)
        while queue and busy < slots:
            self.running.append(_Run(*queue.pop(0)))
            busy += 1


def simulate(
    catalog: Catalog, load: Load, seconds: float, seed: int, drifting: bool = True, cores: int = 2
) -> list[AnsweredRequest]:
    """Return the requests that arrived in this time, in the order of their answers."""
    rng = random.Random(seed)
    variants = list(catalog.variants)
    model = LatencyModel(
        {v.name: v.profile for v in variants}, cores, {v.name: v.instances for v in variants}
    )
    host = VirtualHost(cores, _drift(rng, seconds) if drifting else lambda _: 1.0, rng)
    mean_ms = _mean_work_ms(variants) * (fmean(SLOWDOWNS) if drifting else 1.0)
    outcomes: list[AnsweredRequest] = []
    now_ms = 0.0
    leaving: list[tuple[float, int, SimulatedRequest]] = []
    arrival_ms = _next_arrival(0.0, load, mean_ms, cores, rng)
    end_ms = seconds * 1e3
    while arrival_ms < end_ms or host.running or leaving:
        due_ms = min(arrival_ms if arrival_ms < end_ms else inf, host.next_ms(now_ms))
        due_ms = min(due_ms, leaving[0][0] if leaving else inf)
        for request in host.serve(now_ms, due_ms):
            model.leave(request.work, due_ms)
            late_ms = rng.expovariate(1 / GATEWAY_MS)
            heapq.heappush(leaving, (due_ms + late_ms, id(request), request))
        now_ms = due_ms
        while leaving and leaving[0][0] <= now_ms:
            outcomes.append(_finish(model, heapq.heappop(leaving)[2], now_ms))
        if arrival_ms <= now_ms:
            variant = rng.choice(variants)
            host.submit(*_arrive(model, variant, now_ms, rng))
            arrival_ms = _next_arrival(now_ms, load, mean_ms, cores, rng)
    return outcomes


def _arrive(
    model: LatencyModel, variant: Variant, now_ms: float, rng: random.Random
) -> tuple[SimulatedRequest, float]:
    n_windows = _draw(WINDOWS, rng)
    bucket = 384 if n_windows > 1 else _draw(BUCKETS, rng)
    work = model.begin(variant.name, Size(bucket, n_windows), now_ms)
    request = SimulatedRequest(work, variant, (variant.name, bucket), now_ms, n_windows)
    return request, variant.profile.cell(bucket).p50_ms


def _finish(model: LatencyModel, request: SimulatedRequest, now_ms: float) -> AnsweredRequest:
    work = request.work
    model.finish(work, now_ms)
    took_ms = now_ms - request.at_ms
    return AnsweredRequest(request.at_ms, request.cell, took_ms, work.p95_ms, work.p99_ms)


def _draw(shares: dict[int, float], rng: random.Random) -> int:
    return rng.choices(list(shares), list(shares.values()))[0]


def _mean_work_ms(variants: Sequence[Variant]) -> float:
    """Return the mean work of a request, ms of one core."""
    one = {b: sum(v.profile.cell(b).p50_ms for v in variants) / len(variants) for b in BUCKETS}
    single_ms = sum(share * one[b] for b, share in BUCKETS.items())
    return sum(share * (single_ms if n == 1 else n * one[384]) for n, share in WINDOWS.items())


def _next_arrival(
    now_ms: float, load: Load, mean_ms: float, cores: int, rng: random.Random
) -> float:
    """Return the next time of a Poisson process whose rate is that of now."""
    share = load(now_ms)
    return now_ms + rng.expovariate(share * cores / mean_ms)


def _drift(rng: random.Random, seconds: float) -> Callable[[float], float]:
    """Return a host that is up to a third slower than its profile, or as fast, a spell long."""
    spells = [rng.choice(SLOWDOWNS) for _ in range(int(seconds * 1e3 / SPELL_MS) + 100)]
    return lambda at_ms: spells[min(int(at_ms / SPELL_MS), len(spells) - 1)]


@dataclass(frozen=True, slots=True)
class Row:
    """How predictions held under one load.

    `kept`: at least 93 % within P95 (88 % after steps) and 98 % within P99, 90 % in every cell with
    enough requests, the mean P95 predicted no more than 1.3 times the P95 seen, nor idle (99 %).
    """

    load: str
    n: int
    in_p95: float
    in_p99: float
    worst_cell: float  # share within P95, of the cells with enough requests
    sharpness: float  # mean predicted P95 / observed P95
    worst_sharpness: float  # the same, of the cells with enough requests
    least: float = 0.93  # wanted within P95

    @property
    def kept(self) -> bool:
        shares = self.least <= self.in_p95 <= 0.99 and self.in_p99 >= 0.98
        return shares and not self.worst_cell < 0.9 and self.sharpness <= 1.3


def summarize(load: str, outcomes: Sequence[AnsweredRequest]) -> Row:
    """Return the row of a load; NaN where nothing is known of it."""
    cells: dict[tuple[str, int], list[AnsweredRequest]] = defaultdict(list)
    for outcome in outcomes:
        cells[outcome.cell].append(outcome)
    enough = [found for found in cells.values() if len(found) >= ENOUGH]
    return Row(
        load,
        len(outcomes),
        _within([(o.took_ms, o.p95_ms) for o in outcomes]),
        _within([(o.took_ms, o.p99_ms) for o in outcomes]),
        min((_within([(o.took_ms, o.p95_ms) for o in c]) for c in enough), default=nan),
        _sharpness(outcomes),
        max((_sharpness(found) for found in enough), default=nan),
    )


def _within(seen: Sequence[tuple[float, float | None]]) -> float:
    known = [took_ms <= predicted_ms for took_ms, predicted_ms in seen if predicted_ms is not None]
    return sum(known) / len(known) if known else nan


def _sharpness(outcomes: Sequence[AnsweredRequest]) -> float:
    took = sorted(o.took_ms for o in outcomes)
    predicted = [o.p95_ms for o in outcomes if o.p95_ms is not None]
    if not predicted:
        return nan
    return sum(predicted) / len(predicted) / took[int(0.95 * len(took))]


def steady(catalog: Catalog, share: float, n: int, seed: int) -> Row:
    """Return how predictions held at one share of capacity; 0: no request meets another."""
    alone = share == 0.0
    rate = 0.01 if alone else share
    seconds = n * _mean_work_ms(catalog.variants) / 2 / rate / 1e3
    return summarize(f"{share:g}", simulate(catalog, lambda _: rate, seconds, seed))


def after_steps(catalog: Catalog, steps: int, seed: int) -> Row:
    """Return how predictions held in the 10 s after each step, up or down, in load."""
    rng = random.Random(seed)
    loads = [0.3]
    while len(loads) <= steps:
        loads.append(rng.choice([s for s in (0.1, 0.3, 0.5, 0.8, 0.95, 1.1) if s != loads[-1]]))
    long_ms = 3 * STEP_MS

    def load(at_ms: float) -> float:
        return loads[min(int(at_ms / long_ms), steps)]

    outcomes = simulate(catalog, load, (steps + 1) * long_ms / 1e3, seed)
    after = [o for o in outcomes if o.at_ms >= long_ms and o.at_ms % long_ms < STEP_MS]
    return replace(summarize(f"10 s after {steps} steps", after), least=0.88)
