"""One-sided confidence bounds on a mean of values in [0, 1], or on a ratio of means. Pure.

Legend: n independent values (one a cluster), m a candidate for the true mean or ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, e, exp, log

import numpy as np
from scipy.special import bdtr

BISECTIONS = 40
ORDERS = 16
ROUNDING = 1e-9  # of a count that is computed from a mean
FEW = 100  # values; with fewer, constant bets are added to the adaptive ones
CONSTANT = (0.25, 0.5, 0.75, 0.95)  # of the largest bet that cannot lose all


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
    return ratio_floor(values, np.ones(len(values)), 1.0, delta)


def ratio_floor(
    hits: np.ndarray,  # (n,) of each context, 0 <= hits <= counts
    counts: np.ndarray,  # (n,) questions of each context, at most `most`
    most: float,
    delta: float,
) -> float:
    """Return a lower bound on E[hits] / E[counts] that is wrong with probability at most `delta`.

    The ratio is the rate of hits per question. It differs from the mean over contexts of their rates when
    rates correlate with numbers of questions. A ratio of at most m implies E[hits - m counts] <= 0: a
    gambler bets against that; each value is at least -m `most`. Bets depend on m only through their cap,
    so the capital decreases in m, and the floor is the least m that survives. Contexts must be
    independent; questions of one context need not be. Contexts without questions have no effect.
    Raises: ValueError for counts above `most` or hits outside [0, counts].
    """
    _check(hits, counts, most)
    rng = np.random.default_rng(0)  # orders must not depend on the values
    orders = np.stack([rng.permutation(len(hits)) for _ in range(ORDERS)])
    hit, count = hits[orders], counts[orders]
    bets = _bets(hit, count, delta)
    floor = _highest(lambda m: _outbet(hit, count, bets, m, most, delta))
    return min(floor, float(hits.sum() / counts.sum()))


def _bets(hits: np.ndarray, counts: np.ndarray, delta: float) -> np.ndarray:
    """Return each step's bet, which may depend only on the values before it; all (ORDERS, n)."""
    n = hits.shape[1]
    seen = np.arange(1, n + 1)
    rates = (0.5 + np.cumsum(hits, axis=1)) / (1 + np.cumsum(counts, axis=1))
    spread = (0.25 + np.cumsum((hits - rates * counts) ** 2, axis=1)) / (seen + 1)
    before = np.concatenate([np.full((len(hits), 1), 0.25), spread[:, :-1]], axis=1)
    return np.asarray(np.sqrt(2 * log(1 / delta) / (n * before)))


def _outbet(
    hits: np.ndarray, counts: np.ndarray, bets: np.ndarray, m: float, most: float, delta: float
) -> bool:
    """Return whether the bets on a ratio above m won more than chance allows."""
    if m <= 0:
        return True
    capped = np.minimum(bets, 0.75 / (m * most))
    capitals = np.log1p(capped * (hits - m * counts)).sum(axis=1)
    if hits.shape[1] < FEW:
        capitals = np.concatenate([capitals, _constant_bets(hits[0], counts[0], m, most)])
    mean = np.logaddexp.reduce(capitals) - log(len(capitals))
    return bool(mean >= log(1 / delta))


def _constant_bets(hits: np.ndarray, counts: np.ndarray, m: float, most: float) -> np.ndarray:
    """Return the log capitals of ORDERS gamblers with constant bets.

    With few values adaptive bets cannot adapt: on twenty articles the best bet is near the largest one.
    """
    bets = np.repeat(CONSTANT, ORDERS // len(CONSTANT))[:, None] / (m * most)
    return np.asarray(np.log1p(bets * (hits - m * counts)).sum(axis=1))


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
    _check(values, np.ones(len(values)), 1.0)
    n, risk = len(values), min(1.0, max(0.0, 1 - float(np.mean(values))))
    return _highest(lambda m: risk < 1 - m and _p_value(n, risk, 1 - m) <= delta)


def _p_value(n: int, risk: float, a: float) -> float:
    hoeffding = exp(-n * _relative_entropy(risk, a))
    n_wrong = ceil(n * risk - ROUNDING)  # a whole number must stay one
    return min(hoeffding, e * float(bdtr(n_wrong, n, a)))


def _relative_entropy(p: float, q: float) -> float:
    """Return that of a coin with chance p to one with chance q, p < q."""
    of_one = p * log(p / q) if p > 0 else 0.0
    if q == 1:
        return float("inf")
    return of_one + (1 - p) * log((1 - p) / (1 - q))


FloorBound = Callable[[np.ndarray, float], float]  # values, delta -> the floor
METHODS: dict[str, FloorBound] = {
    "betting": betting_floor,
    "hoeffding-bentkus": hoeffding_bentkus_floor,
}
TITLES = {"betting": "betting (WSR)", "hoeffding-bentkus": "Hoeffding-Bentkus"}


def ceiling(bound: FloorBound, values: np.ndarray, delta: float) -> float:
    """Return the upper bound on the mean by the same method."""
    return 1 - bound(1 - values, delta)


def _check(hits: np.ndarray, counts: np.ndarray, most: float) -> None:
    if not counts.any():
        raise ValueError("there are no values to bound")
    if np.any(counts > most):
        raise ValueError(f"counts must be at most {most:g}")
    if np.min(hits) < 0 or np.any(hits > counts):
        raise ValueError("values must lie in [0, 1], hits between 0 and their counts")


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
