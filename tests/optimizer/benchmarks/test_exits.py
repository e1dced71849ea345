"""Early exit at its best, beside cascades: what deferring costs, by hand and with published models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.catalog import store
from loadtest.faults import fleet
from optimizer.benchmarks import exits
from optimizer.benchmarks.results import ExitComparison
from optimizer.certify.cascades import VariantAnswers
from optimizer.cli import main
from tests.end_to_end.conftest import REPOSITORY
from tests.optimizer.conftest import question_set

CONTEXTS = list("aabb")
SMALL = VariantAnswers(
    "small",
    f1=np.array([1.0, 0.0, 1.0, 0.0]),
    score=np.array([0.9, 0.2, 0.8, 0.4]),
    cost_ms=np.array([2.0, 2.0, 2.0, 2.0]),
)
LARGEST = VariantAnswers(
    "largest",
    f1=np.array([1.0, 1.0, 0.0, 1.0]),
    score=np.ones(4),
    cost_ms=np.array([5.0, 5.0, 10.0, 20.0]),
)


def test_the_least_sure_questions_go_to_the_largest() -> None:
    """By hand: the second question first, then the fourth; an exit saves the prefix that a cascade runs twice."""
    found = {p.share: p for p in exits.deferring(SMALL, LARGEST, 0.5, CONTEXTS).points}
    assert [found[share].f1 for share in (0.0, 0.25, 0.5, 1.0)] == [0.5, 0.75, 1.0, 0.75]
    assert [found[share].loss.mean for share in (0.0, 0.5, 1.0)] == [0.25, -0.25, 0.0]
    assert found[0.0].cascade == pytest.approx(8 / 40)
    assert found[0.5].cascade == pytest.approx((8 + 5 + 20) / 40)
    assert found[0.0].exit == 0.5
    assert found[0.5].exit == pytest.approx(0.5 + 0.5 * 25 / 40)
    assert found[1.0].exit == 1.0


def test_only_a_prefix_has_exits() -> None:
    """Another variant's states are of no use to the largest: it starts anew."""
    assert {p.exit for p in exits.deferring(SMALL, LARGEST, None, CONTEXTS).points} == {None}
    by_name = {v.name: v for v in store.read(REPOSITORY).variants}
    largest, six = by_name["mpnet-12"], by_name["mpnet-6"]
    assert exits.prefix_of(six, largest) == 0.5
    assert exits.prefix_of(largest, largest) is None
    assert exits.prefix_of(by_name["minilm-6"], largest) is None
    narrow = replace(six, shape=replace(six.shape, ffn=1536))
    assert exits.prefix_of(narrow, largest) is None


def test_the_least_compute_for_a_loss_is_looked_for_in_all_plans() -> None:
    """Exits and cascades each have their own; where none loses so little, there is none."""
    plans = tuple(exits.deferring(SMALL, LARGEST, p, CONTEXTS) for p in (None, 0.5))
    found = ExitComparison("test", 4, 2, "largest", 0.75, plans, {})
    by_exit, by_cascade = exits.cheapest(found, 0.0)
    assert by_exit is not None
    assert by_cascade is not None
    assert (by_exit.f1, by_cascade.f1) == (0.75, 0.75)
    assert by_exit.exit == pytest.approx(0.5 + 0.5 * 5 / 40)
    assert by_cascade.cascade == pytest.approx((8 + 5) / 40)
    assert exits.cheapest(found, -0.5) == (None, None)


def test_published_variants_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All questions deferred score what the largest scores; the last line is for programs."""
    questions, repository = tmp_path / "set.json", tmp_path / "model_repository"
    questions.write_text(json.dumps(question_set(3)))
    fleet.publish(REPOSITORY, repository, fleet.smallest(REPOSITORY, 2))
    given = ["--model-repository", str(repository), "--data", str(questions)]
    assert main.main(["compare", "exits", *given, "--questions", "6"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("| from | deferred | F1 | loss | compute, exit | compute, cascade |")
    found = json.loads(last)
    (plan,) = found["plans"]
    assert (found["n"], plan["prefix"]) == (6, None)
    assert plan["points"][-1]["f1"] == pytest.approx(found["f1"])
    assert plan["points"][0]["cascade"] < plan["points"][-1]["cascade"]
    assert main.main(["compare", "exits", *given, "--questions", "0"]) == 1
    assert "contains no questions" in capsys.readouterr().err
