"""Simulated error rates of floors and of drift alarms, and the floor by number of articles.

Contexts of one article are correlated: the share ICC of the variance of a context's F1 is between articles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.catalog.schema import Agreement, Host
from gateway.monitoring.sequential_tests import AgreementTest, BettingTest, Comparison
from optimizer.certify.bounds import FloorBound, betting_floor
from optimizer.data.question_sets import MOST_CONTEXTS

ICC = 0.10  # measured on SQuAD, of models of several sizes
MEAN_F1 = 0.65
QUESTIONS = 5  # of a context
CONTEXT_SPREAD = 3.0  # concentration of contexts' rates around their article's
DELTAS = (0.05, 0.1)
N_ARTICLES, LONGEST = 30, 60  # articles have 5 to 60 contexts
SIZES = (10, 20, 50, 100, 200, 500)  # articles, in the picture
PICTURE_DELTA = 0.1 / 2 / 8  # the first look spends half of 0.1, split over eight variants
NOWHERE = Host("simulated", "", 1, "", "")


@dataclass(frozen=True, slots=True)
class FailureRate:
    """How often a floor was above the true mean."""

    world: str
    unit: str
    delta: float
    failed: float
    mean_floor: float


def articles(rng: np.random.Generator, n: int, icc: float) -> list[np.ndarray]:
    """Return the F1 of each context of `n` articles."""
    return [
        _contexts(rng, rate, int(rng.integers(MOST_CONTEXTS, LONGEST + 1)))
        for rate in _rates(rng, n, icc)
    ]


def _rates(rng: np.random.Generator, n: int, icc: float) -> np.ndarray:
    """Return mean F1 of articles such that contexts have this intra-class correlation."""
    if not icc:
        return np.full(n, MEAN_F1)
    # Var(context | rate) is w (1 - rate) rate; with Var(rate) = v (1 - MEAN) MEAN the correlation is
    # v / (v + w (1 - v)).
    w = 1 / QUESTIONS + (1 - 1 / QUESTIONS) / (CONTEXT_SPREAD + 1)
    v = icc * w / (1 - icc + icc * w)
    total = 1 / v - 1
    return np.asarray(rng.beta(MEAN_F1 * total, (1 - MEAN_F1) * total, n))


def _contexts(rng: np.random.Generator, rate: float, n: int) -> np.ndarray:
    rate = min(max(rate, 1e-3), 1 - 1e-3)
    each = rng.beta(CONTEXT_SPREAD * rate, CONTEXT_SPREAD * (1 - rate), n)
    return np.asarray(rng.binomial(QUESTIONS, each) / QUESTIONS)


def by_context(found: Sequence[np.ndarray]) -> np.ndarray:
    """Return one value per context."""
    return np.concatenate(found)


def by_article(found: Sequence[np.ndarray]) -> np.ndarray:
    """Return one value per article: the mean of its first MOST_CONTEXTS contexts."""
    return np.array([contexts[:MOST_CONTEXTS].mean() for contexts in found])


WORLDS = (
    ("independent contexts", 0.0, "context", by_context),
    ("articles", ICC, "context", by_context),
    ("articles", ICC, "article", by_article),
)


def failures(runs: int, seed: int = 0, bound: FloorBound = betting_floor) -> list[FailureRate]:
    """Return the observed rate of floors above MEAN_F1, by simulated data, unit and delta."""
    found = []
    for world, icc, unit, values_of in WORLDS:
        rng = np.random.default_rng(seed)
        draws = [values_of(articles(rng, N_ARTICLES, icc)) for _ in range(runs)]
        for delta in DELTAS:
            floors = np.array([bound(values, delta) for values in draws])
            failed = float((floors > MEAN_F1).mean())
            found.append(FailureRate(world, unit, delta, failed, float(floors.mean())))
    return found


def floors_by_size(sizes: Sequence[int], runs: int, seed: int = 0) -> list[tuple[int, float]]:
    """Return the mean floor by number of articles, for a true mean F1 of MEAN_F1."""
    rng = np.random.default_rng(seed)
    return [(n, float(np.mean([_floor_of(rng, n) for _ in range(runs)]))) for n in sizes]


def _floor_of(rng: np.random.Generator, n: int) -> float:
    return betting_floor(by_article(articles(rng, n, ICC)), PICTURE_DELTA)


def false_alarms(questions: int, runs: int, texts: int = 60, seed: int = 0) -> tuple[float, float]:
    """Return the rate of drift alarms on unchanged data: when counting by question, and by text.

    Texts differ in difficulty; each gets `questions` questions in a row.
    """
    rng, delta, floor = np.random.default_rng(seed), 0.05, 0.66
    expected = Agreement("large", texts, texts, 0.9, 0.0, floor, floor, NOWHERE)
    alarms = np.zeros((runs, 2), dtype=bool)
    for run in range(runs):
        test, single = AgreementTest(expected, delta, 0.0), BettingTest((0.0, floor))
        for i, rate in enumerate(rng.beta(3 * floor, 3 * (1 - floor), texts)):
            for same in rng.random(questions) < rate:
                found = Comparison.SAME if same else Comparison.DIFFERENT
                test.add(i.to_bytes(4), found)
                single.add((1, int(same)), (0, int(not same)))
                alarms[run] |= (bool(single.capital >= 1 / delta), test.broken)
    return float(alarms[:, 0].mean()), float(alarms[:, 1].mean())


WIDTH, HEIGHT, LEFT, BOTTOM = 640, 360, 60, 50


def picture(points: Sequence[tuple[int, float]]) -> str:
    """Return an SVG of the floor against the number of articles, the mean F1 above it."""
    first, last = np.log(points[0][0]), np.log(points[-1][0])

    def x(n: int) -> float:
        return float(LEFT + (np.log(n) - first) / (last - first) * (WIDTH - LEFT - 30))

    def y(f1: float) -> float:
        return HEIGHT - BOTTOM - f1 / 0.8 * (HEIGHT - BOTTOM - 20)

    line = " ".join(f"{x(n):.1f},{y(f1):.1f}" for n, f1 in points)
    marks = "".join(
        f'<circle cx="{x(n):.1f}" cy="{y(f1):.1f}" r="4" fill="#1f6feb"/>'
        f'<text x="{x(n):.1f}" y="{y(f1) + 20:.1f}" text-anchor="middle">{f1:.2f}</text>'
        f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{n}</text>'
        for n, f1 in points
    )
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 30}" y1="{y(f1):.1f}" y2="{y(f1):.1f}" stroke="#ddd"/>'
        f'<text x="{LEFT - 8}" y="{y(f1) + 4:.1f}" text-anchor="end">{f1:.1f}</text>'
        for f1 in (0.0, 0.2, 0.4, 0.6, 0.8)
    )
    mean = (
        f'<line x1="{LEFT}" x2="{WIDTH - 30}" y1="{y(MEAN_F1):.1f}" y2="{y(MEAN_F1):.1f}"'
        ' stroke="#555" stroke-dasharray="6 4"/>'
        f'<text x="{LEFT + 6}" y="{y(MEAN_F1) - 6:.1f}">true mean F1 {MEAN_F1:g}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
        f'{grid}{mean}<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>{marks}'
        f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">articles that make the'
        " floor</text>"
        f'<text x="14" y="{HEIGHT / 2}" transform="rotate(-90 14 {HEIGHT / 2})"'
        ' text-anchor="middle">certified floor of F1</text></svg>\n'
    )
