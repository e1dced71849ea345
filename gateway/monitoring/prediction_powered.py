"""The mean of few known outcomes, sharpened by a prediction that exists for many answers. Pure.

Prediction-powered inference: the known outcomes say how far the prediction is off, and the many predictions
say how the answers without an outcome differ from those with one. The prediction may be wrong in any way: the
interval only gets wider. It assumes that outcomes are known of a random sample of the answers.

    mean = mean(y) + lambda (mean of f over the others - mean of f over the known)

Legend: n answers with a known outcome y, N others; f the prediction of each.
Sources: Angelopoulos et al. 2023, arXiv 2301.09633, Algorithm 1 (the interval); Angelopoulos, Duchi & Zrnic 2023,
PPI++, arXiv 2311.01453, Example 6.1 (the weight lambda, which makes it no wider than without predictions).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

CONFIDENCE = 0.95
FEWEST = 20  # known outcomes; with fewer there is no interval


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean in [0, 1] and where it lies with confidence CONFIDENCE."""

    mean: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


class Outcomes:
    """Sums over answers: enough for both intervals, and an answer can be taken out again."""

    def __init__(self) -> None:
        self.n_known = 0
        self.n_others = 0
        self._y = self._yy = self._f = self._ff = self._yf = 0.0  # of the known
        self._other_f = self._other_ff = 0.0

    def add_known(self, outcome: float, prediction: float, sign: int = 1) -> None:
        """Take an answer whose outcome is known; `sign` -1: take it out again."""
        self.n_known += sign
        self._y += sign * outcome
        self._yy += sign * outcome * outcome
        self._f += sign * prediction
        self._ff += sign * prediction * prediction
        self._yf += sign * outcome * prediction

    def add_other(self, prediction: float, sign: int = 1) -> None:
        """Take an answer without a known outcome; `sign` -1: take it out again."""
        self.n_others += sign
        self._other_f += sign * prediction
        self._other_ff += sign * prediction * prediction

    def of_known_alone(self) -> Interval | None:
        """Return the interval without predictions; None: too few outcomes are known."""
        if self.n_known < FEWEST:
            return None
        return self._interval(0.0, self._known_variance(0.0) / self.n_known)

    def interval(self) -> Interval | None:
        """Return the prediction-powered interval; None: too few outcomes are known."""
        n, others = self.n_known, self.n_others
        if n < FEWEST or others < FEWEST:
            return self.of_known_alone()
        weight = self._weight()
        other_variance = _variance(others, self._other_f, self._other_ff)
        variance = self._known_variance(weight) / n + weight**2 * other_variance / others
        return self._interval(weight * (self._other_f / others - self._f / n), variance)

    def _weight(self) -> float:
        """Return lambda: the slope of y on f, less for few others; 0 to 1."""
        n, others = self.n_known, self.n_others
        covariance = (self._yf - self._y * self._f / n) / (n - 1)
        variance = _variance(n + others, self._f + self._other_f, self._ff + self._other_ff)
        if variance <= 0.0:
            return 0.0
        return min(1.0, max(0.0, covariance / ((1 + n / others) * variance)))

    def _known_variance(self, weight: float) -> float:
        """Return the variance of y - weight f, no less than if one outcome in n + 2 were the other."""
        total = self._y - weight * self._f
        squares = self._yy - 2 * weight * self._yf + weight**2 * self._ff
        rare = 1 / (self.n_known + 2)
        return max(_variance(self.n_known, total, squares), rare * (1 - rare))

    def _interval(self, shift: float, variance: float) -> Interval:
        mean = self._y / self.n_known + shift
        half = student_quantile(self.n_known - 1) * sqrt(variance)
        low, middle, high = (min(1.0, max(0.0, at)) for at in (mean - half, mean, mean + half))
        return Interval(middle, low, high)


def student_quantile(freedom: int) -> float:
    """Return the two-sided CONFIDENCE quantile of Student's t, to three digits for 10 or more degrees.

    Source: Abramowitz & Stegun 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def _variance(n: int, total: float, squares: float) -> float:
    return max(0.0, (squares - total * total / n) / (n - 1)) if n > 1 else 0.0
