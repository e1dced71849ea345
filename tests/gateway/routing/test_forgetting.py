"""What was learned under load is forgotten with time: an idle gateway is as good as a fresh one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain import Size, Slo, SloPolicy
from gateway.routing.policy import choose, quantile_for
from gateway.serving_set import ServingSet
from tests.fakes import serving_set, small_and_large

TYPICAL = Size(128, 1)
REST_MS = 2_000.0


def slo(latency_ms: float, min_f1: float, policy: SloPolicy) -> Slo:
    timeout_ms = latency_ms * (1 if policy is SloPolicy.STRICT else 4)
    return Slo(latency_ms, min_f1, policy, timeout_ms, "test")


@dataclass(frozen=True)
class Burst:
    """Requests that come at once, how long each takes beside what is expected, and a pause."""

    n: int
    variant: str
    windows: int
    slowness: float
    answered: bool  # or given up
    pause_ms: float


bursts = st.lists(
    st.builds(
        Burst,
        st.integers(1, 64),
        st.sampled_from(["small", "large"]),
        st.sampled_from([1, 2, 40]),
        st.floats(0.3, 300.0),
        st.booleans(),
        st.floats(0.0, 3_000.0),
    ),
    max_size=8,
)


def play(serving: ServingSet, history: list[Burst], now_ms: float = 0.0) -> float:
    """Have the predictor see this history; return the time at which nothing is in flight any more."""
    latency = serving.latency
    for burst in history:
        size = Size(128, burst.windows)
        works = [latency.begin(burst.variant, size, now_ms) for _ in range(burst.n)]
        for work in works:
            end_ms = max(now_ms, work.began_ms + burst.slowness * work.expected_ms)
            (latency.finish if burst.answered else latency.give_up)(work, end_ms)
            now_ms = end_ms
        now_ms += burst.pause_ms
    return now_ms


def predicted(serving: ServingSet, now_ms: float) -> list[float]:
    quantiles = (0.5, 0.95, 0.99)
    return [o.predicted_ms for q in quantiles for o in serving.options(TYPICAL, q, now_ms)]


@settings(deadline=None)
@given(
    bursts, st.floats(1.0, 200.0), st.sampled_from([0.0, 0.45, 0.65]), st.sampled_from(SloPolicy)
)
def test_an_idle_gateway_never_refuses_what_it_would_accept_when_fresh(
    history: list[Burst], latency_ms: float, min_f1: float, policy: SloPolicy
) -> None:
    """Whoever is refused teaches nothing: only time can undo what a burst has taught."""
    asked = slo(latency_ms, min_f1, policy)
    fresh, used = serving_set(small_and_large()), serving_set(small_and_large())
    idle_ms = play(used, history) + REST_MS
    quantile = quantile_for(policy)
    first = choose(asked, fresh.options(TYPICAL, quantile, 0.0))
    again = choose(asked, used.options(TYPICAL, quantile, idle_ms))
    assert (again.option is not None) >= (first.option is not None)
    assert len(again.violations) <= len(first.violations) or first.option is None


@settings(deadline=None)
@given(bursts)
def test_nothing_in_flight_means_no_wait(history: list[Burst]) -> None:
    """At any time after a burst, not only when it is forgotten."""
    serving = serving_set(small_and_large())
    now_ms = play(serving, history)
    for quantile in (0.5, 0.95, 0.99):
        assert [o.wait_ms for o in serving.options(TYPICAL, quantile, now_ms)] == [0.0, 0.0]


@pytest.mark.parametrize(
    "burst",
    [
        Burst(64, "large", 1, 1.5, answered=True, pause_ms=0.0),
        Burst(16, "small", 1, 3.0, answered=True, pause_ms=0.0),
        Burst(3, "large", 40, 1.2, answered=True, pause_ms=0.0),
        Burst(8, "large", 1, 200.0, answered=False, pause_ms=0.0),
    ],
    ids=["a list of 64 items", "16 callers", "long papers", "a stall of the model server"],
)
def test_after_a_burst_predictions_come_back(burst: Burst) -> None:
    """Within 2 s of rest to within 20 % of what was predicted before, learned while calm."""
    serving = serving_set(small_and_large())
    unloaded = [Burst(1, v, 1, 0.8, answered=True, pause_ms=20.0) for v in ("small", "large") * 40]
    now_ms = play(serving, unloaded)
    before = predicted(serving, now_ms)
    now_ms = play(serving, [burst] * 3, now_ms)
    assert max(a / b for a, b in zip(predicted(serving, now_ms), before, strict=True)) > 1.3
    assert predicted(serving, now_ms + REST_MS) == pytest.approx(before, rel=0.2)
