"""Floors that hold with confidence: one-sided bounds on a mean of values in [0, 1]. Pure.

Legend: n independent values (context means), m a candidate for the true mean.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, e, exp, log

import numpy as np
from scipy.special import bdtr

BISECTIONS = 40
ORDERS = 16


def betting_floor(values: np.ndarray, delta: float) -> float:  # values: (n,) in [0, 1]
    """Return a lower bound on the mean that is wrong with probability at most `delta`.

    A gambler bets on each value being above m. If m is the mean, the expected capital at the end is
    at most 1, so it reaches 1/delta with probability delta at most (Markov); the floor is the least
    m that survives. The capital is the mean of ORDERS gamblers who see the values in orders of
    their own, or luck with the order would move the floor, even above the sample's mean.
    Raises: ValueError for values outside [0, 1].
    Source: Waudby-Smith & Ramdas 2024, theorem 3 and section 4.2 (predictable plug-in); a mean of
    e-values is one: Vovk & Wang 2021, section 3.
    """
    _check(values)
    rng = np.random.default_rng(0)  # orders must not depend on the values
    orders = np.stack([values[rng.permutation(len(values))] for _ in range(ORDERS)])
    bets = _bets(orders, delta)
    floor = _highest(lambda m: _outbet(orders, bets, m, delta))
    return min(floor, float(np.mean(values)))


def _bets(orders: np.ndarray, delta: float) -> np.ndarray:  # (ORDERS, n) -> (ORDERS, n)
    """Return each step's bet, which may depend only on the values before it."""
    n = orders.shape[1]
    counts = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(orders, axis=1)) / (counts + 1)
    variances = (0.25 + np.cumsum((orders - means) ** 2, axis=1)) / (counts + 1)
    before = np.concatenate([np.full((len(orders), 1), 0.25), variances[:, :-1]], axis=1)
    return np.asarray(np.sqrt(2 * log(1 / delta) / (n * before)))


def _outbet(orders: np.ndarray, bets: np.ndarray, m: float, delta: float) -> bool:
    """Did the bets on values above m win more than chance allows?"""
    if m <= 0:
        return True
    capped = np.minimum(bets, 0.75 / m)
    capitals = np.log1p(capped * (orders - m)).sum(axis=1)
    mean = np.logaddexp.reduce(capitals) - log(len(capitals))
    return bool(mean >= log(1 / delta))


def hoeffding_bentkus_floor(values: np.ndarray, delta: float) -> float:  # values: (n,) in [0, 1]
    """Return a lower bound on the mean that is wrong with probability at most `delta`.

    In terms of the risk 1 - F1, whose sample mean is r: p(a) is the chance of a risk as low as r
    if the true one is a, and the floor is 1 less the largest a with p(a) > delta.
    p(a) = min(exp(-n h(r, a)), e P(Binomial(n, a) <= ceil(n r))), h the relative entropy.
    It knows the mean only, not the variance, and asks nothing of the order.
    Raises: ValueError for values outside [0, 1].
    Source: Bates et al. 2021 (arXiv 2101.02703), section 3; Angelopoulos et al. 2021 (arXiv
    2110.01052), the Hoeffding-Bentkus p-value.
    """
    _check(values)
    n, risk = len(values), min(1.0, max(0.0, 1 - float(np.mean(values))))
    return _highest(lambda m: risk < 1 - m and _p_value(n, risk, 1 - m) <= delta)


def _p_value(n: int, risk: float, a: float) -> float:
    hoeffding = exp(-n * _relative_entropy(risk, a))
    return min(hoeffding, e * float(bdtr(ceil(n * risk), n, a)))


def _relative_entropy(p: float, q: float) -> float:
    """Return that of a coin with chance p to one with chance q, p < q."""
    of_one = p * log(p / q) if p > 0 else 0.0
    if q == 1:
        return float("inf")
    return of_one + (1 - p) * log((1 - p) / (1 - q))


Bound = Callable[[np.ndarray, float], float]  # values, delta -> the floor
METHODS: dict[str, Bound] = {
    "betting": betting_floor,
    "hoeffding-bentkus": hoeffding_bentkus_floor,
}
TITLES = {"betting": "betting (WSR)", "hoeffding-bentkus": "Hoeffding-Bentkus"}


def ceiling(bound: Bound, values: np.ndarray, delta: float) -> float:
    """Return the upper bound on the mean that goes with a lower one."""
    return 1 - bound(1 - values, delta)


def _check(values: np.ndarray) -> None:
    if not len(values):
        raise ValueError("no values: there is nothing to bound")
    if np.min(values) < 0 or np.max(values) > 1:
        raise ValueError("values must lie in [0, 1]")


def _highest(rejects: Callable[[float], bool]) -> float:
    """Return the largest m that is rejected, to 40 bits; 0 if none is."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if rejects(middle):
            low = middle
        else:
            high = middle
    return low
