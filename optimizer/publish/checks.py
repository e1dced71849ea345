"""Publish checks: every variant is measured, none is dominated, and the wanted floor is met. Pure."""

from __future__ import annotations

from math import ceil

from gateway.catalog.schema import Certificate, Plan, Variant
from gateway.catalog.store import Catalog

BUCKETS = (128, 384)  # tokens; a variant must be measured there, and is compared there


def unprofiled(catalog: Catalog) -> list[str]:
    """Return the variants whose latency is unknown at a length that they are compared at."""
    return [v.name for v in catalog.variants if not all(_has_cell(v, b) for b in BUCKETS)]


def _has_cell(variant: Variant, bucket: int) -> bool:
    return any(c.batch == 1 and c.bucket == bucket for c in variant.profile.cells)


def dominated(catalog: Catalog) -> dict[str, str]:
    """Return dominated variant -> the first one that dominates it.

    A variant dominates another one of its task that is no faster at p95, no smaller and has no higher floor. Of two
    equal variants the first dominates. Raises: ValueError for an unprofiled variant.
    """
    costs = {v.name: _costs(v, catalog.direct(v.name)) for v in catalog.variants}
    names, task = list(costs), {v.name: v.task for v in catalog.variants}
    found = {}
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            if (
                i != j
                and task[name] == task[other]
                and _dominates(costs[other], costs[name], first=j < i)
            ):
                found[name] = other
                break
    return found


def _costs(variant: Variant, plan: Plan) -> tuple[float, ...]:
    """Return the values that variants are compared by; less is better."""
    p95 = [variant.profile.cell(bucket).p95_ms for bucket in BUCKETS]
    return *p95, variant.size_bytes, -plan.certified_f1


def _dominates(a: tuple[float, ...], b: tuple[float, ...], *, first: bool) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and (a != b or first)


def no_better_than_silence(catalog: Catalog) -> dict[str, Certificate]:
    """Return the variants that score no more than a constant answer ("no answer", one label), on the certifying split."""
    found = {v.name: catalog.direct(v.name).certificate for v in catalog.variants}
    return {
        name: certificate
        for name, certificate in found.items()
        if certificate.constant_f1 is not None and certificate.f1 <= certificate.constant_f1
    }


def unmet(catalog: Catalog, min_floor: float | None) -> str | None:
    """Return why no plan is certified at `min_floor`: the nearest plan and its binding constraint."""
    if min_floor is None or catalog.best_floor >= min_floor:
        return None
    nearest = max(catalog.plans, key=lambda plan: plan.certified_f1)
    certificate = nearest.certificate
    score = "accuracy" if catalog.tasks else "F1"
    units = f"{certificate.n_clusters} groups or texts" if catalog.tasks else _units(certificate)
    return (
        f"no variant is certified at {score} {min_floor:g}: the nearest is {nearest.name} at"
        f" {certificate.floor:.4f} (mean {score} {certificate.f1:.4f} over {units});"
        f" the binding constraint is {_binding(certificate, min_floor)}"
    )


def _units(certificate: Certificate) -> str:
    if not certificate.n_clusters:
        return f"{certificate.n_contexts} contexts"
    return f"{certificate.n_clusters} articles or contexts of unknown article"


def _binding(certificate: Certificate, min_floor: float) -> str:
    """Name the constraint; a margin shrinks with the root of the number of clusters."""
    lowest = min(certificate.scopes, key=lambda s: s.floor, default=None)
    f1 = certificate.f1 if lowest is None else lowest.f1
    n = certificate.n_contexts if lowest is None else lowest.n_clusters
    if f1 <= min_floor:
        return (
            "its accuracy: even the mean F1 is below, so more questions would not help;"
            " train it further or lower [certify] min_floor"
        )
    needed = ceil(n * ((f1 - certificate.floor) / (f1 - min_floor)) ** 2)
    what = "contexts" if lowest is None else lowest.name
    return (
        f"the number of questions: the mean F1 is above, and about {needed} {what} instead of {n}"
        " would certify it; let another [[data]] that was not used before certify"
    )
