"""What a report concludes from trials."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.catalog.schema import Variant
from optimizer.report import analysis
from optimizer.report.analysis import ReferenceCorner, Trial
from optimizer.study.config import DataConfig, ElasticConfig, StudentConfig, StudyConfig
from optimizer.study.space import Candidate, Space
from tests.fakes import make_variant


def trial(number: int, f1: float | None, p95_ms: float = 10.0, mb: int = 10, **more: int) -> Trial:
    candidate = Candidate((0, 1), more.get("heads", 2), more.get("ffn", 32))
    questions = more.get("questions", 100)
    return Trial(number, candidate, p95_ms, mb * 1_000_000, f1, questions)


def test_the_reference_is_the_worst_that_was_measured() -> None:
    """Also of a trial that ended at the cost gate: it does not move when more get an F1."""
    trials = [trial(0, 0.5, 10, 20), trial(1, None, 90, 5)]
    assert analysis.reference_of(trials) == ReferenceCorner(90, 20_000_000)
    assert analysis.reference_of([Trial(0, Candidate((0,), 1, 1))]) is None


def test_hypervolume_is_reported_where_it_grows() -> None:
    """A dominated trial adds nothing; F1 is a height, latency and size are shares of the worst."""
    trials = [trial(0, 0.5, 50, 5), trial(1, 0.4, 60, 6), trial(2, 0.5, 25, 5), trial(3, None, 100)]
    found = list(analysis.hypervolumes(trials, ReferenceCorner(100, 10_000_000)))
    assert [number for number, _ in found] == [0, 2]
    assert [share for _, share in found] == pytest.approx([0.5 * 0.5 * 0.5, 0.5 * 0.75 * 0.5])


def test_only_the_highest_rung_counts() -> None:
    """An F1 on few questions flatters, and an infeasible one is of no use."""
    few, many = trial(0, 0.9, questions=40), trial(1, 0.5, questions=400)
    useless = replace(trial(2, 0.95, questions=400), feasible=False)
    assert analysis.top_rung([few, many, useless]) == [many]


def test_a_knob_that_decides_all_explains_all() -> None:
    """And one that decides nothing explains nothing."""
    trials = [
        trial(i, 0.1 * heads, 5.0 * ffn, 10, heads=heads, ffn=ffn)
        for i, (heads, ffn) in enumerate([(1, 8), (1, 16), (4, 8), (4, 16)])
    ]
    found = analysis.importance(trials)
    assert found["heads"] == pytest.approx((1, 0, 0))
    assert found["ffn"] == pytest.approx((0, 1, 0))
    assert found["layers"] == (0, 0, 0)


def published(name: str) -> Variant:
    return make_variant(name, 5)


def test_a_student_is_the_trial_it_was_cut_like() -> None:
    """Named by the search, or found by its shape; the teacher is nobody's trial."""
    config = StudyConfig(
        name="x",
        largest_name="teacher",
        data=(DataConfig(source="d", certifies=True),),
        elastic=(ElasticConfig(space=Space(layers=((0, 1),), heads=(2,), ffn=(32,))),),
        students=(
            StudentConfig(name="cut", start="elastic", layers=(0, 1), ffn=32, embedding_bits=4),
            StudentConfig(name="other", layers=(0, 1), ffn=32, embedding_bits=4),
            StudentConfig(
                name="thin",
                start="elastic",
                layers=(0, 1),
                rank=64,
                ffn=32,
                embedding_bits=4,
            ),
        ),
    )
    trials = [trial(0, 0.5), trial(1, 0.6, ffn=64), replace(trial(2, 0.7, ffn=96), variant="named")]
    variants = [published(name) for name in ("teacher", "cut", "other", "named", "thin")]
    found = analysis.finished(config.students, trials, variants)
    assert [(t.number, v.name) for t, v in found] == [(2, "named"), (0, "cut")]
