"""What INT8 takes: published models beside themselves in float, and what is not compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.catalog import store
from gateway.catalog.schema import Precision
from loadtest.faults import fleet
from optimizer.benchmarks import precision
from optimizer.benchmarks.results import ComparisonError
from optimizer.cli import main
from optimizer.onnx import export
from tests.end_to_end.conftest import REPOSITORY
from tests.optimizer.conftest import question_set

BY_NAME = {v.name: v for v in store.read(REPOSITORY).variants}
SMALL = BY_NAME["minilm-2"]
HALF = replace(SMALL, name="half", precision=Precision.FP16)
DROPPING = replace(SMALL, name="dropping", shape=replace(SMALL.shape, keep=0.5, drop_after=1))
LABELS = replace(SMALL, name="labels", task="topic")


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Return options for the two smallest published models and nine questions."""
    questions, repository = tmp_path / "set.json", tmp_path / "model_repository"
    questions.write_text(json.dumps(question_set(3)))
    fleet.publish(REPOSITORY, repository, fleet.smallest(REPOSITORY, 2))
    where = ["--model-repository", str(repository), "--data", str(questions)]
    return ["compare", "precision", *where, "--run-dir", str(tmp_path / "run")]


def test_padding_does_not_count_as_error() -> None:
    """By hand: logits of real tokens 0 and 2 (deviation 1), one of four off by 2."""
    (windows,) = [export.random_windows(1, 2, 100)]
    windows.attention_mask[:] = [[1, 0]]
    wanted = np.array([[[0.0, 9.0]], [[2.0, 9.0]]], np.float32)
    said = wanted.copy()
    said[0, 0, 0] += 2
    assert precision.error_of([wanted, said], [wanted, wanted], [windows, windows]) == 1.0
    said[:, 0, 1] = 0
    assert precision.error_of([wanted, said], [wanted, wanted], [windows, windows]) == 1.0


def test_published_variants_are_compared_with_themselves_in_float(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The float graph errs by nothing, rounding one layer by less than rounding all; the last line is JSON."""
    assert main.main([*given, "--layer-questions", "6"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("| variant | graph | n | error | F1 | forced F1 | beside |")
    assert "| `minilm-2` | float | 9 | 0.000 |" in "\n".join(shown)
    found = {v["variant"]: v for v in json.loads(last)["variants"]}
    assert [len(found[name]["layers"]) for name in ("minilm-3", "minilm-2")] == [3, 2]
    served, whole, redrawn, kept = found["minilm-2"]["graphs"]
    assert [g["beside"]["second"] for g in (served, redrawn, kept)] == ["float", "float", "served"]
    layers = found["minilm-2"]["layers"]
    assert {layer["beside"]["n"] for layer in layers} == {6}
    assert 0 == whole["error"] < max(layer["error"] for layer in layers) < served["error"]
    assert redrawn["error"] > 0
    worst = max((0, 1), key=lambda i: layers[i]["error"])
    assert kept["float_layers"] == [worst]
    assert layers[worst]["float_layers"] == [1 - worst]
    assert 0 < kept["error"] < served["error"]
    assert 0 < served["timing"]["cpu_ms"] < whole["timing"]["cpu_ms"]


def test_a_second_run_asks_nothing_again(given: list[str], tmp_path: Path) -> None:
    """A killed run continues; questions whose texts differ are asked anew."""
    asked = [*given, "--only", "minilm-2", "--questions"]
    assert main.main([*asked, "4"]) == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("logits.npz")}
    assert len(kept) == 6  # served, float, redrawn, one layer in float, two rounded
    assert main.main([*asked, "4"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    questions = tmp_path / "set.json"
    questions.write_text(
        questions.read_text().replace("quite old", "quite new")
    )  # under the same ids
    assert main.main([*asked, "4"]) == 0
    assert all(path.stat().st_mtime_ns > then for path, then in kept.items())


def test_what_is_not_rounded_like_this_is_skipped_with_its_reason() -> None:
    """Rounding decides which tokens are dropped, FP16 has no codes, a classifier no spans."""
    found, skipped = precision.chosen([SMALL, HALF, DROPPING, LABELS], ())
    assert found == [SMALL]
    assert skipped.keys() == {"half", "dropping", "labels"}
    assert "is in fp16" in skipped["half"]
    assert "drops tokens" in skipped["dropping"]
    assert "classifies" in skipped["labels"]
    with pytest.raises(ComparisonError, match="no variant can be compared: half is in fp16"):
        precision.chosen([SMALL, HALF], ["half"])


def test_wrong_input_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is asked."""
    for options, said in (
        (["--only", "minilm-9"], "minilm-9: not in the repository, which has minilm-3, minilm-2"),
        (["--questions", "0"], "1 or more"),
        (["--layer-questions", "-1"], "1 or more"),
    ):
        assert main.main([*given, *options]) == 1
        assert said in capsys.readouterr().err
