"""The shipped certificates, watched: reviews break them, Wikipedia does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway import catalog as catalogs
from gateway.domain import Answer
from gateway.evidence import Comparison
from gateway.settings import Settings
from loadtest import drift
from loadtest.drift import UNSHIFTED, DriftError
from loadtest.drift_cli import judged
from optimizer.data import Example
from tests.fakes import ROOT, make_plan, small_and_large

SHIPPED = ROOT / "model_repository"
STREAMS = 120


def test_reviews_break_every_certificate_and_wikipedia_breaks_none() -> None:
    """Recorded answers of the shipped models: 120 streams of each kind, 1,000 sampled requests in each.

    Of unshifted streams, drawn from contexts that no expectation was made from, no more than delta may.
    """
    delta = Settings().shadow_delta
    rows = judged(catalogs.read(SHIPPED), drift.RECORDED, STREAMS, 1000, seed=3)
    agreement = [row for row in rows if row["test"] == "agreement"]
    assert len(agreement) >= 4
    for row in agreement:
        assert row["shifted_alarms"] == 1, row
        assert row["unshifted_alarms"] <= delta, row
    confidence = [row for row in rows if row["test"] == "confidence"]
    assert all(row["unshifted_alarms"] <= delta for row in confidence)
    assert max(row["shifted_alarms"] for row in confidence) == 1


def test_the_rates_apart_show_what_the_rate_of_all_hides() -> None:
    """On reviews variants hardly ever abstain: that alone would make up for all other disagreement."""
    rows = judged(catalogs.read(SHIPPED), drift.RECORDED, 1, 50, seed=3)
    row = next(r for r in rows if r["of"] == "bert-l0.1.2.4-h8-f256-w4-r128-k0.3.2-int8")
    assert row["shifted_agree"] == pytest.approx(row["unshifted_agree"], abs=0.01)
    assert row["shifted_same_answer"] < row["unshifted_same_answer"] - 0.1


def test_a_recording_is_read_back_without_texts(tmp_path: Path) -> None:
    """Derived numbers alone: the questions may not be ours to give away."""
    catalog = small_and_large()
    examples = [Example(str(i), "Who?", f"Ada came at {i // 2}.", (), (), "t") for i in range(4)]

    def said(*texts: str) -> list[Answer]:
        return [Answer(t, None, None, 0.25 * i, 0.5) for i, t in enumerate(texts)]

    answers = {"small": said("Ada", "Ada", "", ""), "large": said("Ada", "came", "Ada", "")}
    path = tmp_path / "drift.json.xz"
    drift.write(path, catalog, {UNSHIFTED: examples}, {UNSHIFTED: answers})
    series, reference = drift.read(path, catalog)
    found = series[UNSHIFTED]
    assert reference == "large"
    assert found.contexts.tolist() == [0, 0, 1, 1]
    assert [list(Comparison)[i] for i in found.compared["small"]] == list(Comparison)
    cascade = replace(
        make_plan(catalog.variants[0], 0.5), variants=("small", "large"), thresholds=(0.3,)
    )
    kept = [list(Comparison)[i] for i in found.of_plan(cascade, reference)]
    assert kept == [Comparison.BOTH_SILENT] * 2 + list(Comparison)[2:]
    other = replace(catalog, variants=(replace(catalog.variants[0], sha256="1" * 64),))
    with pytest.raises(DriftError, match="--record"):
        drift.read(path, other)


def test_streams_are_drawn_as_certificates_count() -> None:
    """Every context alike, however many questions it has."""
    none = dict.fromkeys(["small"], np.zeros(10))
    series = drift.Series(np.array([0] * 9 + [1]), none, none)
    drawn = series.draw(2000, 2, seed=1)
    assert np.mean(drawn == 9) == pytest.approx(0.5, abs=0.05)
