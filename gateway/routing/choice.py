"""Predicts the options for a request and has the policy choose one; an experiment may use another policy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from gateway.domain import Candidate, Decision, Option, Size, Slo, SloPolicy
from gateway.serving_set import ServingSet


class Chooser(Protocol):
    """The interface of `gateway.routing.policy`, for policies that are measured in its place."""

    def quantile_for(self, policy: SloPolicy, /) -> float:
        """Return the latency quantile to predict."""

    def choose(
        self, slo: Slo, options: Sequence[Option], spent_ms: float, failing: Collection[str], /
    ) -> Decision:
        """Return the chosen option, without any `failing` variant, and the reason."""


class Routed(NamedTuple):
    """The options for a request, the decision and, with `explain`, the candidates in detail."""

    options: tuple[Option, ...]
    decision: Decision
    candidates: tuple[Candidate, ...] = ()


def route(
    chooser: Chooser,
    slo: Slo,
    serving: ServingSet,
    size: Size,
    spent_ms: float,
    now_ms: float,
    failing: Collection[str] = (),
    n_behind: int = 0,
) -> Routed:
    """Return the options for a request of this size and the decision; `failing` variants are not chosen.

    `n_behind`: requests that wait for admission.
    """
    quantile = chooser.quantile_for(slo.policy)
    options = tuple(serving.options(size, quantile, now_ms, n_behind))
    return Routed(options, chooser.choose(slo, options, spent_ms, failing))
