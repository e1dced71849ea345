"""The fluid model of the queues, against times worked out by hand."""

from __future__ import annotations

import pytest

from gateway.latency.queueing import Backlog, Queue


def queue(cores: int = 2) -> Queue:
    found = Queue(cores)
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
    """Be it a part of a millisecond."""
    found = queue()
    for _ in range(2):
        found.add(0.0, "a", 1, 10.0)
    assert until_done(found, 0.5) == pytest.approx(19.5)
    assert until_done(found, 4.0) == pytest.approx(16.0)


def test_work_on_a_slow_host_progresses_as_slowly_as_was_seen() -> None:
    """Progress is in work of the profile, not in time."""
    found = queue()
    found.slowness = 2.0
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
    assert until_done(found, 13.0) == pytest.approx(15.0)


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
    assert long.backlog(0.0).wait_ms["a"] == (20.0 + 20.0 - 5.0) / 2


@pytest.mark.parametrize(
    ("slots", "jobs", "wait_ms"),
    [
        (
            4,
            [(3, 10.0)] * 3,
            11.25,
        ),  # 20 ms of each are before, less one and a half windows, on four
        (4, [(3, 10.0), (3, 100.0)], 10.0),  # the window that ends first is waited for
        (3, [(1, 10.0), (2, 6.0)], 6.0),
    ],
)
def test_who_comes_waits_for_the_first_place(
    slots: int, jobs: list[tuple[int, float]], wait_ms: float
) -> None:
    """Among several contexts that run, whatever the order in which they came."""
    found = Queue(slots)
    found.open("a", slots)
    for windows, window_ms in jobs:
        found.add(0.0, "a", windows, window_ms)
    assert found.backlog(0.0).wait_ms == {"a": wait_ms}


def test_who_leaves_the_line_takes_its_work_along() -> None:
    """Of those that wait the first moves up; the work of the others is still waited for."""
    found = queue()
    first, *_ = (found.add(0.0, "a", windows, 10.0) for windows in (1, 1, 1, 5))
    found.remove(0.0, first)
    line = found.lines["a"]
    assert (line.lanes, line.waiting_ms, line.waiting_ahead_ms) == (2, 50.0, 20.0)


@pytest.mark.parametrize(
    ("now_ms", "left_ms"),
    [
        (8.0, 2.0),
        (9.5, 1.0),  # it is expected to end at any moment, a tenth of its work away
        (10.0, 1.0),
        (12.0, 2.0),  # late: half as long again as it is late
        (30.0, 11.0),
    ],
)
def test_who_waits_for_a_late_window_waits_the_longer(now_ms: float, left_ms: float) -> None:
    """A server that stalls empties no queue."""
    found = queue()
    for _ in range(2):
        found.add(0.0, "a", 1, 10.0)
    assert found.backlog(now_ms).wait_ms == {"a": pytest.approx(left_ms)}
    assert until_done(found, now_ms) == pytest.approx(left_ms + 10.0)


def busy(
    cores: int, *jobs: tuple[str, int, float], now_ms: float = 0.0, **external: int
) -> Backlog:
    """Return the backlog of these jobs (variant, windows, ms), all begun at 0."""
    found = queue(cores)
    for variant, windows, window_ms in jobs:
        found.add(0.0, variant, windows, window_ms)
    found.set_external(0.0, external)
    return found.backlog(now_ms)


def test_a_backlog_is_the_work_of_each_line_and_when_it_ends() -> None:
    """`a` has both of its instances at work for 10 ms, `b` one of two for 30."""
    found = busy(4, ("a", 1, 10.0), ("a", 1, 10.0), ("b", 1, 30.0))
    assert found == Backlog(
        4, {"a": 10.0}, [10.0, 30.0], [0.0, 20.0, 50.0], [3, 1, 0], crowded=False
    )
    assert busy(3, ("a", 1, 10.0), ("a", 1, 10.0), ("b", 1, 30.0)).crowded
    assert busy(4) == Backlog(4, {}, [], [0.0], [0], crowded=False)


def test_what_waits_is_before_new_work() -> None:
    """Two run and four wait, 60 ms on two lanes; of those the first ends half a window before the other."""
    found = busy(2, *[("a", 1, 10.0)] * 6)
    assert found == Backlog(2, {"a": 27.5}, [30.0], [0.0, 60.0], [2, 0], crowded=True)
    assert found.until_done_ms("a", 2, 1, 10.0) == 37.5
    assert found.until_done_ms("a", 2, 3, 10.0) == 47.5


