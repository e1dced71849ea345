"""Engines are opened alike and asked alike; static INT8 is ours, OpenVINO is tested where it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import PreTrainedModel

from gateway.backends.embedded import open_session
from gateway.backends.protocol import SPAN_OUTPUTS
from gateway.catalog.schema import Precision
from optimizer.benchmarks.engines import contest, openers, static_int8
from optimizer.benchmarks.engines.openers import (
    ENGINES,
    SHIPPED,
    Engine,
    EngineInput,
    Opened,
    Unavailable,
)
from optimizer.cli import main
from optimizer.data import question_sets
from optimizer.data.question_sets import DataError, Split
from optimizer.models import student
from optimizer.onnx import export
from tests.optimizer.conftest import question_set
from tests.optimizer.onnx.test_export import louder

VOCABULARY = 30522
BY_NAME = {engine.name: engine for engine in ENGINES}


@pytest.fixture
def model(tiny_backbone: Path) -> PreTrainedModel:
    return louder(student.load(str(tiny_backbone)))


@pytest.fixture
def job(model: PreTrainedModel, tmp_path: Path) -> EngineInput:
    windows = [export.random_windows(4, n, VOCABULARY) for n in (64, 128)]
    return EngineInput(model, tmp_path, [feed for found in windows for feed in export.feeds(found)])


def answers(opened: Opened, n_tokens: int) -> np.ndarray:  # -> (2, B, S), padding left out
    windows = export.random_windows(2, n_tokens, VOCABULARY)
    rows = [np.stack(opened.ask(feed)) for feed in export.feeds(windows)]
    return np.concatenate(rows, axis=1)[:, windows.attention_mask == 1]


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the root mean square of the difference in standard deviations."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / np.std(wanted))


def test_static_int8_answers_nearly_as_fp32_whatever_its_batch_mates(job: EngineInput) -> None:
    """Dynamic INT8 has the batch in its scales; that static has not is what it is for."""
    plain, static = (BY_NAME[f"onnxruntime {p}"].open(job) for p in ("fp32", "int8-static"))
    assert 0 < distance(answers(static, 96), answers(plain, 96)) < 0.35
    assert export.batch_variance(static.ask, VOCABULARY) < 1e-5
    assert export.batch_variance(BY_NAME[SHIPPED].open(job).ask, VOCABULARY) > 1e-5


def test_all_products_but_attentions_and_the_head_are_int8(
    job: EngineInput, tmp_path: Path
) -> None:
    """A product that a session does not fuse with its scale would be measured as something else."""
    BY_NAME["onnxruntime int8-static"].open(job)
    census = export.operators_run(tmp_path / "onnxruntime-int8-static.onnx")
    assert census["MatMulIntegerToFloat"] == 2 * 6
    assert (census["MatMul"], census["FusedMatMul"], census["Gemm"]) == (1, 4, 0)


def test_one_loud_channel_does_not_drown_the_others(
    model: PreTrainedModel, job: EngineInput
) -> None:
    """A scale is of a whole activation; smoothing moves what is loud into the weights."""
    for layer in student.bert_of(model).encoder.layer:
        norm, product = layer.attention.output.LayerNorm, layer.intermediate.dense
        norm.weight.data[7] *= 60
        product.weight.data[:, 7] /= 60
    export.write(model, job.folder / "plain.onnx", Precision.FP32)
    plain = onnx.load(job.folder / "plain.onnx")
    windows = export.random_windows(1, 96, VOCABULARY)

    def gap(alpha: float | None) -> float:
        path = job.folder / "static.onnx"
        onnx.save(static_int8.build(plain, job.calibration, alpha), path)
        feed = dict(export.feeds(windows)[0])
        found = [open_session(p).run(SPAN_OUTPUTS, feed) for p in (path, job.folder / "plain.onnx")]
        return distance(np.array(found[0]), np.array(found[1]))

    assert gap(0.5) < 0.5 * gap(None)


def test_padding_says_nothing_of_a_range(job: EngineInput) -> None:
    """What a padded position holds is never looked at when a window is served."""
    export.write(job.model, job.folder / "plain.onnx", Precision.FP32)
    plain = onnx.load(job.folder / "plain.onnx")
    feed = {
        name: ids.copy() for name, ids in export.feeds(export.random_windows(2, 64, 100))[1].items()
    }
    before = static_int8.ranges(plain, [feed])
    feed["input_ids"][feed["attention_mask"] == 0] = 29999
    after = static_int8.ranges(plain, [feed])
    for name, (low, high) in before.items():
        assert np.allclose(after[name][0], low, atol=1e-5), name
        assert np.allclose(after[name][1], high, atol=1e-5), name


def test_an_engine_that_is_not_installed_says_what_installs_it(job: EngineInput) -> None:
    """It is named beside what was measured, not left out."""
    engine = Engine("other", openers.ENGINES[0].opener, ("no_such_engine",))
    with pytest.raises(Unavailable, match=r"no_such_engine not installed: .*bertier\[openvino\]"):
        engine.open(job)


def test_questions_that_certify_are_not_seen(tmp_path: Path) -> None:
    """Calibrating reads the training split, scoring the search split."""
    path = tmp_path / "set.json"
    path.write_text(json.dumps(question_set(80)))
    calibration, asked = contest.parts(str(path), 5)
    kinds = [
        {question_sets.split_of(e, by_article=True, certifies=True) for e in found}
        for found in (calibration, asked)
    ]
    assert kinds == [{Split.TRAIN}, {Split.SEARCH}]
    assert len(asked) == 5
    path.write_text(json.dumps(question_set(1)))
    with pytest.raises(DataError, match="too few articles"):
        contest.parts(str(path), 5)


def test_engines_takes_turns_and_holds_all_against_what_ships(
    tiny_backbone: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, whole, on what every installation has."""
    arguments = ["--checkpoint", str(tiny_backbone), "--data", str(tiny_data / "train.json.xz")]
    arguments += ["--tokens", "64", "96", "--seconds", "0.1", "--limit", "12"]
    status = main.main(["engines", *arguments, "--only", "onnxruntime"])
    *shown, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert status == 0
    assert max(map(len, shown)) <= 80
    assert all(any(name in line for line in shown) for name in result["engines"])
    assert list(result["engines"]) == sorted(n for n in BY_NAME if n.startswith("onnxruntime"))
    shipped, plain = result["engines"][SHIPPED], result["engines"]["onnxruntime fp32"]
    assert [cell["tokens"] for cell in plain["latency"]] == [64, 96]
    for mine, others in zip(shipped["latency"], plain["latency"], strict=True):
        assert (mine["speed_up"], mine["speed_up_median"]) == (1, 1)
        ratio = mine["cpu_min_ms"] / others["cpu_min_ms"]
        assert others["speed_up"] == pytest.approx(ratio, abs=0.02)
    assert shipped["quality"]["f1_difference"]["mean"] == 0
    assert shipped["quality"]["n"] == 12
    assert shipped["size_bytes"] < plain["size_bytes"]


@pytest.mark.skipif(find_spec("nncf") is None, reason="the extra `openvino` is not installed")
@pytest.mark.filterwarnings("ignore")  # OpenVINO's and NNCF's own
def test_openvino_answers_as_onnxruntime_does(job: EngineInput) -> None:
    """Traced once, asked at other sizes: nothing of the traced example may stay in the model."""
    wanted = BY_NAME["onnxruntime fp32"].open(job)
    plain = BY_NAME["openvino fp32"].open(job)
    for n_tokens in (64, 192):
        assert np.abs(answers(plain, n_tokens) - answers(wanted, n_tokens)).max() < 2e-3
    static, free = (BY_NAME[n].open(job) for n in ("openvino int8", "openvino int8 any length"))
    assert distance(answers(static, 96), answers(wanted, 96)) < 0.35
    assert distance(answers(free, 96), answers(static, 96)) < 0.05
