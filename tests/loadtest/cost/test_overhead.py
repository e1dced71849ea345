"""The numbers of the overhead table, from latencies that are known."""

from __future__ import annotations

import pytest

from loadtest.cost.overhead import Sample


@pytest.mark.parametrize(("q", "expected_ms"), [(0.0, 1.0), (0.5, 51.0), (0.99, 100.0), (1, 101)])
def test_a_quantile_does_not_depend_on_the_order(q: float, expected_ms: float) -> None:
    """Latencies come in as requests end, not sorted."""
    sample = Sample([float(ms) for ms in reversed(range(1, 102))])
    assert sample.quantile(q) == pytest.approx(expected_ms)


def test_cpu_time_is_shared_by_the_requests() -> None:
    """The CPU time of a block is of all its requests together."""
    assert Sample([1.0, 2.0, 3.0, 4.0], cpu_ms=6.0).cpu_per_request_ms == 1.5


def test_no_request_costs_nothing() -> None:
    """A way that was never asked must not end the table with a division by zero."""
    assert Sample().cpu_per_request_ms == 0.0
