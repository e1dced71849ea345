"""The SLO of a request: parsed from headers or metadata, then completed from its class.

A value out of range is refused, never clamped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from gateway.catalog.schema import QA
from gateway.domain import Slo, SloPolicy, SloRequest
from gateway.errors import Forbidden, InvalidHeader, UnknownClass

MAX_LATENCY_MS = 60_000.0
DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?|\.[0-9]{1,9}")
SPACE = " \t"  # optional whitespace around a header value
LONGEST_TIMEOUT_MS = 1e9  # the longest deadline a request may set
CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
UNKNOWN_CLASS = "unknown"  # metric label of a class that does not exist
DEADLINE_FACTOR = 4.0
USUAL_URGENCY = 3
PRIORITY = "a structured-field dictionary with u=0 to u=7, such as u=1 or u=5, i"

# A structured-field dictionary (RFC 9651, section 3.2), without inner lists, which Priority does not need.
_KEY = r"[a-z*][a-z0-9_.*-]*"
_ITEM = (
    r"-?[0-9]{1,12}\.[0-9]{1,3}|-?[0-9]{1,15}|\?[01]"  # decimal, integer, boolean
    r'|"(?:[ !#-\[\]-~]|\\["\\])*"|[A-Za-z*][!#$%&\'*+.^_`|~0-9A-Za-z:/-]*|:[A-Za-z0-9+/=]*:'
)
MEMBER = re.compile(
    rf"(?P<key>{_KEY})(?:=(?P<value>{_ITEM}))?(?:;[ ]*{_KEY}(?:=(?:{_ITEM}))?)*[ \t]*(?P<next>,[ \t]*|\Z)"
)

Lookup = Callable[[str], str | None]  # a header's value by its lower-case name


@dataclass(frozen=True, slots=True)
class SloClass:
    """The defaults of one class of requests.

    `min_f1` None: the largest certified floor of the catalog minus `below_best`, or no floor where a
    limit on the loss to the largest variant is set instead.
    `timeout_ms` None: four times the target; under `strict` the target itself.
    """

    latency_ms: float
    policy: SloPolicy
    min_f1: float | None = None
    below_best: float = 0.02
    timeout_ms: float | None = None
    max_f1_loss: float | None = None


STANDARD_CLASSES: Mapping[str, SloClass] = {
    "interactive": SloClass(50.0, SloPolicy.PREFER_LATENCY, below_best=0.20),
    "standard": SloClass(250.0, SloPolicy.PREFER_LATENCY),
    "batch": SloClass(5000.0, SloPolicy.PREFER_ACCURACY),
}


def same_but_for_case(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that differ in case only; None: there are none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            return other, name
    return None


def class_problem(name: str, defaults: SloClass) -> str | None:
    """Return what is wrong with a class of the settings; None: nothing."""
    if not CLASS_NAME.fullmatch(name) or name == UNKNOWN_CLASS:
        return f"{name!r} is not a valid class name: use 1 to 64 letters, digits and . _ - that start with a letter or digit; {UNKNOWN_CLASS} is reserved"
    limits = {
        "latency_ms": (1.0, MAX_LATENCY_MS),
        "min_f1": (0.0, 1.0),
        "below_best": (0.0, 1.0),
        "max_f1_loss": (0.0, 1.0),
        "timeout_ms": (defaults.latency_ms, LONGEST_TIMEOUT_MS),
    }
    for field, (low, high) in limits.items():
        value = getattr(defaults, field)
        if value is not None and not low <= value <= high:
            unit = " ms" if field.endswith("_ms") else ""
            least = "latency_ms, " if field == "timeout_ms" else ""
            return f"{name}.{field} is {value:g}, it must be from {least}{low:g} to {high:g}{unit}"
    return None


def equal_classes(classes: Mapping[str, SloClass]) -> list[tuple[str, str]]:
    """Return the pairs of classes with equal defaults."""
    return [
        (one, other)
        for (one, defaults), (other, same) in combinations(sorted(classes.items()), 2)
        if defaults == same
    ]


def parse(lookup: Lookup) -> SloRequest:
    """Return the SLO fields that the headers set. Raises: InvalidHeader."""

    def value(name: str) -> str | None:
        found = lookup(name)
        return None if found is None else found.strip(SPACE)

    def decimal(name: str, low: float, high: float) -> float | None:
        found = value(name.lower())
        return None if found is None else _decimal(name, found, low, high)

    policy, explain = value("slo-policy"), value("slo-explain")
    return SloRequest(
        latency_ms=decimal("SLO-Latency-Ms", 1.0, MAX_LATENCY_MS),
        min_f1=decimal("SLO-Min-F1", 0.0, 1.0),
        max_f1_loss=decimal("SLO-Max-F1-Loss", 0.0, 1.0),
        min_answerable_f1=decimal("SLO-Min-Answerable-F1", 0.0, 1.0),
        slo_class=value("slo-class"),
        policy=None if policy is None else _policy(policy),
        priority=_priority(value("priority") or ""),
        variant=value("slo-variant"),
        explain=explain is not None and _flag("SLO-Explain", explain),
        # Envoy's 0 means no deadline.
        timeout_ms=decimal("x-envoy-expected-rq-timeout-ms", 0.0, LONGEST_TIMEOUT_MS) or None,
    )


def longest_timeout_ms(classes: Mapping[str, SloClass]) -> float:
    """Return the longest deadline that a request can have."""
    own = (each.timeout_ms for each in classes.values())
    return max((DEADLINE_FACTOR * MAX_LATENCY_MS, *(t for t in own if t is not None)))


def resolve(
    request: SloRequest,
    classes: Mapping[str, SloClass],
    default_class: str,
    best_floor: float,
    task: str = QA,
) -> Slo:
    """Return the request's SLO with its class's defaults filled in.

    `best_floor`: the largest certified floor of the task. `task` "": not known yet.
    Raises: UnknownClass, Forbidden, InvalidHeader.
    """
    name = default_class if request.slo_class is None else request.slo_class
    if name not in classes:
        raise UnknownClass(name, sorted(classes))
    defaults = classes[name]
    if request.min_answerable_f1 is not None and task not in (QA, ""):
        value = f"{request.min_answerable_f1:g}"
        raise InvalidHeader("SLO-Min-Answerable-F1", value, "none with a classification")
    latency_ms = request.latency_ms or defaults.latency_ms
    _check_tightest(latency_ms, request.tightest_class, classes)
    policy = request.policy or defaults.policy
    loss = defaults.max_f1_loss if request.max_f1_loss is None else request.max_f1_loss
    floor = defaults.min_f1
    if floor is None:
        elsewise = loss is not None or request.min_answerable_f1 is not None
        floor = 0.0 if elsewise else max(0.0, best_floor - defaults.below_best)
    return Slo(
        latency_ms=latency_ms,
        min_f1=floor if request.min_f1 is None else request.min_f1,
        policy=policy,
        timeout_ms=_timeout_ms(request, defaults, policy, latency_ms),
        slo_class=name,
        priority=request.priority,
        variant=request.variant,
        explain=request.explain,
        max_f1_loss=loss,
        min_answerable_f1=request.min_answerable_f1,
        task=task,
    )


def _check_tightest(
    latency_ms: float, tightest: str | None, classes: Mapping[str, SloClass]
) -> None:
    """Raise Forbidden where the latency is lower than the caller's key allows."""
    if tightest is not None and latency_ms < classes[tightest].latency_ms:
        raise Forbidden(
            f"SLO-Latency-Ms: {latency_ms:g} is not allowed with this key; allowed: from"
            f" {classes[tightest].latency_ms:g}, the class {tightest}"
        )


