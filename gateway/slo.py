"""The SLO of a request: read from headers or metadata by one grammar, filled in by its class.

Values are refused, never clamped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.domain import Slo, SloPolicy, SloRequest
from gateway.errors import InvalidHeader, UnknownClass

MAX_LATENCY_MS = 60_000.0
PRIORITY = re.compile(r"(?:^|,)\s*u=([^,;]*)")
DECIMAL = re.compile(r"\d{1,9}(\.\d{1,9})?|\.\d{1,9}")
DEADLINE_FACTOR = 4.0

Lookup = Callable[[str], str | None]  # a header's value by its lower-case name


@dataclass(frozen=True, slots=True)
class SloClass:
    """The defaults of one class of requests.

    `min_f1` None: the largest certified floor of the catalog less `below_best`.
    `timeout_ms` None: four times the target; under `strict` the target itself.
    """

    latency_ms: float
    policy: SloPolicy
    min_f1: float | None = None
    below_best: float = 0.02
    timeout_ms: float | None = None


STANDARD_CLASSES: Mapping[str, SloClass] = {
    "interactive": SloClass(50.0, SloPolicy.PREFER_LATENCY),
    "standard": SloClass(250.0, SloPolicy.PREFER_LATENCY),
    "batch": SloClass(5000.0, SloPolicy.PREFER_ACCURACY),
}


def parse(lookup: Lookup) -> SloRequest:
    """Return what the headers ask for; an `X-` prefix is accepted. Raises: InvalidHeader."""

    def value(name: str) -> str | None:
        plain = lookup(name.lower())
        return plain if plain is not None else lookup(f"x-{name.lower()}")

    policy, explain = value("SLO-Policy"), value("SLO-Explain")
    return SloRequest(
        latency_ms=_decimal("SLO-Latency-Ms", value("SLO-Latency-Ms"), 1.0, MAX_LATENCY_MS),
        min_f1=_decimal("SLO-Min-F1", value("SLO-Min-F1"), 0.0, 1.0),
        slo_class=value("SLO-Class"),
        policy=None if policy is None else _policy(policy),
        priority=_priority(value("Priority")),
        variant=value("SLO-Variant"),
        explain=explain is not None and _flag("SLO-Explain", explain),
        timeout_ms=_envoy_timeout(lookup("x-envoy-expected-rq-timeout-ms")),
    )


def resolve(
    request: SloRequest, classes: Mapping[str, SloClass], default_class: str, best_floor: float
) -> Slo:
    """Return the request's SLO with its class's defaults filled in. Raises: UnknownClass."""
    name = default_class if request.slo_class is None else request.slo_class
    if name not in classes:
        raise UnknownClass(name, sorted(classes))
    defaults = classes[name]
    latency_ms = request.latency_ms or defaults.latency_ms
    policy = request.policy or defaults.policy
    floor = defaults.min_f1
    if floor is None:
        floor = max(0.0, best_floor - defaults.below_best)
    return Slo(
        latency_ms=latency_ms,
        min_f1=floor if request.min_f1 is None else request.min_f1,
        policy=policy,
        timeout_ms=_timeout_ms(request, defaults, policy, latency_ms),
        slo_class=name,
        priority=request.priority,
        variant=request.variant,
        explain=request.explain,
    )


def _timeout_ms(
    request: SloRequest, defaults: SloClass, policy: SloPolicy, latency_ms: float
) -> float:
    own = defaults.timeout_ms or DEADLINE_FACTOR * latency_ms
    if policy is SloPolicy.STRICT:
        own = latency_ms
    return own if request.timeout_ms is None else min(own, request.timeout_ms)


def _decimal(name: str, value: str | None, low: float, high: float) -> float | None:
    if value is None:
        return None
    text = value.strip()
    number = float(text) if DECIMAL.fullmatch(text) else math.nan
    if not low <= number <= high:
        raise InvalidHeader(name, value, f"a decimal from {low:g} to {high:g}")
    return number


def _policy(value: str) -> SloPolicy:
    try:
        return SloPolicy(value.strip())
    except ValueError as exc:
        raise InvalidHeader("SLO-Policy", value, ", ".join(SloPolicy)) from exc


def _priority(value: str | None) -> int:
    """Return the urgency of an RFC 9218 Priority field; its other parameters are ignored."""
    found = PRIORITY.search(value) if value is not None else None
    if value is None or found is None:
        return 3
    urgency = found.group(1).strip()
    if urgency not in tuple("01234567"):
        raise InvalidHeader("Priority", value, "u=0 to u=7")
    return int(urgency)


def _flag(name: str, value: str) -> bool:
    if value.strip() not in ("0", "1"):
        raise InvalidHeader(name, value, "0 or 1")
    return value.strip() == "1"


def _envoy_timeout(value: str | None) -> float | None:
    """Return Envoy's deadline; 0 means none there."""
    return _decimal("x-envoy-expected-rq-timeout-ms", value, 0.0, 1e9) or None
