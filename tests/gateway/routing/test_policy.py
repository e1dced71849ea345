"""choose() as tables: options in, a decision out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import (
    Decision,
    Option,
    Reason,
    RejectionReason,
    Slo,
    SloPolicy,
    SloViolation,
    Trust,
)
from gateway.routing.policy import (
    choose,
    choose_early,
    escalation_left_ms,
    find_violations,
    nearest_feasible,
    quantile_for,
    rejection_reasons,
)
from tests.fakes import make_plan, make_variant, with_answerable, with_loss

STRICT, LATENCY, ACCURACY = SloPolicy.STRICT, SloPolicy.PREFER_LATENCY, SloPolicy.PREFER_ACCURACY


def option(
    name: str, floor: float, ms: float, wait_ms: float = 0.0, trust: Trust = Trust.CERTIFIED
) -> Option:
    """Return an option whose cost is its idle latency."""
    plan = make_plan(make_variant(name, ms), floor)
    return Option(plan, trust, int(ms * 1e6), ms, ms, ms + wait_ms, wait_ms=wait_ms)


def slo(ms: float, f1: float, policy: SloPolicy = LATENCY, variant: str | None = None) -> Slo:
    timeout_ms = ms if policy is STRICT else 4 * ms
    return Slo(ms, f1, policy, timeout_ms, "standard", variant=variant)


def idle(wait_ms: float = 0.0) -> list[Option]:
    return [
        option("small", 0.5, 5, wait_ms),
        option("medium", 0.6, 10, wait_ms),
        option("large", 0.7, 20, wait_ms),
    ]


CHOICES = [
    # slo, wait, spent -> plan, reason, violations
    (slo(50, 0.0), 0, 0, "small", Reason.MEETS_SLO, ()),
    (slo(50, 0.55), 0, 0, "medium", Reason.MEETS_SLO, ()),
    (slo(50, 0.7), 0, 0, "large", Reason.MEETS_SLO, ()),
    (slo(20, 0.7), 0, 0, "large", Reason.MEETS_SLO, ()),
    (slo(15, 0.7), 0, 0, "medium", Reason.MOST_ACCURATE_IN_TIME, (SloViolation.BELOW_FLOOR,)),
    (slo(50, 0.7), 35, 0, "medium", Reason.MOST_ACCURATE_IN_TIME, (SloViolation.BELOW_FLOOR,)),
    (slo(50, 0.7), 0, 35, "medium", Reason.MOST_ACCURATE_IN_TIME, (SloViolation.BELOW_FLOOR,)),
    (slo(10, 0.7), 0, 0, "medium", Reason.MOST_ACCURATE_IN_TIME, (SloViolation.BELOW_FLOOR,)),
    (slo(4, 0.7), 0, 0, "small", Reason.FASTEST, (SloViolation.LATE, SloViolation.BELOW_FLOOR)),
    (slo(50, 0.0), 0, 190, "small", Reason.FASTEST, (SloViolation.LATE,)),
    (slo(15, 0.7, ACCURACY), 0, 0, "large", Reason.LEAST_LATE, (SloViolation.LATE,)),
    (
        slo(15, 0.9, ACCURACY),
        0,
        0,
        "large",
        Reason.MOST_ACCURATE,
        (SloViolation.LATE, SloViolation.BELOW_FLOOR),
    ),
    (slo(50, 0.9, ACCURACY), 0, 0, "large", Reason.MOST_ACCURATE, (SloViolation.BELOW_FLOOR,)),
    (
        slo(50, 0.7, ACCURACY),  # 10 ms before the deadline
        0,
        190,
        "medium",
        Reason.MOST_ACCURATE,
        (SloViolation.LATE, SloViolation.BELOW_FLOOR),
    ),
    (slo(15, 0.7, STRICT), 0, 0, None, Reason.INFEASIBLE, ()),
    (slo(50, 0.9, STRICT), 0, 0, None, Reason.INFEASIBLE, ()),
    (slo(50, 0.7, STRICT), 40, 0, None, Reason.BUSY, ()),
    (slo(20, 0.7, STRICT), 1, 0, None, Reason.BUSY, ()),
    (slo(50, 0.7, STRICT), 1, 30, None, Reason.BUSY, ()),
    (slo(50, 0.7, STRICT), 0, 40, None, Reason.TOO_LATE, ()),
    (slo(50, 0.7), 500, 0, None, Reason.SHED, ()),
    (slo(50, 0.7, variant="small"), 0, 0, "small", Reason.PINNED, (SloViolation.BELOW_FLOOR,)),
]


@pytest.mark.parametrize(("wanted", "wait_ms", "spent_ms", "plan", "reason", "violations"), CHOICES)
def test_the_choice(
    wanted: Slo,
    wait_ms: float,
    spent_ms: float,
    plan: str | None,
    reason: Reason,
    violations: object,
) -> None:
    """The rules under `What is chosen` in docs/explanation/routing.md, one a row."""
    decision = choose(wanted, idle(wait_ms), spent_ms)
    chosen = decision.option.plan.name if decision.option else None
    assert (chosen, decision.reason, decision.violations) == (plan, reason, violations)


@pytest.mark.parametrize(
    ("idle_ms", "predicted_ms", "wait_ms", "reason"),
    [
        (30, 300, 0, Reason.FASTEST),  # what was learned under load may be past
        (210, 300, 0, Reason.SHED),  # not even a fresh gateway would
        (30, 300, 1, Reason.SHED),
    ],
)
def test_on_a_free_core_what_a_fresh_gateway_would_answer_is_tried(
    idle_ms: float, predicted_ms: float, wait_ms: float, reason: Reason
) -> None:
    """Refusals that leave the models idle would keep alive the predictions that they are made by."""
    only = option("small", 0.5, 5)._replace(
        idle_ms=idle_ms, predicted_ms=predicted_ms, wait_ms=wait_ms
    )
    for policy in (LATENCY, ACCURACY):
        assert choose(slo(50, 0.0, policy), [only]).reason is reason


@pytest.mark.parametrize(
    ("predicted_ms", "wait_ms", "reason"),
    [
        (900, 0, Reason.PINNED),  # nobody is ahead: it may try
        (190, 170, Reason.PINNED),
        (210, 190, Reason.SHED),
    ],
)
def test_a_pinned_variant_is_not_asked_for_what_would_wait_past_the_deadline(
    predicted_ms: float, wait_ms: float, reason: Reason
) -> None:
    """Every model call would begin too late, and none of the callers would be answered."""
    large = option("large", 0.7, 20)._replace(predicted_ms=predicted_ms, wait_ms=wait_ms)
    wanted = slo(50, 0.0, variant="large")
    assert choose(wanted, [option("small", 0.5, 5), large]).reason is reason
    early = choose_early(wanted, [large], lambda known: known)
    assert (early is None) == (reason is Reason.SHED)


@pytest.mark.parametrize(
    ("wanted", "spent_ms", "reason"),
    [
        (slo(50, 0.7, STRICT), 0, Reason.BUSY),
        (slo(50, 0.7, STRICT), 40, Reason.TOO_LATE),
        (slo(10, 0.7), 0, Reason.SHED),
    ],
)
def test_a_refusal_under_load_says_when_the_load_is_done(
    wanted: Slo, spent_ms: float, reason: Reason
) -> None:
    """Retry-After is no guess."""
    decision = choose(wanted, idle(wait_ms=300), spent_ms)
    assert decision == Decision(None, reason, retry_after_ms=300)


def test_without_plans_there_is_nothing_to_wait_for() -> None:
    """A serving set may be empty for a moment."""
    assert choose(slo(50, 0.0), []) == Decision(None, Reason.SHED, retry_after_ms=0.0)


@pytest.mark.parametrize(
    ("policy", "quantile"), [(STRICT, 0.99), (LATENCY, 0.95), (ACCURACY, 0.95)]
)
def test_strict_counts_on_the_p99(policy: SloPolicy, quantile: float) -> None:
    """The others are content with the P95."""
    assert quantile_for(policy) == quantile


@pytest.mark.parametrize("wanted", [slo(50, 0.9), slo(50, 0.9, ACCURACY)])
def test_of_equally_accurate_plans_below_the_floor_the_cheaper_answers(wanted: Slo) -> None:
    """What costs more and promises no more is never worth it."""
    options = [option("dear", 0.7, 20), option("cheap", 0.7, 15), option("small", 0.5, 5)]
    for order in (options, options[::-1]):
        decision = choose(wanted, order)
        assert decision.option is not None
        assert decision.option.plan.name == "cheap"


def paired(wait_ms: float = 0.0) -> list[Option]:
    """Return the same three, that are certified to lose 0.15, 0.05 and 0 to the largest."""
    losses = (0.15, 0.05, 0.0)
    return [
        o._replace(plan=with_loss(o.plan, loss))
        for o, loss in zip(idle(wait_ms), losses, strict=True)
    ]


@pytest.mark.parametrize(
    ("wanted", "loss", "plan", "reason", "violations"),
    [
        (slo(50, 0.0), 0.2, "small", Reason.MEETS_SLO, ()),
        (slo(50, 0.0), 0.05, "medium", Reason.MEETS_SLO, ()),
        (slo(50, 0.65), 0.05, "large", Reason.MEETS_SLO, ()),
        (slo(50, 0.0, STRICT), 0.04, "large", Reason.MEETS_SLO, ()),
        (slo(15, 0.0), 0.01, "medium", Reason.MOST_ACCURATE_IN_TIME, (SloViolation.BELOW_FLOOR,)),
        (slo(15, 0.0, ACCURACY), 0.01, "large", Reason.LEAST_LATE, (SloViolation.LATE,)),
        (slo(15, 0.0, STRICT), 0.01, None, Reason.INFEASIBLE, ()),
    ],
)
def test_a_loss_to_the_largest_variant_is_met_like_a_floor(
    wanted: Slo, loss: float, plan: str | None, reason: Reason, violations: object
) -> None:
    """Both certificates have to hold where both are asked for."""
    decision = choose(replace(wanted, max_f1_loss=loss), paired())
    chosen = decision.option.plan.name if decision.option else None
    assert (chosen, decision.reason, decision.violations) == (plan, reason, violations)


def test_a_loss_that_is_not_certified_is_not_met() -> None:
    """A catalog of early studies has none: strict refuses, the others say `uncertified`."""
    wanted = replace(slo(50, 0.0), max_f1_loss=0.5)
    assert choose(wanted, idle()).violations == (SloViolation.UNCERTIFIED,)
    assert choose(replace(wanted, policy=STRICT), idle()).reason is Reason.INFEASIBLE


def by_kind(wait_ms: float = 0.0) -> list[Option]:
    """Return the same three, certified at 0.3, 0.6 and 0.5 on questions that have an answer."""
    floors = (0.3, 0.6, 0.5)
    return [
        o._replace(plan=with_answerable(o.plan, floor))
        for o, floor in zip(idle(wait_ms), floors, strict=True)
    ]


@pytest.mark.parametrize(
    ("wanted", "floor", "plan", "violations"),
    [
        (slo(50, 0.0), 0.3, "small", ()),
        (slo(50, 0.0), 0.5, "medium", ()),
        (slo(50, 0.65), 0.5, "large", ()),
        (slo(50, 0.0, STRICT), 0.7, None, ()),
        (slo(50, 0.0), 0.7, "large", (SloViolation.BELOW_FLOOR,)),
    ],
)
def test_a_floor_on_answerable_questions_holds_beside_the_other(
    wanted: Slo, floor: float, plan: str | None, violations: object
) -> None:
    """F1 over all questions rewards silence; who knows that there is an answer asks for this one."""
    decision = choose(replace(wanted, min_answerable_f1=floor), by_kind())
    chosen = decision.option.plan.name if decision.option else None
    assert (chosen, decision.violations) == (plan, violations)


def test_a_floor_of_a_kind_that_is_not_certified_is_not_met() -> None:
    """As with a loss: strict refuses, the others say `uncertified`; so with a broken certificate."""
    wanted = replace(slo(50, 0.0), min_answerable_f1=0.1)
    assert choose(wanted, idle()).violations == (SloViolation.UNCERTIFIED,)
    assert choose(replace(wanted, policy=STRICT), idle()).reason is Reason.INFEASIBLE
    broken = by_kind()[0]._replace(trust=Trust.BROKEN)
    assert broken.certified_answerable_f1 is None


def test_what_loses_less_is_among_the_nearest_where_a_loss_was_asked_for() -> None:
    """A plan with the lower floor may be certified closer to the largest variant."""
    closer = option("closer", 0.45, 6)
    options = [*paired(), closer._replace(plan=with_loss(closer.plan, 0.02))]
    wanted = replace(slo(10, 0.0), max_f1_loss=0.01)
    assert "closer" in [o.plan.name for o in nearest_feasible(wanted, options)]
    assert "closer" not in [o.plan.name for o in nearest_feasible(slo(10, 0.9), options)]


@pytest.mark.parametrize(
    ("wanted", "spent_ms", "left_ms"),
    [
        (slo(50, 0.7), 20, 30),
        (slo(50, 0.7, STRICT), 20, 30),
        (slo(50, 0.7, ACCURACY), 20, 180),
        (replace(slo(50, 0.7), timeout_ms=30), 20, 10),
    ],
)
def test_an_escalation_has_until_the_target_or_for_accuracy_until_the_deadline(
    wanted: Slo, spent_ms: float, left_ms: float
) -> None:
    """Who prefers latency would rather have the answer at hand in time."""
    assert escalation_left_ms(wanted, spent_ms) == left_ms


def test_strict_never_takes_an_uncertified_plan() -> None:
    """A floor that was not seen to hold here is no floor."""
    options = [o._replace(trust=Trust.UNCERTIFIED) for o in idle()]
    assert choose(slo(50, 0.1, STRICT), options).reason is Reason.INFEASIBLE
    assert choose(slo(50, 0.1), options).violations == (SloViolation.UNCERTIFIED,)


def test_cost_decides_and_only_where_it_is_equal_bytes() -> None:
    """Memory is the next thing that costs."""
    lean, fat = option("lean", 0.6, 10), option("fat", 0.6, 10)._replace(size_bytes=10**9)
    fast = option("fast", 0.6, 9)._replace(size_bytes=10**9)
    assert choose(slo(50, 0.5), [fat, lean]).option == lean
    assert choose(slo(50, 0.5), [lean, fast]).option == fast


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        (slo(12, 0.7), ["small", "medium", "large"]),
        (slo(10, 0.9), ["small", "medium"]),
        (slo(4, 0.65), ["large"]),
        (slo(4, 0.9), ["small", "medium", "large"]),
    ],
)
def test_nearest_points_meet_latency_or_f1_where_any_can(wanted: Slo, nearest: list[str]) -> None:
    """The caller learns which of the two to relax, and how far."""
    assert [o.plan.name for o in nearest_feasible(wanted, idle())] == nearest


def test_a_dominated_plan_is_not_among_the_nearest() -> None:
    """Slower or less accurate, and better at nothing, helps nobody; twins help alike."""
    bad = [option("bad", 0.55, 15), option("slow", 0.6, 11), option("wrong", 0.55, 10)]
    options = [*idle(), *bad, option("twin", 0.6, 10)]
    found = [o.plan.name for o in nearest_feasible(slo(4, 0.9), options)]
    assert found == ["small", "medium", "twin", "large"]


def test_what_strict_would_not_take_is_not_among_its_nearest() -> None:
    """A point that is refused again helps nobody."""
    options = [*idle(), option("unknown", 0.6, 8, trust=Trust.UNCERTIFIED)]
    for policy, names in ((STRICT, ["small"]), (LATENCY, ["small", "unknown"])):
        found = nearest_feasible(slo(8, 0.9, policy), options)
        assert [o.plan.name for o in found] == names


def test_a_loss_that_nobody_certified_is_the_worst_of_all() -> None:
    """It counts as a loss of everything where losses are compared."""
    options = [option("silent", 0.7, 20), *paired()]
    wanted = replace(slo(50, 0.0), max_f1_loss=0.5)
    assert [o.plan.name for o in nearest_feasible(wanted, options)] == ["small", "medium", "large"]


AGAINST = [
    # SLO, spent, failing -> what is said of `medium`: 10 ms at F1 0.6
    (slo(50, 0.6), 40, {"small"}, ()),
    (slo(50, 0.6), 41, (), (SloViolation.LATE,)),
    (slo(50, 0.61), 0, (), (SloViolation.BELOW_FLOOR,)),
    (slo(50, 0.6), 190, (), (SloViolation.LATE,)),
    (slo(50, 0.6), 191, (), (SloViolation.LATE, RejectionReason.DEADLINE)),
    (slo(50, 0.6), 0, {"medium"}, (RejectionReason.FAILING,)),
    (slo(50, 0.6, variant="medium"), 0, (), ()),
    (slo(50, 0.6, variant="large"), 0, (), (RejectionReason.PINNED,)),
    (
        slo(50, 0.61, variant="large"),
        191,
        {"medium"},
        (
            SloViolation.LATE,
            SloViolation.BELOW_FLOOR,
            RejectionReason.DEADLINE,
            RejectionReason.FAILING,
            RejectionReason.PINNED,
        ),
    ),
]


@pytest.mark.parametrize(("wanted", "spent_ms", "failing", "reasons"), AGAINST)
def test_every_reason_against_a_plan_is_said(
    wanted: Slo, spent_ms: float, failing: Collection[str], reasons: object
) -> None:
    """`SLO-Explain` shows them; what meets the SLO has none, whatever it costs."""
    assert rejection_reasons(idle()[1], wanted, spent_ms, failing) == reasons


@given(
    ms=st.floats(1, 100),
    f1=st.floats(0, 1),
    wait_ms=st.floats(0, 100),
    policy=st.sampled_from(SloPolicy),
)
def test_what_meets_the_slo_has_no_shortfall(
    ms: float, f1: float, wait_ms: float, policy: SloPolicy
) -> None:
    """`violations` is empty exactly when the SLO is met; strict never violates it."""
    wanted = slo(ms, f1, policy)
    decision = choose(wanted, idle(wait_ms))
    if decision.option is None:
        return
    assert decision.violations == find_violations(decision.option, wanted, 0.0)
    assert (decision.reason is Reason.MEETS_SLO) == (decision.violations == ())
    assert policy is not STRICT or decision.violations == ()


@pytest.mark.parametrize(
    ("wanted", "failing", "plan", "reason"),
    [
        (slo(50, 0.0), {"small"}, "medium", Reason.MEETS_SLO),
        (slo(50, 0.0), {"small", "medium"}, "large", Reason.MEETS_SLO),
        (slo(50, 0.65), {"large"}, "medium", Reason.MOST_ACCURATE_IN_TIME),
        (slo(50, 0.65, STRICT), {"small"}, "large", Reason.MEETS_SLO),
        (slo(50, 0.65, STRICT), {"large"}, None, Reason.UNAVAILABLE),
        (slo(50, 0.9, STRICT), {"large"}, None, Reason.INFEASIBLE),
        (slo(50, 0.0, variant="small"), {"small"}, None, Reason.UNAVAILABLE),
        (slo(50, 0.0, STRICT, variant="small"), {"small"}, None, Reason.UNAVAILABLE),
        (slo(50, 0.0, variant="small"), {"large"}, "small", Reason.PINNED),
        (slo(50, 0.0), {"small", "medium", "large"}, None, Reason.UNAVAILABLE),
    ],
)
def test_no_plan_with_a_failing_variant_is_picked(
    wanted: Slo, failing: set[str], plan: str | None, reason: Reason
) -> None:
    """Where only it would do, that is not the caller's fault, and not for ever."""
    decision = choose(wanted, idle(), 0.0, failing)
    found = decision.option.plan.name if decision.option else None
    assert (found, decision.reason) == (plan, reason)


