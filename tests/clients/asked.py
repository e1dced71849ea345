"""What every client asks, and how it says what it got. Imports nothing of the gateway."""

from __future__ import annotations

import sys

CONTEXT = (
    "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy,"
    " a region in France."
)
QUESTION = "Who gave their name to Normandy?"
NO_ANSWER = "How tall is Mount Everest?"
SLO = {"SLO-Latency-Ms": "5000", "SLO-Min-F1": "0.3"}

MOST_ACCURATE = {"SLO-Min-F1": "0.95", "SLO-Policy": "prefer-accuracy"}


def addresses() -> tuple[str, str]:
    """Return the gateway's URL, and host:port of its gRPC."""
    http_url, grpc_target = sys.argv[1:3]
    return http_url, grpc_target


def say(what: str, got: object) -> None:
    print(f"{what}: {got}")


def check_answer(text: str, start: int, end: int) -> None:
    """Fail unless it is a piece of the context that names the Normans."""
    assert CONTEXT[start:end] == text, (text, start, end)
    assert "Normans" in text, text
