"""The lab beside the real system: judged alike, and given nothing of what it is compared with."""

from __future__ import annotations

from dataclasses import astuple, replace
from math import isnan

import pytest

from loadtest.emulator import comparison
from loadtest.emulator.comparison import Calibration, Difference
from loadtest.emulator.served import Played, Spent
from loadtest.lab.contenders import OURS, make
from loadtest.lab.engine import End, simulate
from tests.loadtest import lab_world

ARRIVALS = [10.0 * i for i in range(200)]


def test_the_lab_agrees_with_itself() -> None:
    """What was served as the lab plays it differs in nothing."""
    world, trace = lab_world.world(), lab_world.trace(ARRIVALS)
    served = simulate(world, trace, make(OURS, world, {}, 1), 1)
    found = comparison.compare(world, trace, served, 1)
    assert {d.measure for d in found} == {*comparison.ATTAINMENTS, *comparison.QUANTILES}
    assert all(d.apart == 0.0 and d.within for d in found if d.served), found


def test_a_slower_system_than_the_lab_believes_is_seen() -> None:
    """Half as fast is no rounding error."""
    world, trace = lab_world.world(), lab_world.trace(ARRIVALS)
    served = simulate(world, trace, make(OURS, world, {}, 1), 1)
    for fate in served:
        fate.latency_ms *= 2
    found = {d.measure: d for d in comparison.compare(world, trace, served, 1)}
    assert found["p50_ms"].apart == pytest.approx(-0.5)
    assert not found["p50_ms"].within


@pytest.mark.parametrize(
    ("measure", "served", "emulated_", "within"),
    [
        ("joint", 0.90, 0.93, True),
        ("joint", 0.90, 0.86, False),
        ("p99_ms", 100.0, 114.0, True),
        ("p99_ms", 100.0, 80.0, False),
    ],
)
def test_the_aim_is_three_points_and_fifteen_percent(
    measure: str, served: float, emulated_: float, within: bool
) -> None:
    """In either direction: an emulator that is kinder than the host is no better than a harsher one."""
    found = Difference(measure, served, emulated_ - 1e-9)
    assert found.within is within
    assert comparison.table_row(found)[-1] == ("yes" if within else "no")


def test_nothing_answered_is_not_within_the_aim() -> None:
    """No latency is not the same latency."""
    found = Difference("p50_ms", float("nan"), 10.0)
    assert isnan(found.apart)
    assert not found.within
    assert comparison.plain(found)["served"] is None


def test_the_same_costs_come_out_that_went_in() -> None:
    """Answers and refusals are separated by runs in which their shares differ."""
    world, trace = lab_world.world(n_windows=2), lab_world.trace(ARRIVALS)
    runs = []
    for refused, seconds in ((0, 4.0), (50, 1.0), (150, 2.0)):
        fates = simulate(world, trace, make(OURS, world, {}, 1), 1)
        for fate in fates[:refused]:
            fate.end = End.REFUSED
        models_ms, windows = comparison.model_ms(world, trace, fates)
        answered = len(fates) - refused
        assert (models_ms, windows) == (answered * 1.0, answered * 2)
        gateway_ms = 2.0 * answered + 0.5 * refused + 20.0 * seconds
        spent = Spent(gateway_ms, 0.4 * len(fates), models_ms + 0.75 * windows)
        runs.append(Calibration(Played(fates, spent), seconds, models_ms, windows))
    found = comparison.costs(runs)
    assert astuple(found) == pytest.approx((2.0, 0.5, 20.0, 0.4, 0.75))
    measured = comparison.with_costs(world, found, rate=100.0)
    assert (measured.gateway_cpu_ms, measured.refusal_cpu_ms) == pytest.approx((2.2, 0.5))
    assert [ms for said in measured.recording.said.values() for ms in said.cpu_ms] == pytest.approx(
        [1.0 + 2 * 0.75] * 40
    )


def test_no_cost_is_less_than_nothing() -> None:
    """Triton's clock is coarse: a short run may seem to take less than its models."""
    world, trace = lab_world.world(), lab_world.trace(ARRIVALS)
    fates = simulate(world, trace, make(OURS, world, {}, 1), 1)
    spent = Spent(1.0, 1.0, 0.5)
    found = comparison.costs([Calibration(Played(fates, spent), 2.0, 100.0, len(trace))])
    assert found.window == 0.0


def test_a_client_on_the_same_host_takes_its_share() -> None:
    """Who sends for 5 ms before each request makes each of them later by at least that."""
    world, trace = lab_world.world(), lab_world.trace(ARRIVALS)
    beside = replace(world, client_cpu_ms=5.0)
    alone, shared = (simulate(w, trace, make(OURS, w, {}, 1), 1) for w in (world, beside))
    pairs = [p for p in zip(alone, shared, strict=True) if p[0].plan == p[1].plan == "small"]
    assert pairs
    assert all(b.latency_ms >= a.latency_ms + 4.9 for a, b in pairs)
