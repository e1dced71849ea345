"""Other ways to choose, under one interface, each given the same predictions as ours.

`-style`: the paper leaves room, and what was filled in is said. None is a copy of anyone's code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor

import numpy as np

from gateway.domain import Option, Slo
from gateway.routing import policy
from gateway.routing.admission_queue import AdmissionQueue
from loadtest.lab.traces import TraceRequest

RIVALS_QUANTILE = 0.95
PERIOD_MS = 1_000.0  # Proteus plans anew; seldom in its paper, where a plan loads models: here all are loaded
Options = Sequence[Option]


class Plain(ABC):
    """What most policies share: the 95th percentile, direct plans, no refusal unread, no batches."""

    name: str = ""
    cascades: bool = False
    admission: AdmissionQueue | None = None

    def quantile(self, slo: Slo) -> float:
        return RIVALS_QUANTILE

    def decide_early(
        self,
        request: TraceRequest,
        cheapest_first: Iterable[Option],
        predict: Callable[[Option], Option],
        spent_ms: float,
    ) -> Option | None:
        return None

    @abstractmethod
    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        """Return the option to answer with; None: refuse."""

    def finished(
        self, request: TraceRequest, option: Option, latency_ms: float, now_ms: float
    ) -> None:
        return

    def batch(self, variant: str) -> int:
        return 1


class Bertier(Plain):
    """The gateway's own policy and admission: the very code that serves."""

    name = "bertier"
    cascades = True

    def __init__(self) -> None:
        self.admission = AdmissionQueue()

    def quantile(self, slo: Slo) -> float:
        return policy.quantile_for(slo.policy)

    def decide_early(
        self,
        request: TraceRequest,
        cheapest_first: Iterable[Option],
        predict: Callable[[Option], Option],
        spent_ms: float,
    ) -> Option | None:
        early = policy.choose_early(request.slo, cheapest_first, predict, spent_ms)
        return None if early is None else early.option

    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        return policy.choose(request.slo, options, spent_ms).option


class Fixed(Plain):
    """One plan for everything."""

    def __init__(self, plan: str) -> None:
        self.name = f"fixed {plan}"
        self._plan = plan

    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        return next(o for o in options if o.plan.name == self._plan)


