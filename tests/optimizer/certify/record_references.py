"""Writes what other packages say of the same values: `python -m tests.optimizer.certify.record_references`.

Needs confseq 0.0.11 and MAPIE 1.6.0, in an environment of their own: confseq has no wheels and needs a compiler
with Boost, so neither is installed for the tests. `betting` of confseq is plain Python; its source folder on the
path is enough.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.certify import bounds

RECORDED = Path(__file__).with_name("references.json")
DELTA = 0.05
SAMPLES = (("beta", 17), ("beta", 200), ("coins", 40), ("high", 17), ("rare zeros", 60))
CANDIDATES = (0.3, 0.5, 0.9)
RISKS, COUNTS, ALPHAS = (0.0, 0.05, 0.26, 0.6), (10, 17, 200, 694), (0.1, 0.3, 0.5, 0.7)


def sample(kind: str, n: int) -> np.ndarray:
    """Return values in [0, 1], rounded so that they can be stored."""
    rng = np.random.default_rng(n)
    values = {
        "beta": rng.beta(6, 3, n),
        "coins": rng.binomial(1, 0.6, n),
        "high": rng.beta(30, 3, n),
        "rare zeros": rng.binomial(1, 0.97, n),
    }[kind]
    return np.asarray(np.round(values, 4), dtype=float)


def bets_of(values: np.ndarray, m: float) -> np.ndarray:
    """Return the bets of our gambler who sees the values in this order."""
    rounds = bounds._rounds(values[None], np.ones((1, len(values))), np.array([m]), 1.0, DELTA)
    return np.array([bet[0, 0] for bet, _ in rounds])


def capitals_of(kind: str, n: int) -> list[dict[str, Any]]:
    """Return the capital of confseq's gambler at the end, with our bets, for each candidate mean."""
    from confseq.betting import betting_mart

    values = sample(kind, n)
    found = []
    for m in CANDIDATES:
        bets = bets_of(values, m)
        path = betting_mart(
            values, m, lambdas_fn_positive=lambda _x, _m, b=bets: b, theta=1, trunc_scale=1
        )
        found.append({"kind": kind, "n": n, "m": m, "capital": float(path[-1])})
    return found


def floor_of(kind: str, n: int) -> dict[str, Any]:
    """Return confseq's own lower bound for a fixed number of values, at confidence 1 - DELTA."""
    from confseq.betting import betting_ci

    low, _ = betting_ci(
        sample(kind, n), alpha=DELTA, theta=1, trunc_scale=0.5, m_trunc=True, breaks=1000
    )
    return {"kind": kind, "n": n, "floor": float(low)}


def p_values() -> list[dict[str, Any]]:
    """Return MAPIE's Hoeffding-Bentkus p-values."""
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    found = []
    for n in COUNTS:
        table = compute_hoeffding_bentkus_p_value(np.array(RISKS), n, np.array(ALPHAS))
        found += [
            {"n": n, "risk": risk, "alpha": alpha, "p": float(table[i, j])}
            for i, risk in enumerate(RISKS)
            for j, alpha in enumerate(ALPHAS)
        ]
    return found


def main() -> None:
    setattr(np, "float_", np.float64)  # noqa: B010  # confseq's annotations name it; numpy 2 has it no more
    recorded = {
        "versions": {"confseq": "0.0.11", "mapie": version("mapie"), "numpy": version("numpy")},
        "capitals": [each for kind, n in SAMPLES for each in capitals_of(kind, n)],
        "floors": [floor_of(kind, n) for kind, n in SAMPLES],
        "p_values": p_values(),
    }
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
