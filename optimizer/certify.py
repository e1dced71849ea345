"""Floors that hold with confidence: one-sided bounds on a mean of values in [0, 1]. Pure.

Legend: n independent values (context means), m a candidate for the true mean.
"""

from __future__ import annotations

from math import log, sqrt

import numpy as np

METHOD = "betting (WSR) lower bound over context means, delta split over the plans"
BISECTIONS = 40


def betting_floor(values: np.ndarray, delta: float) -> float:  # values: (n,) in [0, 1]
    """Return a lower bound on the mean that is wrong with probability at most `delta`.

    The capital of a gambler who bets on the mean being above m grows past 1/delta only with
    probability delta if m is the mean; the floor is the least m that survives. The order of the
    values must not depend on them.
    Raises: ValueError for values outside [0, 1].
    Source: Waudby-Smith & Ramdas 2024, theorem 3 and section 4.2 (predictable plug-in).
    """
    if len(values) and (np.min(values) < 0 or np.max(values) > 1):
        raise ValueError("values must lie in [0, 1]")
    bets = _bets(values, delta)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _rejects(values, bets, middle, delta):
            low = middle
        else:
            high = middle
    return low


def _bets(values: np.ndarray, delta: float) -> np.ndarray:
    """Return each step's bet, which may depend only on the values before it."""
    n = len(values)
    counts = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(values)) / (counts + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (counts + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    return np.asarray(np.sqrt(2 * log(1 / delta) / (n * before)))


def _rejects(values: np.ndarray, bets: np.ndarray, m: float, delta: float) -> bool:
    """Is it beyond doubt that the mean is above m?"""
    if m <= 0:
        return True
    capped = np.minimum(bets, 0.75 / m)
    capital = np.cumsum(np.log1p(capped * (values - m)))
    return bool(np.max(capital, initial=-np.inf) >= log(1 / delta))


def hoeffding_floor(values: np.ndarray, delta: float) -> float:
    """Return Hoeffding's lower bound: the plain one to compare with. Source: Hoeffding 1963."""
    return max(0.0, float(np.mean(values)) - sqrt(log(1 / delta) / (2 * len(values))))
