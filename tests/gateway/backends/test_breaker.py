"""The circuit of a failing variant opens, is probed, and closes again; retries have a budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.backends.breaker import (
    FIRST_OPEN_MS,
    IN_A_ROW,
    LATELY_MS,
    LONGEST_OPEN_MS,
    WINDOW,
    Breaker,
    Breakers,
    RetryBudget,
    State,
)


def opened(now_ms: float = 0.0) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker()
    changes = [breaker.begin(now_ms).failed(now_ms) for _ in range(IN_A_ROW)]
    assert changes == [False] * (IN_A_ROW - 1) + [True]
    return breaker


def test_failures_in_a_row_open_it_for_a_while() -> None:
    """A single failure may be the request's; three are the variant's."""
    breaker = opened()
    assert breaker.state(0.0) is State.OPEN
    assert not breaker.allows(FIRST_OPEN_MS - 1)
    assert breaker.allows(FIRST_OPEN_MS)


def test_a_success_between_keeps_it_closed() -> None:
    """In a row means in a row."""
    breaker = Breaker()
    for _ in range(IN_A_ROW - 1):
        assert not breaker.begin(0.0).failed(0.0)
    breaker.begin(0.0).worked(0.0)
    assert not breaker.begin(0.0).failed(0.0)
    assert breaker.closed


@pytest.mark.parametrize("healthy", [0, 100])
def test_half_of_the_last_calls_open_it_however_they_alternate(healthy: int) -> None:
    """One of two instances that is broken never fails three times in a row; what was long ago is forgotten."""
    breaker = Breaker()
    for _ in range(healthy):
        breaker.begin(0.0).worked(0.0)
    for n in range(WINDOW):
        call = breaker.begin(0.0)
        changed = call.failed(0.0) if n % 2 else call.worked(0.0)
        assert changed == (n == WINDOW - 1)
    assert not breaker.closed


def test_one_probe_at_a_time_decides() -> None:
    """A variant that has just come back is not overrun."""
    breaker = opened()
    probe = breaker.begin(FIRST_OPEN_MS)
    assert not breaker.allows(FIRST_OPEN_MS)
    assert probe.worked(FIRST_OPEN_MS + 5)
    assert breaker.state(FIRST_OPEN_MS + 5) is State.CLOSED
    assert not breaker.begin(FIRST_OPEN_MS + 6).failed(FIRST_OPEN_MS + 7)


def test_a_probe_that_fails_opens_it_twice_as_long_up_to_a_limit() -> None:
    """What stays broken is asked less and less often, but never given up."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(8):
        began = now
        while not breaker.allows(now):
            now += FIRST_OPEN_MS / 4
        waits.append(now - began)
        assert breaker.begin(now).failed(now)
    assert waits[:3] == [FIRST_OPEN_MS, 2 * FIRST_OPEN_MS, 4 * FIRST_OPEN_MS]
    assert waits[-1] == LONGEST_OPEN_MS


def test_a_probe_nobody_waits_for_leaves_the_place_to_the_next() -> None:
    """A caller who left says nothing about the variant."""
    breaker = opened()
    breaker.begin(FIRST_OPEN_MS).gave_up(FIRST_OPEN_MS + 1, 20.0)
    assert breaker.allows(FIRST_OPEN_MS + 1)
    assert breaker.state(FIRST_OPEN_MS + 1) is State.HALF_OPEN


@pytest.mark.parametrize("end", [lambda c: c.worked(5.0), lambda c: c.failed(5.0)])
def test_what_began_before_it_opened_decides_nothing(end: Callable[..., bool]) -> None:
    """It was asked of the variant as it was."""
    breaker = Breaker()
    early = breaker.begin(0.0)
    for _ in range(IN_A_ROW):
        breaker.begin(1.0).failed(1.0)
    assert not end(early)
    assert not breaker.allows(6.0)
    assert breaker.allows(1.0 + FIRST_OPEN_MS)


def test_a_variant_that_hangs_opens_it_and_a_busy_one_does_not() -> None:
    """Both let requests run out of time; only the busy one answers others meanwhile."""
    hangs, busy = Breaker(), Breaker()
    for n in range(IN_A_ROW):
        began = 100.0 * n
        late = busy.begin(began)
        busy.begin(began).worked(began + 50)
        assert not late.gave_up(began + 90, 20.0)
        assert hangs.begin(began).gave_up(began + 90, 20.0) == (n == IN_A_ROW - 1)
    assert busy.closed


def test_a_variant_whose_answers_all_take_long_is_busy_until_it_answers_nothing() -> None:
    """Eight callers at a model that takes a third of their deadline: those in the queue run out of time together."""
    breaker, work_ms = Breaker(), 50.0
    breaker.begin(0.0).worked(900.0)
    queued = [breaker.begin(901.0) for _ in range(2 * IN_A_ROW)]
    assert not any(call.gave_up(1_700.0, work_ms) for call in queued)
    assert breaker.closed
    late = 900.0 + LATELY_MS
    lost = [breaker.begin(late) for _ in range(IN_A_ROW)]
    assert [call.gave_up(late + 700.0, work_ms) for call in lost][-1]