def test_what_is_refused_without_failures_is_refused_with_them_alike() -> None:
    """A request that comes too late stays too late: 503 would send the caller to the wrong place."""
    busy = [option("small", 0.5, 5, 500), option("large", 0.7, 20, 500)]
    assert choose(slo(50, 0.7, STRICT), busy, 0.0, {"small"}).reason is Reason.BUSY
    assert choose(slo(50, 0.4), busy, 0.0, {"small"}).reason is Reason.SHED


def test_what_only_a_failing_variant_could_do_later_is_unavailable() -> None:
    """`infeasible` would be for good, and `busy` is not all that keeps the request from its answer."""
    busy = idle(wait_ms=100)
    above_small = slo(50, 0.55, STRICT)
    assert choose(above_small, busy, 0.0, {"medium", "large"}).reason is Reason.UNAVAILABLE
    pinned = slo(50, 0.0, STRICT, variant="small")
    assert choose(pinned, busy, 0.0, {"small"}).reason is Reason.UNAVAILABLE


@pytest.mark.parametrize("policy", SloPolicy)
def test_urgency_refuses_nobody(policy: SloPolicy) -> None:
    """It orders the queue; whoever can be answered in time is answered."""
    for wait in range(0, 420, 20):
        found = {
            choose(replace(slo(100, 0.7, policy), priority=u), idle(wait)).reason for u in range(8)
        }
        assert len(found) == 1


