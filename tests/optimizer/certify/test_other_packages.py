"""The bounds beside what confseq and MAPIE say of the same values (recorded by `record_references`)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from optimizer.certify import bounds
from tests.optimizer.certify.record_references import DELTA, RECORDED, sample

OTHERS: dict[str, list[dict[str, Any]]] = json.loads(RECORDED.read_text())


@pytest.mark.parametrize("row", OTHERS["capitals"], ids=str)
def test_a_gambler_owns_what_confseqs_owns_with_the_same_bets(row: dict[str, Any]) -> None:
    """The capital is a product of 1 + bet (value - m), however it is written; bets stay below 1/m there, too."""
    values, m = sample(row["kind"], row["n"]), np.array([row["m"]])
    (log_capital,) = bounds._capitals(values[None], np.ones((1, len(values))), m, 1.0, DELTA)[0]
    assert np.exp(log_capital) == pytest.approx(row["capital"], rel=1e-9)


@pytest.mark.parametrize("row", OTHERS["floors"], ids=str)
def test_floors_are_near_confseqs_and_not_far_above(row: dict[str, Any]) -> None:
    """Ours aims at a number of values and bets more than half of what is safe: .10 more where 17 are high, not above."""
    found = bounds.betting_floor(sample(row["kind"], row["n"]), DELTA)
    assert row["floor"] - 0.03 < found < row["floor"] + 0.11


@pytest.mark.parametrize("row", OTHERS["p_values"], ids=str)
def test_p_values_are_mapies(row: dict[str, Any]) -> None:
    """Hoeffding-Bentkus has one formula; where the risk is not below alpha, MAPIE's p-value is 1 or more."""
    if row["risk"] >= row["alpha"]:
        assert row["p"] > 0.5
        return
    found = bounds._p_value(row["n"], row["risk"], row["alpha"])
    assert found == pytest.approx(row["p"], rel=1e-9)
