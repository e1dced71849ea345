"""The error, in our words, that a decision without an option stands for. Pure."""

from __future__ import annotations

from typing import Any

from gateway.domain import Decision, Option, Reason, Slo
from gateway.errors import BackendUnavailable, BertierError, Infeasible, Overloaded
from gateway.routing import policy

UNPAIRED = (
    "; this catalog certifies no loss to the largest variant: ask for SLO-Min-F1, or certify the repository"
    " with 'bertier-optimize certify'"
)


def refusal(
    decision: Decision, slo: Slo, options: tuple[Option, ...], spent_ms: float = 0.0
) -> BertierError:
    """Return the error to raise; `options` are those that were weighed when `spent_ms` were gone."""
    asked = _asked(slo)
    if decision.reason is Reason.INFEASIBLE:
        points = [describe(o) for o in policy.nearest_feasible(slo, options)]
        why = "" if _has_losses(slo, options) else UNPAIRED
        return Infeasible(f"no plan gives {asked}, even on an idle system{why}", points)
    if decision.reason is Reason.UNAVAILABLE:
        return BackendUnavailable(
            f"the model server fails on what would give {asked}; it is tried again by itself, see /readyz"
        )
    if decision.reason is Reason.TOO_LATE:
        spent = f"{asked} can no longer be kept: too much of the time passed in the gateway"
        return Overloaded(f"{spent}; try again", decision.retry_after_ms)
    soonest = min((o.predicted_ms for o in options), default=0.0)
    numbers = f"{spent_ms:.0f} ms are spent and the fastest plan takes {soonest:.0f} ms now"
    if decision.reason is Reason.SHED:
        return Overloaded(
            f"busy: no plan is predicted to answer before the deadline of {slo.timeout_ms:g} ms:"
            f" {numbers}; try again later, or give more time",
            decision.retry_after_ms,
        )
    return Overloaded(f"busy: {asked} cannot be kept now: {numbers}", decision.retry_after_ms)


def _asked(slo: Slo) -> str:
    asked = f"{slo.latency_ms:g} ms at F1 >= {slo.min_f1:.3f}"
    if slo.min_answerable_f1 is not None:
        asked += f", >= {slo.min_answerable_f1:.3f} of questions with an answer,"
    if slo.max_f1_loss is None:
        return asked
    return f"{asked} and at most {slo.max_f1_loss:.3f} below the largest variant's"


def _has_losses(slo: Slo, options: tuple[Option, ...]) -> bool:
    return slo.max_f1_loss is None or any(o.certified_loss is not None for o in options)


def describe(option: Option) -> dict[str, Any]:
    """Return an option as the fronts show it."""
    return {
        "plan": option.plan.name,
        "certified_f1": option.certified_f1,
        "certified_f1_loss": option.certified_loss,
        "certified_answerable_f1": option.certified_answerable_f1,
        "idle_ms": round(option.idle_ms, 3),
        "predicted_ms": round(option.predicted_ms, 3),
        "cost_ms": round(option.cost_ms, 3),
        "trust": str(option.trust),
    }