def crowded(behind: float) -> list[Option]:
    """Return the three idle options, with so many requests a core that wait behind."""
    return [o._replace(behind_ms=behind * o.cost_ms) for o in idle()]


@pytest.mark.parametrize(
    ("wanted", "behind", "plan", "reason"),
    [
        (slo(100, 0.7), 3, "large", Reason.MEETS_SLO),
        (slo(100, 0.7), 5, "medium", Reason.MOST_ACCURATE_IN_TIME),
        (slo(100, 0.7), 9, "medium", Reason.MOST_ACCURATE_IN_TIME),
        (slo(100, 0.7), 12, "small", Reason.MOST_ACCURATE_IN_TIME),
        (slo(100, 0.7), 50, "small", Reason.MOST_ACCURATE_IN_TIME),
        (slo(100, 0.55), 5, "medium", Reason.MEETS_SLO),
        (slo(100, 0.7, STRICT), 50, "large", Reason.MEETS_SLO),
        (slo(100, 0.7, ACCURACY), 50, "large", Reason.MEETS_SLO),
    ],
)
def test_who_waits_behind_makes_plans_cheaper(
    wanted: Slo, behind: float, plan: str, reason: Reason
) -> None:
    """A request that prefers latency leaves time to the others, were they to take the same plan."""
    decision = choose(wanted, crowded(behind))
    assert decision.option is not None
    assert (decision.option.plan.name, decision.reason) == (plan, reason)
