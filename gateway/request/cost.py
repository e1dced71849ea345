"""The compute of an answer, compared with the largest variant's. Pure."""

from __future__ import annotations

from gateway.catalog.schema import Plan
from gateway.domain import Cost, Size
from gateway.serving_set import ServingSet


def of_answer(serving: ServingSet, plan: Plan, answered_by: str, size: Size) -> Cost:
    """Return the cost of the variants of a plan that were asked, the last of which answered.

    By the profiles of this host: ms of one core for windows of this size.
    """
    asked = plan.variants[: plan.variants.index(answered_by) + 1]
    largest = serving.largest
    return Cost(
        compute_ms=sum(_compute_ms(serving, variant, size) for variant in asked),
        largest_variant=largest,
        largest_compute_ms=_compute_ms(serving, largest, size),
    )


def _compute_ms(serving: ServingSet, variant: str, size: Size) -> float:
    return serving.profiles[variant].cell(size.bucket).p50_ms * size.n_windows
