"""Picks the scope of a catalog's floors and losses that requests are routed by. Pure.

A catalog stores the lower of all scopes. Floors of answerable questions always stay the lower ones.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.catalog.schema import FloorScope, Plan
from gateway.catalog.store import Catalog


def in_scope(catalog: Catalog, scope: FloorScope) -> Catalog:
    """Return the catalog with the floors and losses of the scope.

    A certificate without scopes stays as it is. A loss that is not known for each scope stays the larger one.
    """
    if scope is FloorScope.LOWER:
        return catalog
    return replace(catalog, plans=tuple(_of_all_clusters(plan) for plan in catalog.plans))


def _of_all_clusters(plan: Plan) -> Plan:
    certificate, paired = plan.certificate, plan.certificate.paired
    if not certificate.scopes:
        return plan
    if paired is not None and paired.scopes:
        paired = replace(paired, loss=paired.scopes[0].loss)
    floor = certificate.scopes[0].floor  # the first scope is all clusters
    changed = replace(certificate, floor=floor, paired=paired, floor_scope=FloorScope.ALL)
    return replace(plan, certificate=changed)