class Random(Plain):
    """Any plan, each as likely."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 4])

    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        return options[int(self._rng.random() * len(options))]


class InfaasStyle(Plain):
    """The cheapest that keeps floor and target; if none is in time, the soonest that keeps the floor.

    Never refuses. `headroom`: share of the target that the prediction may fill.
    Source: Romero et al. 2021, INFaaS, section 4 (its variants on one kind of hardware, no autoscaling).
    """

    name = "infaas-style"

    def __init__(self, headroom: float = 1.0) -> None:
        self._headroom = headroom

    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        accurate = [o for o in options if o.certified_f1 >= request.slo.min_f1] or options
        left_ms = self._headroom * request.slo.latency_ms - spent_ms
        in_time = [o for o in accurate if o.predicted_ms <= left_ms]
        return policy.cheapest(in_time) if in_time else min(accurate, key=_predicted)


class ClipperStyle(Plain):
    """One model, with batches that grow by one while answers are in time and shrink by a tenth when not.

    Source: Crankshaw et al. 2017, Clipper, section 4.3 (AIMD). On one host without gains from
    batches; the answers of a batch are taken to be those of the window alone, which favours it.
    """

    name = "clipper-style"

    def __init__(self, plan: str, decrease: float = 0.9) -> None:
        self._plan, self._decrease = plan, decrease
        self._batch = 1.0

    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        return next(o for o in options if o.plan.name == self._plan)

    def finished(
        self, request: TraceRequest, option: Option, latency_ms: float, now_ms: float
    ) -> None:
        if latency_ms <= request.slo.latency_ms:
            self._batch = min(8.0, self._batch + 1 / self._batch)
        else:
            self._batch = max(1.0, self._batch * self._decrease)

    def batch(self, variant: str) -> int:
        return floor(self._batch)


class ProteusStyle(Plain):
    """Every second the mix with the best mean accuracy that the cores can bear at the demand seen.

    The optimum of that linear programme mixes at most two plans; requests are dealt out by their
    shares. Deaf to a request's floor; drops what is predicted to end after its deadline.
    `fill`: share of the cores to plan for; `overhead_ms`: of cores, a request, whatever the plan.
    Source: Ahmad et al. 2024, Proteus, sections 4 and 5.
    """

    name = "proteus-style"

    def __init__(self, cores: int, fill: float = 0.8, overhead_ms: float = 0.0) -> None:
        self._cores, self._fill, self._overhead_ms = cores, fill, overhead_ms
        self._since_ms, self._seen = 0.0, 0
        self._work_ms: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self._credit: dict[str, float] = {}

    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        self._note(options)
        if not self._shares:
            self._since_ms = now_ms
            self._shares = {max(options, key=_f1).plan.name: 1.0}
        if now_ms - self._since_ms >= PERIOD_MS:
            self._plan(options, now_ms)
        chosen = self._deal(options)
        return chosen if spent_ms + chosen.predicted_ms <= request.slo.timeout_ms else None

    def _note(self, options: Options) -> None:
        self._seen += 1
        for o in options:
            self._work_ms[o.plan.name] = self._work_ms.get(o.plan.name, 0.0) + o.cost_ms

    def _plan(self, options: Options, now_ms: float) -> None:
        span_ms = now_ms - self._since_ms
        room_ms = self._fill * self._cores * span_ms / self._seen - self._overhead_ms  # a request
        means = {name: work / self._seen for name, work in self._work_ms.items()}
        self._shares = best_mix({o.plan.name: o.certified_f1 for o in options}, means, room_ms)
        self._since_ms, self._seen = now_ms, 0
        self._work_ms, self._credit = {}, {}

    def _deal(self, options: Options) -> Option:
        for name, share in self._shares.items():
            self._credit[name] = self._credit.get(name, 0.0) + share
        name = max(self._shares, key=lambda n: self._credit[n])
        self._credit[name] -= 1.0
        return next(o for o in options if o.plan.name == name)


def best_mix(
    f1: Mapping[str, float], work_ms: Mapping[str, float], room_ms: float
) -> dict[str, float]:
    """Return the shares with the largest mean F1 whose mean work fits; all to the cheapest if none."""
    fits = [n for n in f1 if work_ms[n] <= room_ms]
    if not fits:
        return {min(work_ms, key=lambda n: work_ms[n]): 1.0}
    best, value = {max(fits, key=lambda n: f1[n]): 1.0}, max(f1[n] for n in fits)
    for below in fits:
        for above in f1:
            if work_ms[above] <= room_ms or f1[above] <= f1[below]:
                continue
            share = (room_ms - work_ms[below]) / (work_ms[above] - work_ms[below])
            mean = share * f1[above] + (1 - share) * f1[below]
            if mean > value:
                best, value = {above: share, below: 1 - share}, mean
    return best


class SlackBucket(Plain):
    """The most accurate whose idle time falls in the bucket of the slack that is left, or a lower one.

    Slack: a share of the target less what is spent and the wait predicted for that plan. Deaf to the floor; never refuses.
    Source: Khare et al. 2025, SuperServe, SlackFit (buckets of latency, the choice nearest the slack).
    """

    name = "slack-bucket"

    def __init__(self, headroom: float = 1.0, buckets: int = 8) -> None:
        self._headroom, self._buckets = headroom, buckets

    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        target_ms = self._headroom * request.slo.latency_ms - spent_ms
        low, high = min(o.idle_ms for o in options), max(o.idle_ms for o in options)
        width = (high - low) / self._buckets or 1.0

        def bucket(ms: float) -> int:
            return floor((ms - low) / width)

        def fits_in(o: Option) -> bool:
            slack_ms = target_ms - (o.predicted_ms - o.idle_ms)
            return bucket(o.idle_ms) <= bucket(slack_ms)

        fits = [o for o in options if fits_in(o)]
        return max(fits, key=_f1) if fits else min(options, key=_predicted)


class MultiFactor(Plain):
    """The best weighted sum of accuracy, latency over target and cost, each scaled to 0..1.

    Source: vLLM semantic router, multi-factor selection (weights are the operator's; ours are tuned).
    """

    name = "multi-factor"

    def __init__(self, accuracy: float = 1.0, latency: float = 1.0, cost: float = 0.5) -> None:
        self._accuracy, self._latency, self._cost = accuracy, latency, cost

    def decide(
        self, request: TraceRequest, options: Options, spent_ms: float, now_ms: float
    ) -> Option | None:
        low, high = min(map(_f1, options)), max(map(_f1, options))
        dear = max(o.cost_ms for o in options)

        def score(o: Option) -> float:
            accuracy = (o.certified_f1 - low) / ((high - low) or 1.0)
            late = min(1.0, (spent_ms + o.predicted_ms) / request.slo.latency_ms)
            return self._accuracy * accuracy - self._latency * late - self._cost * o.cost_ms / dear

        return max(options, key=score)


def _f1(option: Option) -> float:
    return option.certified_f1


def _predicted(option: Option) -> float:
    return option.predicted_ms
