"""Two elastic students of one teacher, one of another width: searched, finished and published together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

from gateway.catalog import store
from gateway.catalog.schema import Precision
from optimizer.cli import main
from optimizer.data import evaluate
from optimizer.data.question_sets import Split
from optimizer.onnx import export
from optimizer.search import costs, scoring, stage
from optimizer.search.costs import CostGate, NotMeasured
from optimizer.search.scoring import NetScorer
from optimizer.students.study import Study
from optimizer.study import config as configs
from optimizer.study.space import Candidate


def study_file(backbone: Path, narrow: Path, folder: Path) -> Path:
    path = folder / "study.toml"
    path.write_text(f"""
        name = "tiny"
        backbone = "{backbone}"
        largest_name = "tiny-12"
        largest_bits = 4
        max_tokens = 64
        train = {{ epochs = 0.5, batch_size = 8 }}
        [[elastic]]
        name = "wide"
        members = 1
        train = {{ epochs = 0.3, batch_size = 8 }}
        space = {{ layers = "any", heads = [2], ffn = [32, 96] }}
        [[elastic]]
        name = "narrow"
        base = "{narrow}"
        train = {{ epochs = 0.3, batch_size = 8 }}
        finish = {{ epochs = 0.4, batch_size = 8 }}
        space = {{ layers = "any", heads = [2], ffn = [64], keep = [1.0, 0.5], drop_after = [1] }}
        [search]
        sampler = "random"
        trials = 3
        tokens = 64
        patience_s = 0
        questions = [6]
        [finish]
        members = 1
        train = {{ epochs = 0.3, batch_size = 8 }}
        [publish]
        allow_dominated = true
        allow_constant = true
        [[data]]
        source = "train.json.xz"
        by_article = true
        certifies = true
    """)
    return path


@pytest.fixture(scope="module")
def narrow(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of another width than the teacher's, with its words."""
    folder = tmp_path_factory.mktemp("narrow")
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertForQuestionAnswering(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(
    tiny_backbone: Path, tiny_data: Path, narrow: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    folder = tmp_path_factory.mktemp("run")
    study = study_file(tiny_backbone, narrow, folder)
    given = ["--study", str(study), "--data-dir", str(tiny_data), "--run-dir", str(folder / "run")]
    return [*given, "--model-repository", str(folder / "published")]


@pytest.fixture(scope="module")
def study(options: list[str]) -> Study:
    """The study after `distill`, one process for each family as on several GPUs."""
    for name in ("wide", "narrow"):
        assert main.main(["distill", *options, "--only", name]) == 0
    return Study(configs.read(Path(options[1])), Path(options[3]), Path(options[5]))


def test_both_families_end_in_one_repository(study: Study, options: list[str]) -> None:
    """Each is searched by itself; what each found is finished in its own way and published."""
    assert main.main(["search", *options]) == 0
    assert main.main(["finish", *options]) == 0
    assert main.main(["publish", *options]) == 0
    catalog = store.read(Path(options[7]))
    found = {v.name: v.shape.hidden for v in catalog.variants}
    assert found.pop("tiny-12") == 64
    assert {name.split("-")[0]: hidden for name, hidden in found.items()} == {
        "wide": 64,
        "narrow": 128,
    }
    assert catalog.variant("tiny-12").shape.embedding_bits == 4


def test_an_unknown_student_is_named(
    study: Study, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt name must not end in a run that did nothing."""
    assert main.main(["distill", *options, "--only", "wid"]) == 1
    assert "--only wid: no such student; there are: wide, narrow" in capsys.readouterr().err


def test_an_elastic_student_scores_as_its_slices_do(study: Study) -> None:
    """On a GPU a search asks the student itself; that is what its slices would say."""
    questions = scoring.sample(study.questions.certifying(Split.SEARCH))[:6]
    for name, candidate in (
        ("wide", Candidate((1,), 2, 32, 4, Precision.FP32)),
        ("narrow", Candidate((0, 1), 2, 64, 4, Precision.FP32, keep=0.5, drop_after=1)),
    ):
        elastic = study.elastics[name]
        itself = NetScorer(elastic.net, study.tokenizer, questions).readings(candidate, 6)
        path = study.folder / "slices" / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        export.write(elastic.slice(candidate), path, Precision.FP32)
        served = evaluate.read_all(path, study.tokenizer, questions, Precision.FP32)
        np.testing.assert_allclose(
            [r.difference for r in itself], [r.difference for r in served], atol=0.1
        )
        assert [r.spans[0].text for r in itself] == [r.spans[0].text for r in served]


def test_a_search_takes_what_another_host_measured(
    tiny_backbone: Path, tiny_data: Path, narrow: Path, tmp_path: Path
) -> None:
    """Latency is the serving host's; nothing need be trained to measure it, and nothing is guessed."""
    path = study_file(tiny_backbone, narrow, tmp_path)
    study = Study(configs.read(path), tiny_data, tmp_path / "run")
    elastic = study.elastics["narrow"]
    gate = CostGate(
        elastic.graph_shape, 64, study.search_folder("narrow") / "costs", elsewhere=True
    )
    wanted = costs.shapes(stage.space_of(elastic, stage.how_of(study)))
    with pytest.raises(NotMeasured, match="latencies of 0 hosts"):
        gate.cost(wanted[0])
    assert stage.measure_costs(study) == {"wide": 4, "narrow": 3}
    again = CostGate(gate.teacher, 64, gate.folder, elsewhere=True)
    assert all(again.cost(candidate).p95_ms > 0 for candidate in wanted)
    with pytest.raises(NotMeasured, match=r"no latency of .*; run 'bertier-optimize costs'"):
        again.cost(Candidate((0,), 1, 64, 4))
