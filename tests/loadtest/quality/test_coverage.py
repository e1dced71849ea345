"""The virtual host that predictions are judged on, and the judgement."""

from __future__ import annotations

import random

import pytest

from gateway.domain import Size
from gateway.latency.model import LatencyModel
from loadtest.quality import coverage
from loadtest.quality.coverage import AnsweredRequest, VirtualHost
from tests.fakes import make_catalog, make_variant

SMALL, LARGE = make_variant("small", 5), make_variant("large", 20)
CATALOG = make_catalog([SMALL, LARGE], [0.5, 0.7])


def host(slowdown: float = 1.0) -> VirtualHost:
    return VirtualHost(2, lambda _: slowdown, random.Random(0), scatter=0.0, stalls=0.0)


def ends(asked: list[tuple[str, int]], slowdown: float = 1.0) -> dict[str, float]:
    """Return when the last request of each variant ended; all came at once."""
    machine, now_ms = host(slowdown), 0.0
    found: dict[str, float] = {}
    variants = {v.name: v for v in CATALOG.variants}
    profiles = {name: v.profile for name, v in variants.items()}
    model = LatencyModel(profiles, 2, {"small": 2, "large": 2})
    for name, windows in asked:
        work = model.begin(name, Size(64, windows), 0.0)
        request = coverage.SimulatedRequest(work, variants[name], (name, 64), 0.0, windows)
        machine.submit(request, variants[name].profile.cell(64).p50_ms)
    while machine.running:
        due_ms = machine.next_ms(now_ms)
        found |= {r.variant.name: due_ms for r in machine.serve(now_ms, due_ms)}
        now_ms = due_ms
    return found


@pytest.mark.parametrize(
    ("asked", "variant", "ms"),
    [
        ([("small", 1)], "small", 5.0),
        ([("small", 2)], "small", 5.0),
        ([("small", 3)], "small", 10.0),
        ([("large", 1), ("large", 1), ("large", 1)], "large", 40.0),
        ([("large", 1), ("large", 1), ("small", 1)], "small", 7.5),
    ],
)
def test_the_virtual_host_shares_its_cores(
    asked: list[tuple[str, int]], variant: str, ms: float
) -> None:
    """Lines are first come, first served; three running windows have two thirds of a core each."""
    assert ends(asked)[variant] == pytest.approx(ms)
    assert ends(asked, slowdown=2.0)[variant] == pytest.approx(2 * ms)


def test_predictions_hold_on_a_virtual_host() -> None:
    """At a load where requests wait for each other, on a host that slows down now and then."""
    row = coverage.steady(CATALOG, 0.8, 2500, seed=3)
    assert row.n >= 2000
    assert row.kept, row


def test_predictions_hold_after_a_step_in_load() -> None:
    """Ten seconds are not enough to learn a load by heart, only to see the queue."""
    row = coverage.after_steps(CATALOG, 3, seed=3)
    assert row.in_p95 >= 0.88, row


def outcome(
    took_ms: float, p95_ms: float | None = 10.0, p99_ms: float | None = 20.0
) -> AnsweredRequest:
    return AnsweredRequest(0.0, ("small", 64), took_ms, p95_ms, p99_ms)


def test_a_row_says_what_share_was_within_and_how_wide_it_was() -> None:
    """The numbers of the table, from latencies that are known."""
    seen = [outcome(5.0)] * 94 + [outcome(15.0)] * 5 + [outcome(25.0)]
    row = coverage.summarize("test", seen)
    assert [row.in_p95, row.in_p99] == pytest.approx([0.94, 0.99])
    assert row.sharpness == pytest.approx(10.0 / 15.0)
    assert row.kept


@pytest.mark.parametrize(
    "seen",
    [
        [outcome(5.0)] * 92 + [outcome(15.0)] * 8,
        [outcome(5.0)] * 96 + [outcome(25.0)] * 4,
        [outcome(5.0)] * 100,
        [outcome(9.0, 13.0)] * 97 + [outcome(14.0)] * 3,
        [outcome(5.0)] * 9400 + [AnsweredRequest(0.0, ("large", 64), 15.0, 10.0, 20.0)] * 600,
    ],
    ids=["p95", "p99", "too wide", "too wide at the tail", "one cell"],
)
def test_a_prediction_that_is_too_narrow_or_too_wide_fails(seen: list[AnsweredRequest]) -> None:
    """A guess that always holds is no prediction."""
    assert not coverage.summarize("test", seen).kept


def test_what_is_not_known_is_not_counted() -> None:
    """The real gateway tells one quantile of each request."""
    seen = [outcome(5.0, 10.0, None)] * 19 + [outcome(11.0, 10.0, None), outcome(12.0, None, 20.0)]
    row = coverage.summarize("test", seen)
    assert (row.in_p95, row.in_p99) == (0.95, 1.0)
