"""The shipped certificates, watched: reviews break them, Wikipedia does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.catalog import store
from gateway.domain import Answer
from gateway.monitoring.sequential_tests import COUNTS, Comparison
from gateway.settings import Settings
from loadtest.quality import drift, recording
from loadtest.quality.drift import Chances
from loadtest.quality.drift_command import judged
from loadtest.quality.recording import (
    COMPARED,
    RELATIONS,
    SHIFTED,
    UNSHIFTED,
    DriftError,
    Relation,
    Series,
    relation,
)
from optimizer.data.question_sets import Example
from tests.fakes import make_plan, small_and_large

RECORDED = Path(__file__).parent / "recorded"  # of models that shipped once, and their catalog
SHIPPED = store.read(RECORDED)
STREAMS = 60


def series(contexts: np.ndarray, alike: np.ndarray, answerable: np.ndarray | None = None) -> Series:
    """Return what a variant `small` was recorded to say: the same as the largest, or something else."""
    found = np.where(alike, RELATIONS.index(Relation.SAME), RELATIONS.index(Relation.DISJOINT))
    every = np.ones(len(contexts), dtype=bool) if answerable is None else answerable
    return Series(contexts, every, {"small": found}, {"small": np.full(len(contexts), 0.5)})


def test_reviews_break_every_certificate_and_wikipedia_breaks_none() -> None:
    """Recorded answers of the shipped models: streams of each kind, 3,000 sampled requests in each.

    Of unshifted streams, drawn from contexts that no expectation was made from, no more than delta may.
    """
    delta = Settings().shadow_delta
    recorded, reference = recording.read(RECORDED / "drift.json.xz", SHIPPED)
    sets = {name: recorded[name] for name in (UNSHIFTED, SHIFTED)}
    rows = judged(SHIPPED, sets, reference, STREAMS, 3000, seed=3)
    unshifted, shifted = ([r for r in rows if r["stream"] == name] for name in sets)
    assert sum(row["test"] == "agreement" for row in shifted) == len(SHIPPED.plans) - 1
    assert all(row["alarms"] <= delta for row in unshifted), unshifted
    assert all(row["alarms"] == 1 for row in shifted if row["test"] == "agreement"), shifted
    assert max(row["alarms"] for row in shifted if row["test"] == "confidence") == 1


def test_the_rates_apart_show_what_the_rate_of_all_hides() -> None:
    """On reviews variants hardly ever abstain: that alone would make up for all other disagreement."""
    recorded, _ = recording.read(RECORDED / "drift.json.xz", SHIPPED)
    name = "bert-l0.1.2.4-h8-f256-w4-r128-k0.3.2-int8"
    apart, (_, in_one, *_) = drift.WATCHED, drift.STATISTICS
    here, there = (recorded[kind].compared[name] for kind in (UNSHIFTED, SHIFTED))
    assert in_one.rates(there)[0] == pytest.approx(in_one.rates(here)[0], abs=0.02)
    assert apart.rates(there)[1] < apart.rates(here)[1] - 0.1


def test_a_recording_is_read_back_without_texts(tmp_path: Path) -> None:
    """Derived numbers alone: the questions may not be ours to give away."""
    catalog = small_and_large()
    examples = [
        Example(str(i), "Who?", f"Ada came at {i // 2}.", ("Ada",) * (i % 2), (0,) * (i % 2), "")
        for i in range(4)
    ]

    def said(*texts: str) -> list[Answer]:
        return [Answer(t, None, None, 0.25 * i, 0.5) for i, t in enumerate(texts)]

    answers = {"small": said("Ada", "Ada", "", ""), "large": said("Ada", "came", "Ada", "")}
    path = tmp_path / "drift.json.xz"
    recording.write(path, catalog, {UNSHIFTED: examples}, {UNSHIFTED: answers})
    read, reference = recording.read(path, catalog)
    found = read[UNSHIFTED]
    assert reference == "large"
    assert found.contexts[0] == found.contexts[1] != found.contexts[2] == found.contexts[3]
    assert found.answerable.tolist() == [False, True, False, True]
    compared = [Relation.SAME, Relation.DISJOINT, Relation.ONE_SILENT, Relation.BOTH_SILENT]
    assert [RELATIONS[i] for i in found.compared["small"]] == compared
    cascade = replace(
        make_plan(catalog.variants[0], 0.5), variants=("small", "large"), thresholds=(0.3,)
    )
    kept = [RELATIONS[i] for i in found.of_plan(cascade, reference)]
    assert kept == [Relation.BOTH_SILENT] * 2 + compared[2:]
    other = replace(catalog, variants=(replace(catalog.variants[0], sha256="1" * 64),))
    with pytest.raises(DriftError, match="--record"):
        recording.read(path, other)


def test_answers_overlap_where_their_places_do() -> None:
    """The gateway compares texts alone; what else may be counted is recorded, too."""
    ada, lady, came = (
        Answer(t, a, b, 0.5, 0.5)
        for t, a, b in (("Ada", 5, 8), ("Lady Ada", 0, 8), ("came", 9, 13))
    )
    assert relation(ada, lady) is Relation.OVERLAPPING
    assert relation(ada, came) is Relation.DISJOINT
    assert relation(ada, replace(ada, start=20, end=23)) is Relation.SAME


def test_what_is_watched_is_what_the_gateway_counts() -> None:
    """Or alarms of recorded streams would say nothing of the gateway's."""
    for comparison, (hits, misses) in COUNTS.items():
        row = RELATIONS.index(COMPARED[comparison])
        assert tuple(drift.WATCHED.hits[row]) == hits
        assert tuple(drift.WATCHED.misses[row]) == misses
    assert set(COMPARED) == set(Comparison)


@pytest.mark.parametrize("burst", [1, 5])
def test_streams_are_drawn_as_a_gateway_sees_requests(burst: int) -> None:
    """Every question alike, however many its context has; in a burst all are of one context."""
    contexts = np.array([0] * 9 + [1])
    drawn = drift.draw(series(contexts, contexts == 0), 2000, 2, seed=1, burst=burst)
    assert drawn.shape == (2000, 2)
    assert np.mean(drawn == 9) == pytest.approx(0.1, abs=0.03)
    bursts = contexts[drawn].reshape(-1, burst, 2)
    assert (bursts == bursts[:, :1]).all()


def test_unanswerable_questions_are_left_out_to_a_share() -> None:
    """Test data has more of them than the certified: that alone moves agreement."""
    answerable = np.arange(100) % 2 == 0
    whole = series(np.arange(100), answerable, answerable)
    part = whole.with_unanswerable(0.2, seed=1)
    assert part.unanswerable == pytest.approx(0.2, abs=0.01)
    assert part.answerable.sum() == answerable.sum()
    with pytest.raises(DriftError, match="smaller share"):
        whole.with_unanswerable(0.9, seed=1)


def test_trials_find_other_questions_and_raise_no_false_alarms() -> None:
    """Expectations of four fifths of the contexts hold on the fifth, and not where fewer answers are alike."""
    rng = np.random.default_rng(2)
    contexts = np.repeat(np.arange(300), 5)
    own, other = (series(contexts, rng.random(1500) < rate) for rate in (0.7, 0.4))
    plans = [make_plan(small_and_large().variants[0], 0.5)]
    chances = Chances(0.02, 0.05, 0.02)
    for statistic in drift.STATISTICS:
        false, true = drift.trials(own, other, plans, "large", statistic, chances, 20, seed=1)
        assert false.shape == true.shape == (1, 20)
        assert (false >= 0).mean() <= chances.alarm
        assert (true >= 0).all()
