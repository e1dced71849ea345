"""Puts the question of which plan to whoever chooses: the policy, or in an experiment another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from gateway.domain import Candidate, Decision, Option, Size, Slo, SloPolicy
from gateway.serving_set import ServingSet


class Chooser(Protocol):
    """What `gateway.routing.policy` does, and whatever is to be measured in its place."""

    def quantile_for(self, policy: SloPolicy, /) -> float:
        """Return which latency quantile is to be predicted."""

    def choose(
        self, slo: Slo, options: Sequence[Option], spent_ms: float, failing: Collection[str], /
    ) -> Decision:
        """Return which option is taken, none with a `failing` variant, and why."""


class Routed(NamedTuple):
    """Every option for a request, the choice, and, where it was asked for, what was known of each."""

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
    """Return every option for a request of this size, and the one chosen, none of a `failing` variant.

    `n_behind`: requests that wait unread.
    """
    quantile = chooser.quantile_for(slo.policy)
    options = tuple(serving.options(size, quantile, now_ms, n_behind))
    return Routed(options, chooser.choose(slo, options, spent_ms, failing))
