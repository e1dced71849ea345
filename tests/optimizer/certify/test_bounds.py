"""Every bound holds with its confidence, and is as tight as it should be and no tighter."""

from __future__ import annotations

from math import log, sqrt
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.certify.bounds import (
    METHODS,
    TITLES,
    FloorBound,
    betting_floor,
    ceiling,
    hoeffding_bentkus_floor,
)
from optimizer.study.config import CertifyConfig

DELTA = 0.1
DRAWS, N = 300, 30
BOUNDS = pytest.mark.parametrize("bound", METHODS.values(), ids=METHODS.keys())
UNIT_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=60).map(np.array)


def hoeffding_floor(values: np.ndarray, delta: float) -> float:
    """Return the plain bound to compare with. Source: Hoeffding 1963."""
    return max(0.0, float(np.mean(values)) - sqrt(log(1 / delta) / (2 * len(values))))


def draws_of(kind: str) -> tuple[np.ndarray, float]:
    """Return (DRAWS, N) samples in [0, 1] and their true mean."""
    rng = np.random.default_rng(5)
    size = (DRAWS, N)
    match kind:
        case "beta low" | "beta" | "beta high":
            mean = {"beta low": 0.3, "beta": 0.6, "beta high": 0.9}[kind]
            return rng.beta(4 * mean, 4 * (1 - mean), size), mean
        case "coin":
            return rng.binomial(1, 0.55, size).astype(float), 0.55
        case "rare":
            return rng.binomial(1, 0.02, size).astype(float), 0.02
        case "uniform":
            return rng.uniform(0, 1, size), 0.5
        case "context means":  # of five questions, each all or nothing
            return rng.binomial(5, 0.6, size) / 5, 0.6
        case _:  # two kinds of contexts
            easy = rng.uniform(size=size) < 0.5
            return np.where(easy, rng.beta(9, 1, size), rng.beta(1, 9, size)), 0.5


KINDS = (
    *("beta low", "beta", "beta high", "coin"),
    *("rare", "uniform", "context means", "two kinds"),
)


@BOUNDS
@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_is_wrong_no_more_often_than_delta(bound: FloorBound, kind: str) -> None:
    """A certificate at confidence 1 - delta may fail in a share delta of studies, not more."""
    draws, mean = draws_of(kind)
    failures = sum(bound(values, DELTA) > mean for values in draws)
    assert failures / DRAWS <= DELTA + 0.03


@pytest.mark.parametrize("delta", [0.3, 0.1, 0.01])
@pytest.mark.parametrize("ones", [0, 1, 20, 41, 99, 100])
def test_no_bound_on_coins_is_tighter_than_the_exact_one(ones: int, delta: float) -> None:
    """Clopper and Pearson's bound is the best there is for coins: above it lies an error."""
    from scipy.stats import beta  # takes a second to import

    values = np.array([1.0] * ones + [0.0] * (100 - ones))
    exact = beta.ppf(delta, ones, 100 - ones + 1) if ones else 0.0
    found = hoeffding_bentkus_floor(values, delta)
    assert hoeffding_floor(values, delta) - 1e-9 <= found <= exact + 1e-9


@given(UNIT_VALUES, st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_more_confidence_never_gives_a_higher_floor(
    values: np.ndarray, one: float, other: float
) -> None:
    """Hoeffding-Bentkus is monotone in delta."""
    low, high = sorted((one, other))
    assert hoeffding_bentkus_floor(values, low) <= hoeffding_bentkus_floor(values, high) + 1e-9


@given(UNIT_VALUES)
def test_hoeffding_bentkus_is_never_worse_than_hoeffding(values: np.ndarray) -> None:
    """Relative entropy is at least twice the square of the distance (Pinsker)."""
    assert hoeffding_bentkus_floor(values, DELTA) >= hoeffding_floor(values, DELTA) - 1e-9


def test_the_order_of_the_values_hardly_moves_the_floor() -> None:
    """A floor is said of the data, not of the order it came in; one gambler alone is lucky or not."""
    values = np.random.default_rng(7).choice([0.0, 0.4, 0.8, 1.0], 300)
    one, other = betting_floor(np.sort(values), DELTA), betting_floor(values, DELTA)
    assert one == pytest.approx(other, abs=0.004)


def test_betting_pays_on_context_means() -> None:
    """Why it is the default: contexts vary less than coins, and Hoeffding-Bentkus cannot see it."""
    values = np.random.default_rng(1).beta(6, 4, 800)
    assert hoeffding_bentkus_floor(values, DELTA) < betting_floor(values, DELTA)


@BOUNDS
def test_a_ceiling_lies_as_far_above_as_a_floor_below(bound: FloorBound) -> None:
    """An upper bound on F1 is a lower bound on 1 - F1."""
    values = np.random.default_rng(4).uniform(0, 1, 200)
    assert ceiling(bound, values, DELTA) == pytest.approx(1 - bound(1 - values, DELTA))
    assert ceiling(bound, values, DELTA) > values.mean()


def test_a_study_file_can_name_every_method() -> None:
    """A method that has no name of its own cannot be chosen, nor read in a certificate."""
    names = get_args(CertifyConfig.model_fields["method"].annotation)
    assert list(names) == list(METHODS) == list(TITLES)


def test_the_floor_is_tighter_than_hoeffdings() -> None:
    """Knowing the variance pays: the values of F1 over contexts are far from coin flips."""
    values = np.random.default_rng(1).beta(6, 4, 800)
    assert hoeffding_floor(values, DELTA) < betting_floor(values, DELTA) < values.mean()


def test_more_contexts_give_a_tighter_floor() -> None:
    """What is certified grows with the evidence."""
    values = np.random.default_rng(2).beta(6, 4, 2000)
    gaps = [values[:n].mean() - betting_floor(values[:n], DELTA) for n in (100, 500, 2000)]
    assert gaps == sorted(gaps, reverse=True)


@BOUNDS
@given(UNIT_VALUES)
def test_the_floor_never_exceeds_the_mean(bound: FloorBound, values: np.ndarray) -> None:
    """A lower bound lies below what was seen, whatever was seen."""
    assert 0 <= bound(values, DELTA) <= np.mean(values) + 1e-6


@BOUNDS
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.2], r"^values must lie in \[0, 1\], hits between 0 and their counts$"),
        ([-0.1], r"^values must lie in \[0, 1\], hits between 0 and their counts$"),
        ([], "^there are no values to bound$"),
    ],
)
def test_values_that_no_bound_holds_for_are_refused(
    bound: FloorBound, values: list[float], message: str
) -> None:
    """The bounds hold for values in [0, 1] only, and of nothing nothing is known."""
    with pytest.raises(ValueError, match=message):
        bound(np.array(values), DELTA)