def test_a_caller_with_little_patience_says_nothing() -> None:
    """Who leaves before an answer was to be expected has not seen it fail."""
    breaker = Breaker()
    for _ in range(3 * IN_A_ROW):
        assert not breaker.begin(0.0).gave_up(10.0, 30.0)


def test_breakers_name_the_variants_with_an_open_circuit() -> None:
    """What the policy routes around."""
    breakers = Breakers()
    assert breakers.of("a").closed
    for _ in range(IN_A_ROW):
        breakers.of("b").begin(0.0).failed(0.0)
    assert breakers.failing(1.0) == {"b"}
    assert breakers.failing(FIRST_OPEN_MS) == set()
    breakers.of("b").begin(FIRST_OPEN_MS)
    assert breakers.failing(FIRST_OPEN_MS) == {"b"}


def test_retries_are_a_share_of_the_requests() -> None:
    """An outage is not made worse by asking twice; a few failures at the start are."""
    budget = RetryBudget(0.1, burst=5)
    assert [budget.take() for _ in range(6)] == [True] * 5 + [False]
    for _ in range(31):
        budget.pay_in()
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    for _ in range(1000):
        budget.pay_in()
    assert sum(budget.take() for _ in range(100)) == 5
    none = RetryBudget(0.0)
    none.pay_in()
    assert not none.take()


def test_fewer_than_half_of_the_last_calls_keep_it_closed() -> None:
    """Nine of twenty; a tenth, once the first of them is forgotten, is the ninth again."""
    breaker = Breaker()
    for n in range(WINDOW + 1):
        call = breaker.begin(0.0)
        assert not (call.failed(0.0) if n in range(1, 18, 2) else call.worked(0.0))
    assert not breaker.begin(0.0).failed(0.0)
    assert breaker.closed


def test_a_success_of_the_probe_is_a_new_start() -> None:
    """Nothing of before counts: neither the failures nor how often it was open."""
    breaker = opened()
    now = FIRST_OPEN_MS
    assert breaker.begin(now).failed(now)
    now += 2 * FIRST_OPEN_MS
    assert breaker.begin(now).worked(now)
    for _ in range(IN_A_ROW - 1):
        assert not breaker.begin(now).failed(now)
    assert breaker.begin(now).failed(now)
    assert not breaker.allows(now + FIRST_OPEN_MS - 1)
    assert breaker.allows(now + FIRST_OPEN_MS)


def test_one_that_is_known_to_be_unable_is_opened_at_once() -> None:
    """A model server that has unloaded it says so; a probe under way decides nothing any more."""
    breaker = Breaker()
    assert breaker.trip(0.0)
    assert breaker.state(FIRST_OPEN_MS - 1) is State.OPEN
    probe = breaker.begin(FIRST_OPEN_MS)
    assert not breaker.trip(FIRST_OPEN_MS)
    assert not probe.worked(FIRST_OPEN_MS + 1)
    assert breaker.state(2 * FIRST_OPEN_MS - 1) is State.OPEN
    assert breaker.allows(2 * FIRST_OPEN_MS)


def test_the_log_reads_what_state_it_is_in() -> None:
    """And for how long."""
    breaker = opened(9_000.0)
    assert breaker.describe(9_000.0) == f"it fails: circuit open for {FIRST_OPEN_MS / 1e3:.0f} s"
    assert breaker.describe(9_000.0 + FIRST_OPEN_MS) == "breaker half-open"
    assert Breaker().describe(0.0) == "breaker closed"


@pytest.mark.parametrize(("took_ms", "hangs"), [(80.0, False), (80.1, True)])
def test_a_variant_hangs_after_four_times_its_work(took_ms: float, hangs: bool) -> None:
    """Not before, and not where it answered a call that began at the same time."""
    breaker, busy = Breaker(), Breaker()
    ends = [breaker.begin(0.0).gave_up(took_ms, 20.0) for _ in range(IN_A_ROW)]
    assert ends[-1] is hangs
    late = [busy.begin(50.0) for _ in range(IN_A_ROW)]
    busy.begin(50.0).worked(50.0)
    assert not any(call.gave_up(50.0 + took_ms, 20.0) for call in late)


def test_a_probe_without_a_verdict_leaves_its_place() -> None:
    """A refusal of the request, say; another call's end frees nothing."""
    breaker = opened()
    stale = breaker.begin(0.0)
    probe = breaker.begin(FIRST_OPEN_MS)
    stale.inconclusive()
    assert not breaker.allows(FIRST_OPEN_MS)
    probe.inconclusive()
    assert breaker.allows(FIRST_OPEN_MS)


def test_breakers_outlive_a_catalog_with_their_variants() -> None:
    """What fails goes on failing; what has left and comes again is new."""
    breakers = Breakers()
    for name in ("a", "b"):
        breakers.of(name).trip(0.0)
    kept = breakers.keeping({"a", "c"})
    assert kept.failing(1.0) == {"a"}
    assert kept.of("b").closed
    assert breakers.of("a") is kept.of("a")


def test_a_budget_is_twenty_retries_at_first() -> None:
    """The default; another burst can be given."""
    budget = RetryBudget(0.5)
    assert sum(budget.take() for _ in range(100)) == 20
    half = RetryBudget(0.5, burst=1)
    assert half.take()
    half.pay_in()
    assert not half.take()
    half.pay_in()
    assert half.take()
