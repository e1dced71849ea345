"""What may be published: nothing dominated, nothing unmeasured, and what was asked for. Pure."""

from __future__ import annotations

from math import ceil

from gateway.catalog import Catalog
from gateway.published import Certificate, Plan, Variant

BUCKETS = (128, 384)  # tokens; a variant must be measured there, and is compared there


def unprofiled(catalog: Catalog) -> list[str]:
    """Return the variants whose latency is unknown at a length that they are compared at."""
    return [v.name for v in catalog.variants if not all(_has_cell(v, b) for b in BUCKETS)]


def _has_cell(variant: Variant, bucket: int) -> bool:
    return any(c.batch == 1 and c.bucket == bucket for c in variant.profile.cells)


def dominated(catalog: Catalog) -> dict[str, str]:
    """Return dominated variant -> the first one that dominates it.

    One dominates another that is no faster at p95, no smaller and has no higher floor; of two that
    are equal in all of it, the first does. Raises: ValueError for an unprofiled variant.
    """
    costs = {v.name: _costs(v, catalog.direct(v.name)) for v in catalog.variants}
    names = list(costs)
    found = {}
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            if i != j and _dominates(costs[other], costs[name], first=j < i):
                found[name] = other
                break
    return found


def _costs(variant: Variant, plan: Plan) -> tuple[float, ...]:
    """Return what a variant is compared by; less is better."""
    p95 = [variant.profile.cell(bucket).p95_ms for bucket in BUCKETS]
    return *p95, variant.size_bytes, -plan.certified_f1


def _dominates(a: tuple[float, ...], b: tuple[float, ...], *, first: bool) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and (a != b or first)


def unmet(catalog: Catalog, min_floor: float | None) -> str | None:
    """Return why no plan is certified at `min_floor`, with the nearest and what binds it."""
    if min_floor is None or catalog.best_floor >= min_floor:
        return None
    nearest = max(catalog.plans, key=lambda plan: plan.certified_f1)
    certificate = nearest.certificate
    return (
        f"no variant is certified at F1 {min_floor:g}: the nearest is {nearest.name} at"
        f" {certificate.floor:.4f} (mean F1 {certificate.f1:.4f} over {certificate.n_contexts}"
        f" contexts); what binds is {_binding(certificate, min_floor)}"
    )


def _binding(certificate: Certificate, min_floor: float) -> str:
    """Name the constraint; a margin shrinks with the root of the number of contexts."""
    room = certificate.f1 - min_floor
    if room <= 0:
        return (
            "its accuracy: even the mean is below, so no number of contexts would do;"
            " train it further or lower [certify] min_floor"
        )
    margin = certificate.f1 - certificate.floor
    needed = ceil(certificate.n_contexts * (margin / room) ** 2)
    return (
        f"the evidence: the mean is above, and about {needed} contexts would certify it;"
        " let another [[data]] certify, or raise [certify] delta"
    )
