"""A queued call is distinguished from one whose instance answers nothing."""

from __future__ import annotations

from gateway.backends.instances import (
    HUNG_MS,
    OVERTAKEN,
    PATIENCE,
    SILENT_MS,
    SUSPICIONS,
    InstanceCall,
    Instances,
)

WORK_MS, AMPLE_MS = 5.0, 10_000.0


def begin(instances: Instances, now_ms: float, budget_ms: float = AMPLE_MS) -> InstanceCall:
    return instances.begin(WORK_MS, budget_ms, now_ms)


def test_a_call_at_an_instance_is_silent_after_a_while() -> None:
    """Long before its deadline, so that there is time to ask another instance."""
    instances = Instances(2)
    call = begin(instances, 0.0)
    assert list(instances.silent(SILENT_MS)) == []
    assert list(instances.silent(SILENT_MS + 1)) == [call]


def test_who_is_in_a_hurry_waits_less_but_never_less_than_the_work() -> None:
    """A deadline of 200 ms leaves no 200 ms to find out."""
    instances = Instances(2)
    call = begin(instances, 0.0, budget_ms=200.0)
    assert list(instances.silent(PATIENCE * WORK_MS)) == []
    assert list(instances.silent(71.0)) == [call]
    hasty = Instances(2)
    begin(hasty, 0.0, budget_ms=10.0)
    assert list(hasty.silent(PATIENCE * WORK_MS)) == []


def test_a_call_behind_others_is_not_silent() -> None:
    """It waits for its turn: the queue of a busy server is no fault of an instance."""
    instances = Instances(2)
    calls = [begin(instances, 0.0) for _ in range(6)]
    assert list(instances.silent(1_000.0)) == calls[:2]
    instances.end(calls[0], 1_000.0, answered=True)
    assert list(instances.silent(1_001.0)) == [calls[1]]


def test_where_all_calls_take_long_none_is_silent() -> None:
    """A busy host is slow with every call."""
    instances, now = Instances(2), 0.0
    for _ in range(40):
        call = begin(instances, now)
        now += 30 * WORK_MS
        instances.end(call, now, answered=True)
    begin(instances, now)
    assert list(instances.silent(now + 2 * SILENT_MS)) == []


def test_one_stall_does_not_hide_the_next_lost_instance() -> None:
    """What is usual follows many calls, not one."""
    instances = Instances(2)
    instances.end(begin(instances, 0.0), 5_000.0, answered=True)
    call = begin(instances, 6_000.0)
    assert list(instances.silent(6_000.0 + SILENT_MS + 1)) == [call]


def test_an_instance_hangs_that_is_silent_while_another_answers() -> None:
    """And one that is silent while nobody else is asked may only be slow."""
    instances = Instances(2)
    stuck = begin(instances, 0.0)
    for n in range(OVERTAKEN):
        instances.end(begin(instances, 10.0 * n), 10.0 * n + 5, answered=True)
    assert instances.end(stuck, HUNG_MS, answered=False)
    alone = begin(instances, 2_000.0)
    assert not instances.end(alone, 2_000.0 + 2 * HUNG_MS, answered=False)


def test_short_deadlines_tell_the_same_after_a_few() -> None:
    """Each is over before one call alone could be sure."""
    instances, found = Instances(2), []
    for n in range(SUSPICIONS):
        now = 1_000.0 * n
        stuck = begin(instances, now, budget_ms=200.0)
        instances.end(begin(instances, now), now + WORK_MS, answered=True)
        found.append(instances.end(stuck, now + 200.0, answered=False))
    assert found == [False] * (SUSPICIONS - 1) + [True]


def test_a_caller_who_leaves_early_says_nothing() -> None:
    """Cancelled after a moment, a call was not silent."""
    instances = Instances(2)
    for n in range(3 * SUSPICIONS):
        gone = begin(instances, 10.0 * n)
        instances.end(begin(instances, 10.0 * n), 10.0 * n + 5, answered=True)
        assert not instances.end(gone, 10.0 * n + 6, answered=False)
