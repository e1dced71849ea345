"""Which plan answers a request: the cheapest that meets the SLO, else the best fallback of its policy.

Pure: values in, a Decision out; no clock, no I/O, no randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

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


def quantile_for(policy: SloPolicy) -> float:
    """Return the latency quantile that must meet the target."""
    return 0.99 if policy is SloPolicy.STRICT else 0.95


def choose(
    slo: Slo, options: Sequence[Option], spent_ms: float = 0.0, failing: Collection[str] = ()
) -> Decision:
    """Return the cheapest option that meets latency target and F1 floors, or the best fallback.

    `options` have their latency predicted for this request, `spent_ms` after its arrival. A pinned variant must be
    among them; `strict` judges it like any other, else it is refused only where it would wait for others past the
    deadline. A plan with a `failing` variant is never chosen; where only such a plan would do, the reason is
    UNAVAILABLE.
    """
    if not failing:
        return _choose(slo, options, spent_ms)
    sound = [o for o in options if not any(v in failing for v in o.plan.variants)]
    decision = _choose(slo, sound, spent_ms) if _has_pinned(slo, sound) else None
    if decision is not None and decision.option is not None:
        return decision
    whole = _choose(slo, options, spent_ms)
    if decision is None or whole.option is not None or whole.reason is not decision.reason:
        return Decision(None, Reason.UNAVAILABLE)
    return decision


def choose_early(
    slo: Slo,
    cheapest_first: Iterable[Option],
    predict: Callable[[Option], Option],
    spent_ms: float = 0.0,
    failing: Collection[str] = (),
) -> Decision | None:
    """Return what `choose` decides where an option meets the SLO, or a pinned one answers; None: `choose` must.

    `cheapest_first`: all options by price, their latency unknown; `predict` returns one with its latency
    predicted. It is asked for as few as the decision needs.
    """
    if slo.variant is not None and slo.policy is not SloPolicy.STRICT:
        pinned = next((o for o in cheapest_first if o.plan.variants == (slo.variant,)), None)
        if pinned is None or slo.variant in failing:
            return None
        decision = _choose_pinned(predict(pinned), slo, spent_ms)
        return None if decision.option is None else decision
    target_ms = slo.latency_ms - spent_ms
    for known in cheapest_first:
        if known.certified_f1 < slo.min_f1 or not _may_meet(known, slo, failing):
            continue  # the floor alone rules most of them out
        option = predict(known)
        if _in_time(option, slo, target_ms):
            return _decide(option, Reason.MEETS_SLO, slo, spent_ms)
    return None


def _may_meet(option: Option, slo: Slo, failing: Collection[str]) -> bool:
    """Return whether the option would meet the SLO if it were in time."""
    variants = option.plan.variants
    return (
        (slo.variant is None or variants == (slo.variant,))
        and meets_f1(option, slo)
        and (slo.policy is not SloPolicy.STRICT or _trusted(option))
        and not (failing and any(v in failing for v in variants))
    )


def _in_time(option: Option, slo: Slo, target_ms: float) -> bool:
    """Return whether the request is in time; under `prefer-latency` those that wait behind it must be, too."""
    if slo.policy is SloPolicy.PREFER_LATENCY:
        return option.predicted_ms + option.behind_ms <= target_ms
    return option.predicted_ms <= target_ms


def _has_pinned(slo: Slo, options: Sequence[Option]) -> bool:
    return slo.variant is None or any(o.plan.variants == (slo.variant,) for o in options)


def _choose(slo: Slo, options: Sequence[Option], spent_ms: float) -> Decision:
    if slo.variant is not None:
        options = [o for o in options if o.plan.variants == (slo.variant,)]
        if slo.policy is not SloPolicy.STRICT:
            return _choose_pinned(options[0], slo, spent_ms)
    target_ms = slo.latency_ms - spent_ms
    trusted = [o for o in options if slo.policy is not SloPolicy.STRICT or _trusted(o)]
    accurate = [o for o in trusted if meets_f1(o, slo)]
    in_time = [o for o in accurate if _in_time(o, slo, target_ms)]
    if in_time:
        return _decide(cheapest(in_time), Reason.MEETS_SLO, slo, spent_ms)
    if slo.policy is SloPolicy.STRICT:
        return _refuse(accurate, slo.latency_ms, target_ms)
    left_ms = slo.timeout_ms - spent_ms
    reachable = [o for o in trusted if o.predicted_ms <= left_ms]
    if not reachable:
        free = [o for o in trusted if o.reach_ms <= left_ms]
        if not free:
            return Decision(None, Reason.SHED, retry_after_ms=_drain_ms(trusted))
        return _decide(fastest(free), Reason.FASTEST, slo, spent_ms)
    if slo.policy is SloPolicy.PREFER_LATENCY:
        return _prefer_latency(reachable, target_ms, slo, spent_ms)
    return _prefer_accuracy(reachable, slo, spent_ms)


def _choose_pinned(option: Option, slo: Slo, spent_ms: float) -> Decision:
    """Refuse a request that would wait for others past the deadline; one that need not wait may try."""
    if option.wait_ms > 0 and option.predicted_ms > slo.timeout_ms - spent_ms:
        return Decision(None, Reason.SHED, retry_after_ms=_drain_ms([option]))
    return _decide(option, Reason.PINNED, slo, spent_ms)


def meets_f1(option: Option, slo: Slo) -> bool:
    """Return whether the certificates meet the floors of the SLO and its limit on the loss."""
    if option.certified_f1 < slo.min_f1 or not _meets_answerable_f1(option, slo):
        return False
    if slo.max_f1_loss is None:
        return True
    loss = option.certified_loss
    return loss is not None and loss <= slo.max_f1_loss


def _meets_answerable_f1(option: Option, slo: Slo) -> bool:
    if slo.min_answerable_f1 is None:
        return True
    floor = option.certified_answerable_f1
    return floor is not None and floor >= slo.min_answerable_f1


def _certifies(option: Option, slo: Slo) -> bool:
    """Return whether the plan has every certificate that the SLO needs, whatever their values."""
    loss = slo.max_f1_loss is None or option.certified_loss is not None
    return loss and (slo.min_answerable_f1 is None or option.certified_answerable_f1 is not None)


def escalation_left_ms(slo: Slo, spent_ms: float) -> float:
    """Return the time that the next stage of a cascade may take.

    It may last until the target, under `prefer-accuracy` until the deadline.
    """
    until_ms = slo.timeout_ms if slo.policy is SloPolicy.PREFER_ACCURACY else slo.latency_ms
    return min(until_ms, slo.timeout_ms) - spent_ms


def cheapest(options: Sequence[Option]) -> Option:
    return min(options, key=lambda o: o.price)


def fastest(options: Sequence[Option]) -> Option:
    return min(options, key=lambda o: (o.predicted_ms, o.cost_ms))


def nearest_feasible(slo: Slo, options: Sequence[Option]) -> tuple[Option, ...]:
    """Return the Pareto front of the options on an idle system, the fastest first.

    Only options that meet the latency target or the F1 floors of `slo`, where there are any.
    """
    trusted = [o for o in options if slo.policy is not SloPolicy.STRICT or _trusted(o)]
    paired = slo.max_f1_loss is not None
    front = [o for o in trusted if not any(_dominates(p, o, paired) for p in trusted)]
    meets_one = [o for o in front if meets_f1(o, slo) or o.idle_ms <= slo.latency_ms]
    return tuple(sorted(meets_one or front, key=lambda o: o.idle_ms))


def find_violations(option: Option, slo: Slo, spent_ms: float) -> tuple[SloViolation, ...]:
    """Return what this option is predicted to violate."""
    violations = []
    if option.predicted_ms > slo.latency_ms - spent_ms:
        violations.append(SloViolation.LATE)
    certified = _certifies(option, slo)
    if option.certified_f1 < slo.min_f1 or (certified and not meets_f1(option, slo)):
        violations.append(SloViolation.BELOW_FLOOR)
    if not certified or not _trusted(option):
        violations.append(SloViolation.UNCERTIFIED)
    return tuple(violations)


def rejection_reasons(
    option: Option, slo: Slo, spent_ms: float, failing: Collection[str]
) -> tuple[SloViolation | RejectionReason, ...]:
    """Return every reason against this option; () for one that only costs more than the chosen one."""
    against: list[SloViolation | RejectionReason] = [*find_violations(option, slo, spent_ms)]
    if option.predicted_ms > slo.timeout_ms - spent_ms:
        against.append(RejectionReason.DEADLINE)
    if any(variant in failing for variant in option.plan.variants):
        against.append(RejectionReason.FAILING)
    if slo.variant is not None and option.plan.variants != (slo.variant,):
        against.append(RejectionReason.PINNED)
    return tuple(against)


def _dominates(a: Option, b: Option, paired: bool) -> bool:
    ours, theirs = _badness(a, paired), _badness(b, paired)
    return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))


def _badness(option: Option, paired: bool) -> tuple[float, ...]:
    """Return the criteria that options are compared by, less is better; `paired`: including the loss."""
    loss = 1.0 if option.certified_loss is None else option.certified_loss
    return option.idle_ms, -option.certified_f1, *((loss,) if paired else ())


def _trusted(option: Option) -> bool:
    return option.trust is not Trust.UNCERTIFIED and option.trust is not Trust.BROKEN


def _drain_ms(options: Sequence[Option]) -> float:
    """Return the time until the work in flight is done, as implied by the predictions."""
    return min((o.predicted_ms - o.idle_ms for o in options), default=0.0)


def _refuse(accurate: Sequence[Option], latency_ms: float, target_ms: float) -> Decision:
    """Refuse for good if an idle system could not help, else until the work in flight is done."""
    if not any(o.idle_ms <= latency_ms for o in accurate):
        return Decision(None, Reason.INFEASIBLE)
    if not any(o.idle_ms <= target_ms for o in accurate):
        return Decision(None, Reason.TOO_LATE, retry_after_ms=_drain_ms(accurate))
    return Decision(None, Reason.BUSY, retry_after_ms=_drain_ms(accurate))


def _prefer_latency(
    reachable: Sequence[Option], target_ms: float, slo: Slo, spent_ms: float
) -> Decision:
    in_time = [o for o in reachable if o.predicted_ms <= target_ms]
    unhurried = [o for o in in_time if o.predicted_ms + o.behind_ms <= target_ms]
    if unhurried:
        best = max(unhurried, key=lambda o: (o.certified_f1, -o.cost_ms))
        return _decide(best, Reason.MOST_ACCURATE_IN_TIME, slo, spent_ms)
    if in_time:
        return _decide(cheapest(in_time), Reason.MOST_ACCURATE_IN_TIME, slo, spent_ms)
    return _decide(fastest(reachable), Reason.FASTEST, slo, spent_ms)


def _prefer_accuracy(reachable: Sequence[Option], slo: Slo, spent_ms: float) -> Decision:
    accurate = [o for o in reachable if meets_f1(o, slo)]
    if accurate:
        return _decide(fastest(accurate), Reason.LEAST_LATE, slo, spent_ms)
    best = max(reachable, key=lambda o: (o.certified_f1, -o.cost_ms))
    return _decide(best, Reason.MOST_ACCURATE, slo, spent_ms)


def _decide(option: Option, reason: Reason, slo: Slo, spent_ms: float) -> Decision:
    return Decision(option, reason, find_violations(option, slo, spent_ms))
