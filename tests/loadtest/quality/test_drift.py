"""The shipped certificates, watched: reviews break them, Wikipedia does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.catalog import store
from gateway.catalog.schema import Confidence, Spread
from gateway.domain import Answer
from gateway.monitoring.sequential_tests import AgreementTest, Comparison, ConfidenceTest
from gateway.settings import Settings
from loadtest.quality import drift, recording
from loadtest.quality.drift import EQUAL, Chances
from loadtest.quality.drift_command import drawn_from, judged
from loadtest.quality.recording import (
    RELATIONS,
    SHIFTED,
    UNSHIFTED,
    AnsweredSet,
    DriftError,
    Relation,
    Series,
    relation,
)
from optimizer.certify import expected_agreement
from optimizer.data import clusters
from optimizer.data.question_sets import Example
from tests.fakes import make_plan, small_and_large

RECORDED = Path(__file__).parent / "recorded"  # of models that shipped once, and their catalog
SHIPPED = store.read(RECORDED)
STREAMS, REQUESTS = 12, 800


def series(texts: np.ndarray, alike: np.ndarray, answerable: np.ndarray | None = None) -> Series:
    """Return what a variant `small` was recorded to say: the same as the largest, or something else."""
    found = np.where(alike, RELATIONS.index(Relation.SAME), RELATIONS.index(Relation.DISJOINT))
    every = np.ones(len(texts), dtype=bool) if answerable is None else answerable
    tokens, sure = np.full(len(texts), 100), np.full(len(texts), 0.5)
    return Series(texts, texts, tokens, every, {"small": found}, {"small": sure})


def test_reviews_break_every_certificate_and_wikipedia_breaks_none() -> None:
    """Recorded answers of models that shipped: streams of each kind, sampled requests on a text each.

    Of unshifted streams, drawn from texts that no expectation was made from, no more than delta may.
    """
    delta = Settings().shadow_delta
    recorded, reference = recording.read(RECORDED / "drift.json.xz", SHIPPED)
    sets = {name: recorded[name] for name in (UNSHIFTED, SHIFTED)}
    rows = judged(SHIPPED, sets, reference, drawn_from(sets, STREAMS, REQUESTS, seed=3))
    unshifted, shifted = ([r for r in rows if r["stream"] == name] for name in sets)
    assert sum(row["test"] == "agreement" for row in shifted) == len(SHIPPED.plans) - 1
    assert all(row["alarms"] <= delta for row in unshifted), unshifted
    assert all(row["alarms"] == 1 for row in shifted if row["test"] == "agreement"), shifted
    assert max(row["alarms"] for row in shifted if row["test"] == "confidence") == 1


def test_the_rates_apart_show_what_the_rate_of_all_hides() -> None:
    """On reviews variants hardly ever abstain: that alone would make up for all other disagreement."""
    recorded, _ = recording.read(RECORDED / "drift.json.xz", SHIPPED)
    name = "bert-l0.1.2.4-h8-f256-w4-r128-k0.3.2-int8"
    (both, same), (both_there, same_there) = (
        EQUAL.rates(recorded[kind].compared[name]) for kind in (UNSHIFTED, SHIFTED)
    )
    assert both_there * same_there == pytest.approx(both * same, abs=0.02)
    assert same_there < same - 0.1


def test_a_recording_is_read_back_without_texts(tmp_path: Path) -> None:
    """Derived numbers alone: the questions may not be ours to give away."""
    catalog = small_and_large()
    examples = [
        Example(str(i), "Who?", f"Ada came at {i // 2}.", ("Ada",) * (i % 2), (0,) * (i % 2), "Ada")
        for i in range(4)
    ]

    def said(*texts: str) -> list[Answer]:
        return [Answer(t, None, None, 0.25 * i, 0.5) for i, t in enumerate(texts)]

    answers = {"small": said("Ada", "Ada", "", ""), "large": said("Ada", "came", "Ada", "")}
    path = tmp_path / "drift.json.xz"
    recording.write(path, catalog, {UNSHIFTED: AnsweredSet(examples, [9, 9, 300, 300], answers)})
    read, reference = recording.read(path, catalog)
    found = read[UNSHIFTED]
    assert reference == "large"
    assert found.texts.tolist() == [0, 0, 1, 1]
    assert found.clusters.tolist() == [0, 0, 0, 0]
    assert found.tokens.tolist() == [9, 9, 300, 300]
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


def test_relations_are_compared_as_the_gateway_compares_texts() -> None:
    """A place in common makes no text the same; what else may count is for `--statistics` alone."""
    every = np.arange(len(RELATIONS))
    assert dict(zip(RELATIONS, EQUAL.of(every), strict=True)) == {
        Relation.SAME: Comparison.SAME,
        Relation.OVERLAPPING: Comparison.DIFFERENT,
        Relation.DISJOINT: Comparison.DIFFERENT,
        Relation.ONE_SILENT: Comparison.ONE_SILENT,
        Relation.BOTH_SILENT: Comparison.BOTH_SILENT,
    }
    changed = {
        a for a, b in zip(RELATIONS, drift.OVERLAP.of(every), strict=True) if b is Comparison.SAME
    }
    assert changed == {Relation.SAME, Relation.OVERLAPPING}


def test_expectations_are_those_of_certification() -> None:
    """The same function bounds the rates, or trials would say nothing of what is published."""
    rng = np.random.default_rng(5)
    texts = np.repeat(np.arange(200), 5)
    examples = [
        Example(str(i), "Who?", f"Text {text}.", (), (), "") for i, text in enumerate(texts)
    ]
    said = [(ours, theirs) for ours, theirs in rng.choice(["", "Ada", "Ada came"], (1000, 2))]
    answers = {
        name: [Answer(pair[i], None, None, 0.5, 0.5) for pair in said]
        for i, name in enumerate(("small", "large"))
    }
    plan = make_plan(small_and_large().variants[0], 0.5)
    published = expected_agreement.agreement(plan, examples, answers, "large", drift.NOWHERE, 0.02)
    pairs = zip(answers["small"], answers["large"], strict=True)
    found = np.array([RELATIONS.index(relation(a, b)) for a, b in pairs])
    assert published is not None
    mine = EQUAL.expected(clusters.numbers(examples), found, 0.02)
    assert mine == replace(published, reference="")


def test_a_stream_is_judged_as_the_gateway_judges_it() -> None:
    """Drawn again a text tells nothing; another like it does, and the alarm rises within its samples."""
    sometimes = series(np.repeat(np.arange(6), 4), np.arange(24) % 4 == 0)
    expected = EQUAL.expected(np.arange(500), np.full(500, RELATIONS.index(Relation.SAME)), 0.05)
    assert expected is not None
    for same_texts in (True, False):
        (stream,) = drift.streams_of(sometimes, 300, 1, seed=1, same_texts=same_texts)
        assert len(set(stream.texts)) == (6 if same_texts else 300)
        found = EQUAL.of(sometimes.compared["small"][stream.rows])
        # Six texts are too little evidence for an alarm at this delta, whatever is seen of them.
        test = AgreementTest(expected, 1e-6, 0.02)
        at = drift.first_alarm(test, stream.texts, found)
        assert (at >= 0) is not same_texts
        again = AgreementTest(expected, 1e-6, 0.02)
        risen = [again.add(t, f) for t, f in zip(stream.texts, found, strict=True)]
        assert at == (risen.index(True) if any(risen) else drift.NEVER)


def test_confidence_is_judged_by_the_recorded_length() -> None:
    """The gateway tests each length by itself, so a recording holds lengths."""
    sure = Spread(256, (0.1,), (0.05,), (0.15,), 500)
    unsure = Spread(512, (0.9,), (0.85,), (0.95,), 500)
    expected = Confidence((0.5,), (0.5,), (0.4,), (0.6,), 500, 500, drift.NOWHERE, (sure, unsure))
    short = series(np.arange(400), np.ones(400, dtype=bool))
    long = replace(short, tokens=np.full(400, 300))
    for recorded, shifts in ((short, True), (long, False)):
        (stream,) = drift.streams_of(recorded, 400, 1, seed=1)
        test = ConfidenceTest(expected, 0.05)
        assert (drift.first_shift(test, "small", recorded, stream) >= 0) is shifts


@pytest.mark.parametrize("burst", [1, 5])
def test_streams_are_drawn_as_a_gateway_sees_requests(burst: int) -> None:
    """Every question alike, however many its context has; in a burst all are of one context."""
    contexts = np.array([0] * 9 + [1])
    whole = series(contexts, contexts == 0)
    drawn = drift.draw(whole, 2000, 2, seed=1, burst=burst)
    assert drawn.shape == (2000, 2)
    assert np.mean(drawn == 9) == pytest.approx(0.1, abs=0.03)
    bursts = contexts[drawn].reshape(-1, burst, 2)
    assert (bursts == bursts[:, :1]).all()
    (stream, _) = drift.streams_of(whole, 2000, 2, seed=1, burst=burst)
    assert stream.rows.tolist() == drawn[:, 0].tolist()
    assert len(set(stream.texts)) == 2000 // burst


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
    """Expectations of four fifths of the texts hold on the fifth, and not where fewer answers are alike."""
    rng = np.random.default_rng(2)
    texts = np.repeat(np.arange(300), 5)
    own, other = (series(texts, rng.random(1500) < rate) for rate in (0.7, 0.4))
    plans = [make_plan(small_and_large().variants[0], 0.5)]
    chances = Chances(0.02, 0.05, 0.02)
    for statistic in drift.STATISTICS:
        false, true = drift.trials(own, other, plans, "large", statistic, chances, 20, seed=1)
        assert false.shape == true.shape == (1, 20)
        assert (false >= 0).mean() <= chances.alarm
        assert (true >= 0).all()
