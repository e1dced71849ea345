"""The fluid model of the queues, against times worked out by hand."""

from __future__ import annotations

import pytest

from gateway.latency.queueing import Queue


def queue(cores: int = 2, slowness: float = 1.0) -> Queue:
    found = Queue(cores)
    found.slowness = slowness
    found.open("a", 2)
    found.open("b", 2)
    return found


def until_done(found: Queue, now_ms: float, variant: str = "a", windows: int = 1) -> float:
    slots = found.lines[variant].slots
    return found.backlog(now_ms).until_done_ms(variant, slots, windows, 10.0)


@pytest.mark.parametrize(
    ("in_flight", "cores", "ms"),
    [
        ([], 2, 10.0),
        ([("a", 10.0)], 2, 10.0),
        ([("b", 10.0)], 2, 10.0),
        ([("b", 10.0), ("b", 10.0)], 2, 15.0),  # three windows on two cores
        ([("b", 2.0), ("b", 2.0)], 2, 10.0),  # most of the time there is one window
        ([("a", 10.0), ("a", 10.0)], 2, 20.0),
        ([("a", 4.0), ("a", 10.0)], 2, 14.0),  # the shorter one leaves its place
        ([("b", 10.0)] * 4, 16, 10.0),
        ([("a", 10.0)], 1, 20.0),
    ],
)
def test_new_work_waits_for_its_line_and_shares_the_cores(
    in_flight: list[tuple[str, float]], cores: int, ms: float
) -> None:
    """First come, first served within a variant; equal shares between variants."""
    found = queue(cores)
    for variant, window_ms in in_flight:
        found.add(0.0, variant, 1, window_ms)
    assert until_done(found, 0.0) == pytest.approx(ms)


def test_time_that_has_passed_is_not_waited_for_again() -> None:
    """Half of the work is done half way."""
    found = queue()
    for _ in range(2):
        found.add(0.0, "a", 1, 10.0)
    assert until_done(found, 4.0) == pytest.approx(16.0)


def test_work_on_a_slow_host_progresses_as_slowly_as_was_seen() -> None:
    """Progress is in work of the profile, not in time."""
    found = queue(slowness=2.0)
    for _ in range(2):
        found.add(0.0, "a", 1, 10.0)
    assert until_done(found, 4.0) == pytest.approx(18.0)


def test_what_waits_begins_when_a_place_is_free() -> None:
    """Its progress counts from there."""
    found = queue()
    first, _, _ = (found.add(0.0, "a", 1, 10.0) for _ in range(3))
    found.remove(8.0, first)
    found.remove(8.0, found.lines["a"].running[0])
    found.add(8.0, "a", 1, 10.0)
    assert until_done(found, 12.0) == pytest.approx(16.0)


def test_work_that_is_cancelled_while_it_waits_leaves_no_trace() -> None:
    """A deadline often ends work that never began."""
    found = queue()
    jobs = [found.add(0.0, "a", 1, 10.0) for _ in range(6)]
    for job in reversed(jobs):
        found.remove(0.0, job)
    assert until_done(found, 0.0) == pytest.approx(10.0)
    assert (found.in_flight, found.lines["a"].lanes) == (0, 0)
    assert found.lines["a"].waiting_ms == 0.0


def test_a_long_context_takes_every_instance_it_can() -> None:
    """Its windows run at the same time, as the model server runs them; who comes shares the cores with them."""
    found = queue()
    found.add(0.0, "a", 4, 10.0)
    assert until_done(found, 0.0) == pytest.approx((40.0 + 10.0) / 2)
    assert until_done(queue(), 0.0, windows=4) == pytest.approx(20.0)


def test_a_long_context_leaves_room_for_a_short_one() -> None:
    """Its windows enter a few at a time: who comes waits for one of them, not for all."""
    short, long = Queue(2), Queue(2)
    for queue, windows in ((short, 2), (long, 200)):
        queue.open("a", 2)
        queue.add(0.0, "a", windows, 10.0)
    waits = [queue.backlog(0.0).wait_ms["a"] for queue in (short, long)]
    assert waits == [10.0, 10.0]
    long.add(0.0, "a", 200, 10.0)
    assert long.backlog(0.0).wait_ms["a"] <= 20.0
