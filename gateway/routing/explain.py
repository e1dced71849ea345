"""A decision in detail: every plan, its predicted latency and why it was rejected; the error for a refusal.

Decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from gateway.domain import Candidate, Decision, Option, Reason, Size, Slo
from gateway.errors import BackendUnavailable, BertierError, Infeasible, Overloaded
from gateway.routing import policy
from gateway.serving_set import ServingSet

QUANTILES = (0.5, 0.95, 0.99)
UNPAIRED = (
    "; this catalog certifies no loss to the largest variant: use SLO-Min-F1, or certify the repository"
    " with 'bertier-optimize certify'"
)


def list_candidates(
    serving: ServingSet,
    slo: Slo,
    size: Size,
    options: Sequence[Option],
    spent_ms: float,
    now_ms: float,
    failing: Collection[str],
) -> tuple[Candidate, ...]:
    """Return the options with their predictions and rejection reasons, `spent_ms` after the arrival."""
    plans = [option.plan for option in options]
    p50, p95, p99 = (serving.latency.predict(plans, size, q, now_ms) for q in QUANTILES)
    return tuple(
        Candidate(
            option,
            p50[i].predicted_ms,
            p95[i].predicted_ms,
            p99[i].predicted_ms,
            policy.rejection_reasons(option, slo, spent_ms, failing),
        )
        for i, option in enumerate(options)
    )


def refusal(
    decision: Decision, slo: Slo, options: tuple[Option, ...], spent_ms: float = 0.0
) -> BertierError:
    """Return the error to raise; `options`: the candidates, `spent_ms` after the arrival."""
    wanted = _describe_slo(slo)
    if decision.reason is Reason.INFEASIBLE:
        points = [describe_option(o) for o in policy.nearest_feasible(slo, options)]
        why = "" if _has_losses(slo, options) else UNPAIRED
        return Infeasible(f"no plan meets {wanted}, even on an idle system{why}", points)
    if decision.reason is Reason.UNAVAILABLE:
        return BackendUnavailable(
            f"the model server fails for every plan that meets {wanted}; the gateway retries by itself, see /readyz"
        )
    if decision.reason is Reason.TOO_LATE:
        late = f"{wanted} cannot be met any more: the request waited too long in the gateway"
        return Overloaded(f"{late}; try again", decision.retry_after_ms)
    soonest = min((o.predicted_ms for o in options), default=0.0)
    numbers = f"{spent_ms:.0f} ms have passed and the fastest plan takes {soonest:.0f} ms now"
    if decision.reason is Reason.SHED:
        return Overloaded(
            f"busy: no plan is predicted to answer before the deadline of {slo.timeout_ms:g} ms:"
            f" {numbers}; try again later, or allow more time",
            decision.retry_after_ms,
        )
    return Overloaded(
        f"busy: {wanted} cannot be met now: {numbers}; try again later", decision.retry_after_ms
    )


def describe_candidate(candidate: Candidate, chosen: Option | None) -> dict[str, Any]:
    """Return a candidate as the frontends show it."""
    option = candidate.option
    return {
        **describe_option(option),
        "p50_ms": round(candidate.p50_ms, 3),
        "p95_ms": round(candidate.p95_ms, 3),
        "p99_ms": round(candidate.p99_ms, 3),
        "wait_ms": round(option.wait_ms, 3),
        "chosen": option is chosen,
        "rejection_reasons": [str(word) for word in candidate.rejection_reasons],
    }


def describe_option(option: Option) -> dict[str, Any]:
    """Return an option as the frontends show it."""
    return {
        "plan": option.plan.name,
        "certified_f1": option.certified_f1,
        "certified_f1_loss": option.certified_loss,
        "certified_answerable_f1": option.certified_answerable_f1,
        "floor_scope": str(option.plan.certificate.floor_scope),
        "idle_ms": round(option.idle_ms, 3),
        "predicted_ms": round(option.predicted_ms, 3),
        "cost_ms": round(option.cost_ms, 3),
        "trust": str(option.trust),
    }


def _describe_slo(slo: Slo) -> str:
    wanted = f"{slo.latency_ms:g} ms at F1 >= {slo.min_f1:.3f}"
    if slo.min_answerable_f1 is not None:
        wanted += f", >= {slo.min_answerable_f1:.3f} of questions with an answer,"
    if slo.max_f1_loss is None:
        return wanted
    return f"{wanted} and at most {slo.max_f1_loss:.3f} below the largest variant's"


def _has_losses(slo: Slo, options: tuple[Option, ...]) -> bool:
    return slo.max_f1_loss is None or any(o.certified_loss is not None for o in options)
