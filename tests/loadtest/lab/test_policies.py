"""The rivals do what their papers say of them, and nobody beats the bound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.lab import contenders, mixes, oracle, rivals, traces
from loadtest.lab.contenders import UnknownPolicy
from loadtest.lab.engine import simulate
from loadtest.lab.measures import measure
from loadtest.lab.tables import mean_of
from tests.loadtest.lab_world import doubtful, ours, slo, trace, world

F1 = {"small": 0.5, "middle": 0.6, "large": 0.7}
WORK_MS = {"small": 5.0, "middle": 12.0, "large": 20.0}


@pytest.mark.parametrize(
    ("room_ms", "shares"),
    [
        (25.0, {"large": 1.0}),
        (16.0, {"large": 0.5, "middle": 0.5}),
        (2.0, {"small": 1.0}),
    ],
)
def test_proteus_mixes_what_the_room_bears(room_ms: float, shares: dict[str, float]) -> None:
    """The optimum of its programme, with one constraint, mixes two at most."""
    assert rivals.best_mix(F1, WORK_MS, room_ms) == pytest.approx(shares)


def test_infaas_takes_the_cheapest_that_keeps_the_floor() -> None:
    """Idle, both are in time."""
    for floor, plan in ((0.4, "small"), (0.6, "large")):
        (fate,) = simulate(world(), trace([0.0], slo(100.0, floor)), rivals.InfaasStyle(), 1)
        assert fate.plan == plan


def test_slack_buckets_fall_back_as_the_queue_grows() -> None:
    """Slack is what the wait leaves of the target."""
    fates = simulate(world(), trace([0.0] * 30, slo(90.0)), rivals.SlackBucket(), 1)
    assert fates[0].plan == "large"
    assert "small" in [f.plan for f in fates]


def test_clippers_batch_shrinks_when_late_and_grows_when_not() -> None:
    """Additive up, multiplicative down."""
    clipper, (requests,) = rivals.ClipperStyle("small"), trace([0.0])
    option = world().prediction().options(world().recording.sizes[0], 0.95, 0.0)[0]
    for _ in range(20):
        clipper.finished(requests, option, 10.0, 0.0)
    grown = clipper.batch("small")
    for _ in range(20):
        clipper.finished(requests, option, 1_000.0, 0.0)
    assert (grown > 1, clipper.batch("small")) == (True, 1)


def test_everyone_can_take_part_and_nobody_beats_the_bound() -> None:
    """The oracle's programme gives more than the simulator has; regret to it cannot be negative."""
    there = world()
    mix = mixes.mixed(there.catalog)
    for load in (0.6, 1.5, 4.0):
        rate = load * there.capacity_per_s
        requests = traces.make("gamma2", rate, 12.0, mix, there.recording, seed=2)
        most = oracle.bound(there, requests, seed=2).joint
        for name in contenders.names(there):
            policy = contenders.make(name, there, {}, seed=2)
            found = measure(there, requests, simulate(there, requests, policy, seed=2))["all"]
            assert found["joint"] <= most + 1e-6, (name, load)


def test_the_bound_holds_for_cascades_and_the_gateways_one_thread() -> None:
    """It knows who will be doubted, and still cannot read faster than one thread does."""
    there = doubtful()
    requests = traces.make(
        "poisson", 3 * there.capacity_per_s, 8.0, mixes.mixed(there.catalog), there.recording, 5
    )
    most = oracle.bound(there, requests, seed=5).joint
    found = measure(there, requests, simulate(there, requests, ours(there), seed=5))["all"]
    assert found["joint"] <= most + 1e-6
    slow = replace(there, gateway_cpu_ms=8.0)
    least = oracle.bound(slow, trace([0.0] * 100, slo(200.0, 0.4)), seed=1).joint
    assert least <= 200 / 8 / 100 + 1e-6


def test_the_bound_knows_when_cores_are_not_enough() -> None:
    """A hundred requests at once, 6 ms each: two cores do 400 ms of work in 200, on the quickest."""
    there = world()
    most = oracle.bound(there, trace([0.0] * 100, slo(200.0, 0.4)), seed=1)
    assert 0.6 < most.joint < 0.8
    assert most.joint * 100 * most.compute_ms == pytest.approx(400.0, rel=1e-3)


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    """A typing error in `--policies` must not run for minutes first."""
    with pytest.raises(UnknownPolicy, match="bertier"):
        contenders.make("best", world(), {}, 0)


def test_an_interval_needs_two_runs() -> None:
    """Student's interval; one seed has none, and what is not there is left out."""
    mean = mean_of([1.0, 3.0, float("nan")])
    assert mean.value == 2.0
    assert mean.half == pytest.approx(12.706, abs=1e-3)
    assert mean_of([1.0]).half != mean_of([1.0]).half
