"""Mixes of SLO classes, made from the catalog so that none depends on its size.

Targets are multiples of `unit`: what the dearest variant takes for a typical request on an idle
core. Floors are certified floors of the catalog's direct plans, so that cascades do not change the SLOs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from gateway.catalog.schema import Variant
from gateway.catalog.store import Catalog
from gateway.domain import Slo, SloPolicy, SloRequest
from gateway.qa.codec import TYPICAL_TOKENS
from gateway.slo import DEADLINE_FACTOR, STANDARD_CLASSES, resolve

IMPOSSIBLE_F1 = 0.999


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of requests and its share of all."""

    share: float
    slo: Slo
    feasible: bool = True


Mix = tuple[Kind, ...]


def mixed(catalog: Catalog) -> Mix:
    """Return the mix of the default grid: tight and loose, low and high, 5 % impossible."""
    unit, floors = unit_ms(catalog), sorted(_floors(catalog))
    low, middle, high = floors[0], median(floors), max(0.0, floors[-1] - 0.02)
    latency, accuracy, strict = (
        SloPolicy.PREFER_LATENCY,
        SloPolicy.PREFER_ACCURACY,
        SloPolicy.STRICT,
    )
    return (
        _kind("interactive", 0.25, 1.5 * unit, low, latency),
        _kind("standard", 0.30, 6.0 * unit, middle, latency),
        _kind("accurate", 0.15, 12.0 * unit, high, accuracy),
        _kind("strict", 0.15, 4.0 * unit, low, strict),
        _kind("batch", 0.10, 120.0 * unit, high, accuracy),
        _kind("too-accurate", 0.025, 6.0 * unit, IMPOSSIBLE_F1, strict, feasible=False),
        _kind("too-fast", 0.025, 1.0, high, strict, feasible=False),
    )


def standard(catalog: Catalog) -> Mix:
    """Return the gateway's default class alone: what callers get that send no header."""
    floors = _floors(catalog)
    target = 250.0, max(0.0, max(floors) - 0.02), SloPolicy.PREFER_LATENCY
    return (
        _kind("standard", 0.95, *target),
        _kind("too-fast", 0.05, 1.0, target[1], SloPolicy.STRICT, feasible=False),
    )


def interactive(catalog: Catalog) -> Slo:
    """Return what the gateway's class `interactive` asks for."""
    request = SloRequest(slo_class="interactive")
    return resolve(request, STANDARD_CLASSES, "standard", max(_floors(catalog)))


MIXES: Mapping[str, Callable[[Catalog], Mix]] = {"mixed": mixed, "standard": standard}


def dearest(catalog: Catalog) -> Variant:
    """Return the variant that takes longest for a typical request: "always-largest"."""
    return max(catalog.variants, key=lambda v: v.profile.cell(TYPICAL_TOKENS).p50_ms)


def unit_ms(catalog: Catalog) -> float:
    return dearest(catalog).profile.cell(TYPICAL_TOKENS).p50_ms


def _floors(catalog: Catalog) -> list[float]:
    return [p.certified_f1 for p in catalog.plans if len(p.variants) == 1]


def _kind(
    name: str,
    share: float,
    latency_ms: float,
    min_f1: float,
    policy: SloPolicy,
    *,
    feasible: bool = True,
) -> Kind:
    latency_ms = max(1.0, round(latency_ms))
    timeout_ms = latency_ms * (1 if policy is SloPolicy.STRICT else DEADLINE_FACTOR)
    return Kind(share, Slo(latency_ms, min_f1, policy, timeout_ms, name), feasible)
