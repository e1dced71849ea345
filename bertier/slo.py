"""The SLO of a request as arguments, and as the headers that both protocols carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict


class SloArguments(TypedDict, total=False):
    """The SLO arguments of a question; absent ones come from the SLO class."""

    latency_ms: float  # 1 to 60000, end to end in the gateway
    min_f1: float  # 0 to 1, floor on the certified F1 of the plan
    max_f1_loss: float  # 0 to 1, certified loss to the largest variant
    min_answerable_f1: float  # 0 to 1, floor on the certified F1 of questions that have an answer
    slo_class: str
    policy: str  # strict, prefer-latency, prefer-accuracy
    priority: int  # 0, the most urgent, to 7
    variant: str  # this one, whatever it costs
    explain: bool


HEADERS: Final[Mapping[str, str]] = {
    "latency_ms": "slo-latency-ms",
    "min_f1": "slo-min-f1",
    "max_f1_loss": "slo-max-f1-loss",
    "min_answerable_f1": "slo-min-answerable-f1",
    "slo_class": "slo-class",
    "policy": "slo-policy",
    "priority": "priority",
    "variant": "slo-variant",
    "explain": "slo-explain",
}


def headers_of(slo: SloArguments) -> dict[str, str]:
    """Return the SLO as headers. Raises: TypeError for an unknown argument."""
    return {HEADERS[name]: _word(name, value) for name, value in _known(slo) if value is not None}


def json_of(slo: SloArguments) -> dict[str, Any]:
    """Return the SLO as JSON, for an item of a list over HTTP."""
    return {"class" if n == "slo_class" else n: v for n, v in _known(slo) if v is not None}


def _known(slo: SloArguments) -> list[tuple[str, Any]]:
    unknown = [name for name in slo if name not in HEADERS]
    if unknown:
        raise TypeError(f"{unknown[0]}: no such argument; the arguments are {', '.join(HEADERS)}")
    return list(slo.items())


def _word(name: str, value: Any) -> str:
    if name == "priority":
        return f"u={value}"
    if name == "explain":
        return "1" if value else "0"
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")  # no exponent: the grammar has none
    return str(value)