def _timeout_ms(
    request: SloRequest, defaults: SloClass, policy: SloPolicy, latency_ms: float
) -> float:
    own = defaults.timeout_ms or DEADLINE_FACTOR * latency_ms
    if policy is SloPolicy.STRICT:
        own = latency_ms
    return own if request.timeout_ms is None else min(own, request.timeout_ms)


def _decimal(name: str, value: str, low: float, high: float) -> float:
    number = float(value) if DECIMAL.fullmatch(value) else math.nan
    if not low <= number <= high:
        raise InvalidHeader(name, value, f"a decimal from {low:g} to {high:g}")
    return number


def _policy(value: str) -> SloPolicy:
    try:
        return SloPolicy(value)
    except ValueError as exc:
        raise InvalidHeader("SLO-Policy", value, ", ".join(SloPolicy)) from exc


def _priority(value: str) -> int:
    """Return the urgency of an RFC 9218 Priority field; members other than `u` and `i` are ignored."""
    said = _members(value)
    urgency, incremental = said.get("u", str(USUAL_URGENCY)), said.get("i", "?0")
    if urgency not in tuple("01234567") or incremental not in ("?0", "?1"):
        raise InvalidHeader("Priority", value, PRIORITY)
    return int(urgency)


def _members(value: str) -> dict[str, str]:
    """Return the members of a dictionary as text; the last one of a name wins. Raises: InvalidHeader."""
    said: dict[str, str] = {}
    at, more = 0, bool(value)
    while more:
        found = MEMBER.match(value, at)
        if found is None:
            raise InvalidHeader("Priority", value, PRIORITY)
        said[found["key"]] = found["value"] or "?1"
        at, more = found.end(), found["next"] != ""
    return said


def _flag(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise InvalidHeader(name, value, "0 or 1")
    return value == "1"
