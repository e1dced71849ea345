"""Routes a request: predicts every plan's latency for it and has the policy choose one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from gateway.domain import Candidate, Decision, Option, Reason, Size, Slo, SloPolicy
from gateway.routing import explain
from gateway.serving_set import ServingSet


class Chooser(Protocol):
    """A policy: the interface of `gateway.routing.policy`, which serves.

    Experiments pass another one to AnswerService, to measure it in the same gateway.
    """

    def quantile_for(self, policy: SloPolicy, /) -> float:
        """Return the latency quantile to predict."""

    def choose(
        self, slo: Slo, options: Sequence[Option], spent_ms: float, failing: Collection[str], /
    ) -> Decision:
        """Return the chosen option, without any `failing` variant, and the reason."""

    def choose_early(
        self,
        slo: Slo,
        cheapest_first: Iterable[Option],
        predict: Callable[[Option], Option],
        spent_ms: float,
        failing: Collection[str],
        /,
    ) -> Decision | None:
        """Return the same decision from fewer predictions; None: it needs all of them."""


class Routed(NamedTuple):
    """The decision about a request of this size and, where asked for, the candidates."""

    size: Size
    options: tuple[Option, ...]  # empty: the decision did not need to predict all
    decision: Decision
    candidates: tuple[Candidate, ...] = ()


class Router:
    """Routes the requests of one service."""

    def __init__(
        self,
        chooser: Chooser,
        clock: Callable[[], float],
        head_starts_ms: Callable[[float], Sequence[float]],
    ) -> None:
        """`head_starts_ms`: as that of AdmissionControl."""
        self._chooser = chooser
        self._clock = clock
        self._head_starts_ms = head_starts_ms

    def route(
        self,
        slo: Slo,
        serving: ServingSet,
        size: Size,
        spent_ms: float,
        failed: Collection[str] = (),
        *,
        detailed: bool = False,
    ) -> Routed:
        """Return the decision about a request, `spent_ms` after its arrival.

        `failed`: variants that this request does not ask again. `detailed`: with the candidates.
        """
        now_ms = self._clock()
        failing = serving.breakers.failing(now_ms).union(failed)
        quantile = self._chooser.quantile_for(slo.policy)
        counted = slo.policy is SloPolicy.PREFER_LATENCY and slo.variant is None
        head_starts_ms: Sequence[float] = ()
        if counted or detailed:
            head_starts_ms = self._head_starts_ms(slo.latency_ms - spent_ms)
        if not detailed:
            predict = serving.predictor(size, quantile, now_ms, head_starts_ms)
            early = self._chooser.choose_early(
                slo, serving.cheapest_first(size), predict, spent_ms, failing
            )
            if early is not None:
                return Routed(size, (), early)
        options = tuple(serving.options(size, quantile, now_ms, head_starts_ms))
        decision = self._chooser.choose(slo, options, spent_ms, failing)
        if not detailed:
            return Routed(size, options, decision)
        candidates = explain.list_candidates(serving, slo, size, options, spent_ms, now_ms, failing)
        return Routed(size, options, decision, candidates)

    def fit(
        self, slo: Slo, serving: ServingSet, size: Size, spent_ms: float, *, detailed: bool = False
    ) -> Routed:
        """Route a request; drop half of its windows at a time until a plan can answer by the deadline."""
        routed = self.route(slo, serving, size, spent_ms, detailed=detailed)
        while routed.decision.reason is Reason.SHED and size.n_windows > 1:
            size = replace(size, n_windows=(size.n_windows + 1) // 2)
            routed = self.route(slo, serving, size, spent_ms, detailed=detailed)
        return routed
