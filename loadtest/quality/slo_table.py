"""Which plan and variant answer which SLO: one real question with many SLOs, no variant pinned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import httpx2

from gateway.catalog.store import Catalog
from loadtest.stack import Stack

QUESTION = "What is the tower used for today?"
CONTEXT = (
    "The water tower on Kilian Hill was built in 1898 to supply the upper town. It went out of"
    " service in 1964 and stood empty for two decades. Today the tower is used as a climbing hall,"
    " and its former tank holds a small exhibition on the history of the waterworks."
)


@dataclass(frozen=True, slots=True)
class Row:
    """One request and what became of it."""

    headers: dict[str, str]
    status: int
    plan: str
    variant: str  # of the plan, that gave the answer
    certified_f1: str
    predicted_ms: str
    met: str
    answer: str


def slos(catalog: Catalog) -> list[dict[str, str]]:
    """Return SLOs that span the catalog: each floor, tight and loose deadlines, every policy."""
    floors = sorted(plan.certified_f1 for plan in catalog.plans)
    found: list[dict[str, str]] = [{}, {"SLO-Class": "interactive"}, {"SLO-Class": "batch"}]
    found += [{"SLO-Min-F1": _down(floor), "SLO-Latency-Ms": "250"} for floor in floors]
    largest, smallest = floors[-1], floors[0]
    for policy in ("prefer-latency", "prefer-accuracy", "strict"):
        found.append({"SLO-Min-F1": _down(largest), "SLO-Latency-Ms": "5", "SLO-Policy": policy})
    found.append({"SLO-Min-F1": "0.99", "SLO-Policy": "prefer-accuracy"})
    found.append({"SLO-Min-F1": "0.99", "SLO-Policy": "strict"})
    found.append({"SLO-Min-F1": _down(smallest / 2), "SLO-Policy": "strict"})
    return found


def _down(floor: float) -> str:
    """Return the floor with three digits: never more than is certified."""
    return f"{math.floor(floor * 1000) / 1000:.3f}"


def ask(stack: Stack, headers: dict[str, str]) -> Row:
    body = {"question": QUESTION, "context": CONTEXT}
    reply = httpx2.post(f"{stack.http_url}/v1/answer", json=body, headers=headers, timeout=30)
    body = reply.json()
    return Row(
        headers=headers,
        status=reply.status_code,
        plan=reply.headers.get("SLO-Plan", "-"),
        variant=reply.headers.get("SLO-Variant", "-"),
        certified_f1=reply.headers.get("SLO-F1", "-"),
        predicted_ms=reply.headers.get("SLO-Predicted-Ms", "-"),
        met=reply.headers.get("SLO-Met", "-"),
        answer=body.get("answer", body.get("detail", "")),
    )
