"""Pareto arithmetic: arrays in, arrays out. Pure.

Every objective is minimised: negate what should be large.

Legend: n points, d objectives. `a` dominates `b` where it is no worse in any objective and better in
one; equal points do not dominate each other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]  # (n, d)
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def front(points: Points) -> Bools:  # (n, d) -> (n,)
    """Say of each point whether no other dominates it."""
    ours, others = points[:, None, :], points[None, :, :]
    no_worse = (ours <= others).all(axis=-1)
    better = (ours < others).any(axis=-1)
    return np.logical_not((no_worse & better).any(axis=0))


def ranks(points: Points) -> Ints:  # (n, d) -> (n,)
    """Return 0 for the Pareto front, 1 for the Pareto front of the others, and so on.

    Source: Deb et al. 2002, "NSGA-II", section III-A (non-dominated sorting).
    """
    found = np.zeros(len(points), np.int64)
    left = np.arange(len(points))
    rank = 0
    while len(left):
        best = front(points[left])
        found[left[best]] = rank
        left, rank = left[~best], rank + 1
    return found


def hypervolume(points: Points, reference: npt.ArrayLike) -> float:  # (n, d), (d,); d is 2 or 3
    """Return the volume that some point dominates, up to the reference; exact.

    A point that is not better than the reference in every objective adds nothing.
    Raises: ValueError for another number of objectives.
    """
    limit = np.asarray(reference, np.float64)
    if len(limit) not in (2, 3):
        raise ValueError(f"{len(limit)} objectives: exact for 2 and 3 only")
    inside = points[(points < limit).all(axis=1)]
    return _area(inside, limit) if len(limit) == 2 else _volume(inside, limit)


def _area(points: Points, limit: Points) -> float:  # (n, 2), (2,)
    """Sum the strips that each point adds, from left to right."""
    area, lowest = 0.0, float(limit[1])
    for x, y in points[np.lexsort((points[:, 1], points[:, 0]))]:
        if y < lowest:
            area += (limit[0] - x) * (lowest - y)
            lowest = y
    return float(area)


def _volume(points: Points, limit: Points) -> float:  # (n, 3), (3,)
    """Sum the slabs between one height and the next: the area of all points below, times that."""
    ordered = points[np.argsort(points[:, 2], kind="stable")]
    heights = np.diff(np.append(ordered[:, 2], limit[2]))
    areas = [_area(ordered[:n, :2], limit[:2]) for n in range(1, len(ordered) + 1)]
    return float(heights @ np.array(areas, np.float64))


def subset(points: Points, k: int, sizes: Points | None = None, budget: float = np.inf) -> Ints:
    """Return the indices, ascending, of `k` points that together dominate the most volume: at most all.

    Every objective is scaled to 0..1, the reference is 1.1 in each. Taken one by one, then exchanged for
    others as long as that gains. `sizes` (n,) are what the points weigh, together at most `budget`.
    Raises: ValueError when not even the k lightest fit.
    Source: Guerreiro et al. 2016, "Greedy hypervolume subset selection in low dimensions".
    """
    n = len(points)
    k = min(k, n)
    weight = np.zeros(n) if sizes is None else sizes
    if np.sort(weight)[:k].sum() > budget:
        raise ValueError(f"the {k} lightest weigh {np.sort(weight)[:k].sum():g} of {budget:g}")
    if not n:
        return np.zeros(0, np.int64)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)

    def gain(taken: list[int]) -> float:
        return hypervolume(scaled[taken], np.full(points.shape[1], 1.1))

    def fit(taken: list[int]) -> bool:
        """Say whether the lightest others still have room beside these."""
        others = np.delete(weight, taken)
        return float(weight[taken].sum() + np.sort(others)[: k - len(taken)].sum()) <= budget

    taken: list[int] = []
    while len(taken) < k:
        more = [[*taken, i] for i in range(n) if i not in taken]
        taken = max((m for m in more if fit(m)), key=gain)
    while True:
        others = [i for i in range(n) if i not in taken]
        near = [[*taken[:j], i, *taken[j + 1 :]] for j in range(k) for i in others]
        best = max((m for m in near if fit(m)), key=gain, default=taken)
        if gain(best) <= gain(taken) + 1e-12:
            return np.sort(np.array(taken, np.int64))
        taken = best


def promoted(ranks: Ints, share: float) -> Bools:  # (n,) -> (n,)
    """Say who goes on to the next rung: whole ranks, the best first, until `share` of all are in.

    The front always goes on.
    """
    wanted = np.ceil(share * len(ranks))
    better = np.array([(ranks < rank).sum() for rank in ranks])
    return np.asarray((ranks == 0) | (better < wanted))
