"""What a newcomer is told when the gateway is up: where it answers, and a request to try."""

from __future__ import annotations

from math import floor

EXAMPLE_MIN_F1 = 0.35  # a test holds it against the shipped catalog, and the README against this
EXAMPLE = (
    '{"question": "Who gave their name to Normandy?", "context": "The Normans were the people who'
    ' in the 10th and 11th centuries gave their name to Normandy, a region in France."}'
)


def ready_text(
    host: str,
    port: int,
    *,
    tls: bool = False,
    keys: bool = False,
    apart: bool = False,
    playground: bool = True,
    best_floor: float = 1.0,
) -> str:
    """Return what a newcomer needs once questions can be answered: the URL and a request.

    `apart`: metrics have a port of their own. `best_floor`: the largest certified floor; no more is asked for.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 (compared, not bound)
    url = f"{'https' if tls else 'http'}://{host}:{port}"
    key = ' -H "Authorization: Bearer $BERTIER_API_KEY"' if keys else ""
    min_f1 = min(EXAMPLE_MIN_F1, floor(100 * best_floor) / 100)
    metrics = "" if apart else f", metrics: {url}/metrics"
    look = f"in a browser: {url}/, " if playground else ""
    trust = "(add --cacert PEM if an authority of your own signed its certificate)\n" if tls else ""
    return (
        f"\nbertier answers on {url}  ({look}state: {url}/readyz{metrics})\n\n"
        f"curl -i {url}/v1/answer{key} -H 'SLO-Latency-Ms: 100' -H 'SLO-Min-F1: {min_f1:g}'"
        f" -H 'Content-Type: application/json' \\\n  -d '{EXAMPLE}'\n"
        f"{trust}"
    )
