"""The message printed when the gateway is ready: its URLs and an example request."""

from __future__ import annotations

import json
from math import floor
from pathlib import Path

from gateway.catalog.store import Task

EXAMPLE_MIN_F1 = 0.42  # a test holds it against the shipped catalog, and the README against this
EXAMPLE = (
    '{"question": "Who gave their name to Normandy?", "context": "The Normans were the people who'
    ' in the 10th and 11th centuries gave their name to Normandy, a region in France."}'
)
EXAMPLE_TEXT = "Who gave their name to Normandy?"
EXAMPLE_PAIR = "The Normans gave their name to Normandy, a region in France."


def ready_text(
    host: str,
    port: int,
    *,
    tls: bool = False,
    keys: bool = False,
    apart: bool = False,
    playground: bool = True,
    best_floor: float = 1.0,
    classification: Task | None = None,
    grpc_port: int | None = None,
    uds: Path | None = None,
) -> str:
    """Return the URL and an example request, printed once the gateway is ready.

    `uds`: HTTP listens there, not at `port`. `apart`: metrics have a port of their own. `best_floor`: the
    largest certified floor, an upper bound for the F1 of the example. `classification`: what is served, where
    questions are not.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 (compared, not bound)
    scheme = "https" if tls else "http"
    url = f"{scheme}://{host}:{port}" if uds is None else f"{scheme}://localhost"
    at, through = (url, "") if uds is None else (f"the Unix socket {uds}", f" --unix-socket {uds}")
    grpc = "" if grpc_port is None else f"gRPC on {host}:{grpc_port}  "
    key = ' -H "Authorization: Bearer $BERTIER_API_KEY"' if keys else ""
    min_f1 = min(EXAMPLE_MIN_F1, floor(100 * best_floor) / 100)
    path, body, floor_header = "/v1/answer", EXAMPLE, f" -H 'SLO-Min-F1: {min_f1:g}'"
    if classification is not None:
        path, body, floor_header = "/v1/classify", _example_of(classification), ""
    metrics = "" if apart else f", metrics: {url}/metrics"
    look = f"in a browser: {url}/, " if playground and uds is None else ""
    trust = "(add --cacert PEM if an authority of your own signed its certificate)\n" if tls else ""
    return (
        f"\nbertier answers on {at}  {grpc}({look}state: {url}/readyz{metrics})\n\n"
        f"curl -i{through} {url}{path}{key} -H 'SLO-Latency-Ms: 100'{floor_header}"
        f" -H 'Content-Type: application/json' \\\n  -d '{body}'\n"
        f"{trust}"
    )


def _example_of(task: Task) -> str:
    """Return the body of an example request for a classification."""
    pair = {"text_pair": EXAMPLE_PAIR} if task.pair else {}
    return json.dumps({"text": EXAMPLE_TEXT, **pair, "task": task.name})
