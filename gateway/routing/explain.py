"""The whole decision about one request: every plan, what was predicted for it, and what struck it out.

Made only where it is asked for; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from gateway.domain import Option, Size, Slo, Weighed
from gateway.routing import policy, refusal
from gateway.serving_set import ServingSet

QUANTILES = (0.5, 0.95, 0.99)


def weigh(
    serving: ServingSet,
    promise: Slo,
    size: Size,
    options: Sequence[Option],
    spent_ms: float,
    now_ms: float,
    failing: Collection[str],
) -> tuple[Weighed, ...]:
    """Return the options as they were weighed at that moment; `spent_ms` of the time was gone."""
    plans = [option.plan for option in options]
    p50, p95, p99 = (serving.latency.predict(plans, size, q, now_ms) for q in QUANTILES)
    return tuple(
        Weighed(
            option,
            p50[i].predicted_ms,
            p95[i].predicted_ms,
            p99[i].predicted_ms,
            policy.struck_out(option, promise, spent_ms, failing),
        )
        for i, option in enumerate(options)
    )


def describe(weighed: Weighed, chosen: Option | None) -> dict[str, Any]:
    """Return a weighed option as the fronts show it."""
    option = weighed.option
    return {
        **refusal.describe(option),
        "p50_ms": round(weighed.p50_ms, 3),
        "p95_ms": round(weighed.p95_ms, 3),
        "p99_ms": round(weighed.p99_ms, 3),
        "wait_ms": round(option.wait_ms, 3),
        "chosen": option is chosen,
        "struck_out_by": [str(word) for word in weighed.struck_out_by],
    }
