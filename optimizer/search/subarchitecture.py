"""Bort's search: which shape of a grid has the largest W-coefficient. Pure.

From the sources: a shape is a number of layers, of heads, a hidden and a feed-forward width. Its number of
parameters p, inference time i and error e become one number, W, relative to the maximum point T of the grid. p and i
are known for all shapes before any is trained; then one of every s shapes is trained (hence |Xi| + |Xi| / s in the
running time). Under assumptions on the error the result is within (1 - epsilon) of the best.
Sources: de Wynter 2020, "An Approximation Algorithm for Optimal Subarchitecture Extraction" (arXiv 2010.08512),
definition 8 and algorithm 1; de Wynter & Perry 2020 (Bort, arXiv 2010.10499), section 3. The formula of W is taken
from QOSE, a program that implements that algorithm (github.com/kmz4/QHACK2021, train_utils.py).

Ours: p is the size of the file and i its measured p95 latency; the error is 1 - F1 of a slice, so nothing is
trained, and the authors' schedule of training steps (their epsilon) is not used. After the first pass the shape
with the largest upper bound of W comes next. The bound assumes that a shape which saves more has no smaller error
than its neighbour that saves less; the authors assume a property of the loss instead. Under that assumption
`shortfall` says how far the best found can be from the grid's best.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from gateway.catalog.schema import Precision
from optimizer.study.space import ANY, Candidate, Space, spaced
from optimizer.study.trials import Cost

FIRST_PASS = 0.5  # share of a search's trials that the first pass takes at most
LEAST_ERROR = 1e-6  # so that a perfect answer has a finite W


def grid_of(space: Space) -> list[Candidate]:
    """Return the shapes of a space by depth, heads and widths; other knobs are the largest candidate's.

    Of each number of layers one list, evenly spread, or all that the space names.
    """
    whole = space.largest
    int8 = Precision.INT8_DYNAMIC
    whole = replace(whole, precision=int8 if int8 in space.precision else whole.precision)
    depths = range(min(space.min_layers, space.n_layers), space.n_layers + 1)
    layers = [spaced(n, space.n_layers) for n in depths] if space.layers == ANY else space.layers
    found = (
        replace(whole, layers=tuple(kept), heads=heads, ffn=ffn, hidden=hidden)
        for kept, heads, ffn, hidden in product(layers, space.heads, space.ffn, space.hidden)
    )
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Grid:
    """The shapes within the limits, those that save least first, and what each saves."""

    shapes: tuple[Candidate, ...]
    savings: tuple[float, ...]
    interval: int  # s: one of so many is asked in the first pass

    @classmethod
    def of(
        cls, costs: Mapping[Candidate, Cost], trials: int, left_out: Collection[Candidate] = ()
    ) -> Grid:
        """`costs`: of the whole grid. `trials`: of the search. `left_out`: what is beyond a limit."""
        largest = maximum_point(list(costs.values()))
        kept = {c: saving(cost, largest) for c, cost in costs.items() if c not in left_out}
        ordered = sorted(kept, key=lambda candidate: kept[candidate])
        asked_first = max(1, int(FIRST_PASS * trials))
        return cls(
            tuple(ordered), tuple(kept[c] for c in ordered), -(-len(ordered) // asked_first) or 1
        )

    def following(
        self, errors: Mapping[Candidate, float], taken: Collection[Candidate]
    ) -> Candidate | None:
        """Return the shape to ask next; None: all are taken.

        `errors`: of those with an F1, 0 to 1. `taken`: those that were asked, or are being asked.
        """
        for shape in self.shapes[:: self.interval]:
            if shape not in taken:
                return shape
        bounds = self._bounds(errors, taken)
        return max(bounds, key=lambda shape: bounds[shape], default=None)

    def shortfall(self, errors: Mapping[Candidate, float]) -> float:
        """Return epsilon: the best W that was found is at least (1 - epsilon) of the grid's best."""
        best = max(
            (_w(s, errors[c]) for c, s in self._saved() if c in errors),
            default=0.0,
        )
        most = max(self._bounds(errors, errors.keys()).values(), default=best)
        return 0.0 if most <= best else 1 - best / most

    def _bounds(
        self, errors: Mapping[Candidate, float], taken: Collection[Candidate]
    ) -> dict[Candidate, float]:
        """Return the most that W of each shape can be which is not taken."""
        found: dict[Candidate, float] = {}
        least = 0.0  # error of the nearest one before that has one
        for shape, saved in self._saved():
            if shape not in taken:
                found[shape] = _w(saved, least)
            least = errors.get(shape, least)
        return found

    def _saved(self) -> Sequence[tuple[Candidate, float]]:
        return list(zip(self.shapes, self.savings, strict=True))


def maximum_point(costs: Sequence[Cost]) -> Cost:
    """Return T: the largest of each cost; no shape need have both."""
    return Cost(max(c.p95_ms for c in costs), max(c.size_bytes for c in costs))


def saving(cost: Cost, largest: Cost) -> float:
    """Return the part of W that is known before a shape has an error: of T's size, times of its time."""
    size = (largest.size_bytes - cost.size_bytes) / largest.size_bytes
    time = (largest.p95_ms - cost.p95_ms) / largest.p95_ms
    return size * time


def w_coefficient(cost: Cost, error: float, largest: Cost) -> float:
    """Return W = (p(T) - p) / p(T) * (i(T) - i) / i(T) / e: the more, the better."""
    return _w(saving(cost, largest), error)


def _w(saved: float, error: float) -> float:
    return saved / max(error, LEAST_ERROR)
