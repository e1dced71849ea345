"""One-sided confidence bounds on a mean of values in [0, 1], or on a ratio of means. Pure.

Legend: n independent values (one a cluster), m a candidate for the true mean or ratio, k candidates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import ceil, e, exp, log

import numpy as np
from scipy.special import bdtr

BISECTIONS = 40
ORDERS = 32
CELLS = 200  # candidates in one cell share their bets
GOAL = 1.5  # of 1/delta: two thirds of the gamblers have to reach it
CAP = 0.99  # of the largest bet that cannot lose all
ROUNDING = 1e-9  # of a count that is computed from a mean


def betting_floor(values: np.ndarray, delta: float) -> float:  # values: (n,) in [0, 1]
    """Return a lower bound on the mean that is wrong with probability at most `delta`.

    See `ratio_floor`. Raises: ValueError for values outside [0, 1].
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
    rates correlate with numbers of questions. Contexts must be independent and alike; questions of one context
    need not be. Contexts without questions have no effect.

    ORDERS gamblers see the contexts in orders of their own and bet on each that hits - m counts is above 0.
    That value is at least -m `most`.

    Proof. Let m be the true ratio, so that the value has mean 0. A bet depends on earlier values only and
    lies in [0, 1 / (m `most`)], so no factor 1 + bet * value is negative, each has mean 1, and the capital at the
    end has mean 1; so has the mean of the gamblers' capitals (Vovk & Wang 2021, section 3). It reaches
    1/delta with probability delta at most (Markov). Candidates are divided into CELLS. All candidates of a
    cell are tested with the bets made for its upper end: smaller than 1 / (m `most`) for each of them, and
    the capital decreases in m within the cell. The floor is the least m that survives. So if the floor is above
    the true ratio, the test of the true ratio itself won 1/delta.

    Source: Waudby-Smith & Ramdas 2024, theorem 3. The bets are those of Voracek & Orabona 2025 (arXiv
    2505.22422): each gambler aims at GOAL / delta with the values that are left, and stops there.
    Raises: ValueError for counts above `most` or hits outside [0, counts].
    """
    _check(hits, counts, most)
    rng = np.random.default_rng(0)  # orders must not depend on the values
    orders = np.stack([rng.permutation(len(hits)) for _ in range(ORDERS)])
    hit, count = hits[orders], counts[orders]
    seen = float(hits.sum() / counts.sum())
    tops = np.arange(1, min(CELLS, int(seen * CELLS) + 1) + 1) / CELLS
    won = _enough(_capitals(hit, count, tops, most, delta), delta)
    cell = len(tops) - 1 if won.all() else int(np.argmin(won))
    bets = [bet[:, 0] for bet, _ in _rounds(hit, count, tops[cell : cell + 1], most, delta)]
    bet = np.stack(bets, axis=1)  # (ORDERS, n)

    def rejects(m: float) -> bool:
        return bool(_enough(np.log1p(bet * (hit - m * count)).sum(axis=1), delta))

    return min(_highest(rejects, cell / CELLS, float(tops[cell])), seen)


def _rounds(
    hits: np.ndarray, counts: np.ndarray, m: np.ndarray, most: float, delta: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each round's bets and the log capitals after it, both (ORDERS, k), for candidates m, (k,).

    A bet depends on the values before it only. With r rounds left and a factor g missing to the goal, it is
    sqrt(2 log(g) / (r variance)): the one that would reach g if r values were as far above m as is needed.
    """
    n, spread = hits.shape[1], _spread(hits, counts)
    goal, most_bet = log(GOAL / delta), CAP / (m * most)
    capital = np.zeros((len(hits), len(m)))
    for i in range(n):
        missing = np.maximum(goal - capital, 0.0)
        bet = np.minimum(np.sqrt(2 * missing / ((n - i) * spread[:, i : i + 1])), most_bet)
        capital = capital + np.log1p(bet * (hits[:, i : i + 1] - m * counts[:, i : i + 1]))
        yield bet, capital


def _capitals(
    hits: np.ndarray, counts: np.ndarray, m: np.ndarray, most: float, delta: float
) -> np.ndarray:
    """Return the log capitals after the last round, (ORDERS, k)."""
    _, capitals = deque(_rounds(hits, counts, m, most, delta), maxlen=1).pop()
    return capitals


def _spread(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the variance of the values before each one, from 1/4 on; all (ORDERS, n)."""
    seen = np.arange(1, hits.shape[1] + 1)
    rates = (0.5 + np.cumsum(hits, axis=1)) / (1 + np.cumsum(counts, axis=1))
    spread = (0.25 + np.cumsum((hits - rates * counts) ** 2, axis=1)) / (seen + 1)
    return np.concatenate([np.full((len(hits), 1), 0.25), spread[:, :-1]], axis=1)


def _enough(capitals: np.ndarray, delta: float) -> np.ndarray:
    """Return whether the mean of the gamblers' capitals, given as logarithms, reaches 1/delta."""
    mean = np.logaddexp.reduce(capitals, axis=0) - log(len(capitals))
    return np.asarray(mean >= log(1 / delta))


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
TITLES = {"betting": "betting (STaR)", "hoeffding-bentkus": "Hoeffding-Bentkus"}


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


def _highest(rejects: Callable[[float], bool], low: float = 0.0, high: float = 1.0) -> float:
    """Return the largest m between that is rejected, to 40 bits; `low` if none is."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if rejects(middle):
            low = middle
        else:
            high = middle
    return low