def test_windows_of_other_gateways_are_work_like_ours() -> None:
    """They take as long as our last ones at that variant, and leave less room."""
    found = busy(2, ("a", 1, 10.0), a=1)
    assert found == Backlog(2, {"a": 7.5}, [10.0], [0.0, 20.0], [2, 0], crowded=True)
    assert busy(2, ("a", 1, 10.0), a=-3) == busy(2, ("a", 1, 10.0))
    elsewhere = busy(2, ("a", 1, 10.0), b=1)
    assert elsewhere == Backlog(2, {}, [0.0, 10.0], [0.0, 0.0, 10.0], [2, 1, 0], crowded=True)
    four = Queue(4)
    four.open("a", 4)
    for _ in range(4):
        four.add(0.0, "a", 1, 10.0)
    four.set_external(0.0, {"a": 1})
    assert four.backlog(9.5).wait_ms == {"a": 0.0}, "four windows end before it would begin"


@pytest.mark.parametrize(
    ("now_ms", "wait_ms", "left_ms"),
    [
        (5.0, 10.0, 30.0),  # one window is waited for, of those that are left
        (19.5, 0.5, 1.0),
        (50.0, 10.0, 31.0),  # late by 60 ms of work
        (200.0, 90.5, 181.0),  # so late that its windows are as long as all of it was to be
    ],
)
def test_a_long_context_ends_late_as_a_short_one_does(
    now_ms: float, wait_ms: float, left_ms: float
) -> None:
    """Its lanes are free for others after each window, unless it hangs."""
    found = busy(2, ("a", 4, 10.0), now_ms=now_ms)
    assert found.wait_ms == {"a": pytest.approx(wait_ms)}
    assert found.done_ms == pytest.approx([0.0, left_ms])


def test_a_long_context_beside_a_short_one_shares_the_instances() -> None:
    """Three windows want the two instances: each advances two thirds of the time."""
    found = busy(2, ("a", 1, 10.0), ("a", 4, 10.0), now_ms=6.0)
    assert found.done_ms == pytest.approx([0.0, 6.0 + 32.0])
    assert found.lanes == [2, 0]
    other_order = Queue(4)
    other_order.open("a", 4)
    for windows in (3, 1):
        other_order.add(0.0, "a", windows, 10.0)
    assert other_order.backlog(0.0).done_ms == [0.0, 40.0]


def test_more_windows_than_cores_advance_the_slower() -> None:
    """Four on two cores: after 4 ms each has done 2."""
    found = busy(2, *[("a", 1, 10.0)] * 2, *[("b", 1, 10.0)] * 2, now_ms=4.0)
    assert found.wait_ms == {"a": 8.0, "b": 8.0}
    assert found.until_done_ms("a", 2, 1, 10.0) == pytest.approx((32.0 + 10.0) / 2)


def test_the_queue_counts_what_is_in_it() -> None:
    """Metrics and the load of other gateways are made of these counts."""
    found = queue(4)
    assert found.idle_since_ms == float("-inf")
    jobs = [found.add(1.0, "a", windows, 10.0) for windows in (1, 3, 2)]
    found.set_external(1.0, {"a": 1, "b": 1})
    assert (found.lines["a"].windows, found.lines["b"].windows) == (7, 1)
    assert (found.lines["a"].busy, found.lanes_at_work) == (2, 3)
    assert (found.in_flight, found.n_begun) == (3, 3)
    for job in jobs:
        found.remove(9.0, job)
    assert (found.in_flight, found.n_begun, found.idle_since_ms) == (0, 3, 9.0)
    assert (found.lines["a"].windows, found.lines["a"].lanes, found.lanes_at_work) == (1, 0, 2)


@pytest.mark.parametrize(("instances", "slots"), [(0, 1), (1, 1), (3, 3), (9, 4)])
def test_a_line_has_an_instance_at_least_and_no_more_than_cores(instances: int, slots: int) -> None:
    """More could not run at the same time."""
    found = Queue(4)
    for n in (2, instances):
        found.open("a", n)
    assert found.lines["a"].slots == slots
    assert Queue(0).cores == 1


def test_a_long_context_that_is_cancelled_while_it_waits_leaves_no_trace() -> None:
    """The rest of the line moves up."""
    found = queue()
    running, gone, kept = (found.add(0.0, "a", n, 10.0) for n in (2, 5, 1))
    found.remove(0.0, gone)
    line = found.lines["a"]
    assert (line.waiting_ms, line.waiting_ahead_ms, line.windows) == (10.0, 10.0, 3)
    found.remove(0.0, running)
    assert (line.running, line.lanes, line.waiting_ms, line.waiting_ahead_ms) == ([kept], 1, 0, 0)
