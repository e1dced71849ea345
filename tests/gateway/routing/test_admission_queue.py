"""The order in which requests are let in, and who waits in vain: times in, requests out."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import Option, Slo, SloPolicy, Trust
from gateway.routing.admission_queue import (
    AGING_INTERVAL,
    IN_TIME,
    STRETCH,
    AdmissionQueue,
    Soonest,
    Waiting,
)
from tests.fakes import make_plan, make_variant


def slo(latency_ms: float = 100.0, priority: int = 3, **asked: object) -> Slo:
    return Slo(latency_ms, 0.0, SloPolicy.PREFER_LATENCY, 4 * latency_ms, "test", priority, **asked)  # type: ignore[arg-type]


def queue(*waiting: Waiting) -> AdmissionQueue:
    found = AdmissionQueue()
    for request in waiting:
        found.add(request)
    return found


def waits(wanted: Slo, arrived_ms: float = 0.0, caller: Hashable = None) -> Waiting:
    return Waiting(wanted, arrived_ms, caller)


def soonest(ms: float) -> Soonest:
    option = Option(make_plan(make_variant("small", ms), 0.5), Trust.CERTIFIED, 1, ms, ms, ms)
    return Soonest(lambda _: [option])


def test_the_earliest_target_is_let_in_first() -> None:
    """A request of 50 ms passes one of 250 ms that came before it."""
    patient, urgent = waits(slo(250.0)), waits(slo(50.0), 10.0)
    found = queue(patient, urgent)
    assert [found.take(20.0), found.take(20.0), found.take(20.0)] == [urgent, patient, None]


def test_a_more_urgent_request_is_let_in_first_and_nobody_is_passed_for_ever() -> None:
    """Urgency moves a target; it refuses nobody."""
    lowly = waits(slo(priority=7))
    assert queue(lowly, waits(slo(priority=0), 1.0)).take(2.0) is not lowly
    later_ms = (STRETCH[7] - STRETCH[0]) * 100.0 + 1.0
    late = slo(1_000.0, priority=7)
    assert queue(waits(late), waits(slo(1_000.0, priority=0), 10 * later_ms)).take(0.0) is not None


def test_who_can_be_in_time_passes_who_cannot() -> None:
    """Else a queue that lasts makes everyone late and nobody faster."""
    late, fresh = waits(slo()), waits(slo(), 150.0)
    assert queue(late, fresh).take(160.0) is fresh


def test_who_is_late_gets_a_turn_now_and_then() -> None:
    """An answer after the target but before the deadline is an answer."""
    late = waits(slo(1_000.0), -1_000.0)
    found = queue(late, *(waits(slo(1_000.0)) for _ in range(3 * AGING_INTERVAL)))
    order = [found.take(10.0) for _ in range(2 * AGING_INTERVAL)]
    assert order.index(late) == AGING_INTERVAL


def test_who_is_late_takes_what_is_left_over() -> None:
    """Room is never left empty while somebody waits."""
    late = waits(slo(), 0.0)
    assert queue(late).take(IN_TIME * 100.0 + 1.0) is late


def test_a_caller_with_many_requests_inside_waits_behind_one_with_few() -> None:
    """A list of a thousand questions does not take the queue from who asks one."""
    found = queue(*(waits(slo(), 0.0, "many") for _ in range(5)), waits(slo(), 5.0, "one"))
    first = found.take(6.0)
    assert first is not None
    assert first.caller == "many"
    found.enter(first)
    second = found.take(6.0)
    assert second is not None
    assert second.caller == "one"
    found.leave(first)
    assert found.take(6.0) is not None


def test_a_short_target_does_not_wait_for_cores_that_work_for_longer_ones() -> None:
    """As many at once as there are cores; the next one when one of them has left."""
    short = [waits(slo(50.0), float(i)) for i in range(3)]
    found = queue(*short)
    assert found.take_preempting(2.0, 2) is None  # nothing is admitted: there is room
    for _ in range(2):
        found.enter(waits(slo(250.0)))
    for request in short[:2]:
        assert found.take_preempting(2.0, 2) is request
        found.enter(request)
    assert found.take_preempting(2.0, 2) is None
    found.leave(short[0])
    assert found.take_preempting(2.0, 2) is short[2]


def test_no_more_than_the_cores_go_before_others_however_their_targets_differ() -> None:
    """Each has a shorter target than all before it."""
    found = queue()
    for ms in (250.0, 250.0):
        found.enter(waits(slo(ms)))
    taken = []
    for ms in range(249, 200, -1):
        found.add(waits(slo(float(ms))))
        if (request := found.take_preempting(0.0, 2)) is not None:
            found.enter(request)
            taken.append(request)
    assert len(taken) == 2


def test_no_more_than_the_cores_go_before_others_however_long_they_take() -> None:
    """A class may give them far longer than their target: those that are stuck use the cores all the same."""
    found = queue()
    for _ in range(2):
        found.enter(waits(slo(60_000.0)))
    taken = []
    for at_ms in range(0, 500, 5):
        found.add(waits(slo(1.0), float(at_ms)))
        if (request := found.take_preempting(float(at_ms), 2)) is not None:
            found.enter(request)
            taken.append(request)
    assert len(taken) == 2
    found.leave(taken[0])
    assert found.take_preempting(495.0, 2) is not None


def test_requests_that_hang_or_upload_slowly_do_not_stand_in_the_way() -> None:
    short = waits(slo(50.0), 190.0)
    found = queue(short)
    found.enter(waits(slo(250.0)))
    stuck = waits(slo(40.0))
    found.enter(stuck)
    assert found.take_preempting(4.0 * 40.0, 1) is None
    assert not found.may_preempt(slo(50.0), 4.0 * 40.0, 1)
    assert found.may_preempt(slo(50.0), 4.0 * 40.0 + 1.0, 1)
    assert found.take_preempting(4.0 * 40.0 + 31.0, 1) is short


def test_nobody_goes_before_equal_or_shorter_targets_or_late() -> None:
    found = queue(waits(slo(250.0)), waits(slo(100.0)), waits(slo(50.0), caller="late"))
    found.enter(waits(slo(100.0)))
    assert found.take_preempting(IN_TIME * 50.0 + 1.0, 2) is None
    assert len(found) == 3


@pytest.mark.parametrize(("waiting", "admitted", "goes"), [(0, 3, False), (3, 7, True)])
def test_urgency_orders_the_queue_and_preempts_nobody(
    waiting: int, admitted: int, goes: bool
) -> None:
    """But a request that says of itself that it can wait makes room."""
    found = queue(waits(slo(250.0, priority=waiting)))
    found.enter(waits(slo(250.0, priority=admitted)))
    assert (found.take_preempting(0.0, 2) is not None) is goes


def test_who_waits_in_vain_is_found_by_the_deadline() -> None:
    """As soon as no plan is predicted to answer by it, and no sooner."""
    early, late = waits(slo(100.0)), waits(slo(200.0))
    found = queue(early, late)
    assert found.take_hopeless(380.0, soonest(20.0)) == []
    assert found.take_hopeless(381.0, soonest(20.0)) == [early]
    assert len(found) == 1


def test_a_pinned_variant_is_judged_by_itself() -> None:
    """No other may answer."""
    pinned = waits(slo(100.0, variant="large"))
    assert queue(pinned).take_hopeless(0.0, soonest(5.0)) == [pinned]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([50.0, 250.0, 5_000.0]),
            st.integers(0, 7),
            st.floats(0, 500),
            st.integers(0, 3),
        ),
        max_size=40,
    ),
    st.floats(500.0, 1_500.0),
)
def test_everyone_who_waits_is_let_in_or_found_hopeless(
    arrivals: list[tuple[float, int, float, int]], now_ms: float
) -> None:
    """Nobody is lost, nobody comes twice."""
    everyone = [waits(slo(ms, u), at, caller) for ms, u, at, caller in arrivals]
    found = queue(*everyone)
    out = found.take_hopeless(now_ms, soonest(5.0))
    while (request := found.take(now_ms)) is not None:
        out.append(request)
    assert sorted(map(id, out)) == sorted(map(id, everyone))


@pytest.mark.parametrize(("priority", "ahead"), [(0, 0), (3, 2), (7, 3)])
def test_the_place_in_the_queue_follows_the_same_order(priority: int, ahead: int) -> None:
    """What `/v1/plan` adds as a wait."""
    found = queue(waits(slo()), waits(slo()), waits(slo(250.0)))
    assert found.n_ahead(slo(priority=priority), 10.0) == ahead
