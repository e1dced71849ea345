"""The details of a decision: every plan, its predicted latency, and why it was rejected.

Built only on demand; decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from gateway.domain import Candidate, Option, Size, Slo
from gateway.routing import policy, refusal
from gateway.serving_set import ServingSet

QUANTILES = (0.5, 0.95, 0.99)


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


def describe(candidate: Candidate, chosen: Option | None) -> dict[str, Any]:
    """Return a candidate as the frontends show it."""
    option = candidate.option
    return {
        **refusal.describe(option),
        "p50_ms": round(candidate.p50_ms, 3),
        "p95_ms": round(candidate.p95_ms, 3),
        "p99_ms": round(candidate.p99_ms, 3),
        "wait_ms": round(option.wait_ms, 3),
        "chosen": option is chosen,
        "struck_out_by": [str(word) for word in candidate.rejection_reasons],
    }
