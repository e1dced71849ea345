"""Predictions from profiles and from the work in flight."""

from __future__ import annotations

import pytest

from gateway.domain import Size
from gateway.latency import GATEWAY_MS, WINDOW_MS, LatencyModel
from tests.fakes import make_plan, make_variant

SMALL = make_variant("small", 10)
PLAN = make_plan(SMALL, 0.5)


def model(cores: int = 2) -> LatencyModel:
    return LatencyModel({"small": SMALL.profile}, cores, {"small": SMALL.instances})


@pytest.mark.parametrize(("quantile", "ms"), [(0.5, 10.0), (0.95, 15.0), (0.99, 20.0)])
def test_the_quantile_chooses_the_column_of_the_profile(quantile: float, ms: float) -> None:
    """Strict asks for the 99th, the others for the 95th."""
    assert model().idle_ms(PLAN, Size(64, 1), quantile) == pytest.approx(GATEWAY_MS + ms)


@pytest.mark.parametrize(
    ("n_windows", "cores", "rounds"), [(1, 2, 1), (2, 2, 1), (3, 2, 2), (4, 1, 4), (8, 16, 4)]
)
def test_windows_share_cores_and_instances(n_windows: int, cores: int, rounds: int) -> None:
    """A long context takes its turns; cores without an instance do not help."""
    expected = GATEWAY_MS + WINDOW_MS * (n_windows - 1) + 15.0 * rounds
    assert model(cores).idle_ms(PLAN, Size(64, n_windows), 0.95) == pytest.approx(expected)


def test_cost_counts_every_window() -> None:
    """Cost is compute, not time."""
    assert model().cost_ms(PLAN, Size(64, 3)) == pytest.approx(30.0)


def test_a_bucket_without_a_cell_takes_the_next_longer() -> None:
    """Longer is never faster."""
    assert SMALL.profile.cell(96).bucket == 128


def test_a_free_core_means_no_wait() -> None:
    """One request on two cores leaves one free."""
    latency = model(cores=2)
    with latency.in_flight("small", Size(64, 1)):
        assert latency.wait_ms(PLAN) == 0.0


def test_busy_cores_mean_a_wait_that_ends_with_the_work() -> None:
    """Work that failed is over, too."""
    latency = model(cores=2)
    with latency.in_flight("small", Size(64, 1)), latency.in_flight("small", Size(64, 3)):
        assert latency.wait_ms(PLAN) == pytest.approx(20.0)
    assert latency.wait_ms(PLAN) == 0.0


def test_failed_work_no_longer_counts() -> None:
    """Else every failure would slow the gateway for ever."""
    latency = model(cores=1)
    with pytest.raises(ZeroDivisionError), latency.in_flight("small", Size(64, 1)):
        raise ZeroDivisionError
    assert latency.wait_ms(PLAN) == 0.0


def test_an_instance_is_waited_for_though_cores_are_free() -> None:
    """A model server runs two instances of a variant, however many cores there are."""
    latency = model(cores=16)
    with latency.in_flight("small", Size(64, 4)):
        assert latency.wait_ms(PLAN) == pytest.approx(20.0)


def test_another_variant_waits_for_the_cores_only() -> None:
    """Variants share the host, not their instances."""
    large = make_variant("large", 20)
    profiles = {"small": SMALL.profile, "large": large.profile}
    latency = LatencyModel(profiles, 16, {"small": 2, "large": 2})
    with latency.in_flight("large", Size(64, 4)):
        assert latency.wait_ms(PLAN) == 0.0
