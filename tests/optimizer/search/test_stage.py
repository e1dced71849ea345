"""The search of a real elastic student, tiny: cut, quantized, measured and asked as it is served."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gateway.catalog.schema import Cell, Precision
from optimizer.cli import main
from optimizer.data.question_sets import Split
from optimizer.models.student import bert_of
from optimizer.onnx import export
from optimizer.report import inputs as report
from optimizer.report.analysis import Trial
from optimizer.search import scoring, stage
from optimizer.search.costs import PATIENCE_S, CostGate, graph_shape, seconds_of
from optimizer.search.scoring import SliceScorer
from optimizer.search.watched_limits import WatchedLimits
from optimizer.students.study import Study
from optimizer.study.config import (
    DataConfig,
    ElasticConfig,
    FinishConfig,
    PhaseConfig,
    Sampler,
    SearchConfig,
    StudyConfig,
    TrainConfig,
)
from optimizer.study.space import Candidate, Space
from optimizer.study.trials import Limits
from tests.fakes import ROOT

SPACE = Space(
    layers="any",
    heads=(1, 2),
    ffn=(32, 96),
    embedding_bits=(4, 8),
    precision=(Precision.INT8_DYNAMIC, Precision.FP32),
)
TRAIN = TrainConfig(epochs=0.5, batch_size=8)


@pytest.fixture(scope="module")
def study(tiny_backbone: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    config = StudyConfig(
        name="tiny",
        backbone=str(tiny_backbone),
        largest_name="tiny-2",
        max_tokens=64,
        train=(PhaseConfig(epochs=0.5, batch_size=8),),
        data=(DataConfig(source="train.json.xz", by_article=True, certifies=True),),
        elastic=(ElasticConfig(space=SPACE, train=TRAIN),),
        search=SearchConfig(
            sampler=Sampler.RANDOM, trials=7, tokens=64, patience_s=0, questions=(6, 12)
        ),
    )
    found = Study(config, tiny_data, tmp_path_factory.mktemp("run"))
    found.largest.train()
    found.elastic.train()
    return found


@pytest.fixture
def gate(study: Study, tmp_path: Path) -> CostGate:
    shape = export.graph_shape_of(study.elastic.net.model)
    return CostGate(shape, 64, tmp_path / "costs", tmp_path / "lock", patience_s=0)


def study_file(study: Study, folder: Path, search: str) -> Path:
    """Write the study as a user would, with this [search]."""
    path = folder / "study.toml"
    path.write_text(f"""
        name = "tiny"
        backbone = "{study.config.backbone}"
        largest_name = "tiny-2"
        max_tokens = 64
        train = {{ epochs = 0.5, batch_size = 8 }}
        [[data]]
        source = "train.json.xz"
        by_article = true
        certifies = true
        [elastic]
        train = {{ epochs = 0.5, batch_size = 8 }}
        [elastic.space]
        layers = "any"
        heads = [1, 2]
        ffn = [32, 96]
        embedding_bits = [4, 8]
        precision = ["int8-dynamic", "fp32"]
        {search}
    """)
    return path


def arguments(study: Study, folder: Path, text: str) -> list[str]:
    file = study_file(study, folder, text)
    given = ["--data-dir", str(study.data_dir), "--run-dir", str(study.folder)]
    return ["search", "--study", str(file), *given]


def test_a_search_ends_in_a_pareto_front(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the study file to the files that the next stages read."""
    text = "[search]\ntokens = 64\npatience_s = 0\nquestions = [6, 12]\n"
    given = ("--trials", "7", "--sampler", "random")
    assert main.main([*arguments(study, tmp_path, text), *given]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = study.folder / "search"
    front = json.loads((folder / "front.json").read_text())
    assert result["candidates"] == 7
    assert result["front"] == front
    assert all(member["n_questions"] == 12 and member["feasible"] for member in front)
    record = json.loads((folder / "search.json").read_text())
    assert (record["sampler"], record["seed"]) == ("random", 17)
    inputs = report.read(study.config, study.folder, tmp_path)
    assert len(inputs.trials) == 7
    assert all(isinstance(trial, Trial) for trial in inputs.trials)
    assert inputs.front <= {trial.number for trial in inputs.trials}


def test_limits_that_no_candidate_meets_are_reported(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the nearest candidate and what binds, in words and in JSON."""
    text = "[search]\ntokens = 64\npatience_s = 0\nmax_size_mb = 0.1\n"
    assert main.main(arguments(study, tmp_path, text)) == 0
    shown = capsys.readouterr()
    assert "none of 1 candidates is within the limits" in " ".join(shown.err.split())
    found = json.loads(shown.out.splitlines()[-1])
    assert found["front"] == []
    assert "max_size_mb 0.1" in found["nearest"]["reason"]


def few_shapes(study: Study, **search: Any) -> Study:
    """Return the study with a search among candidates of two shapes, quickly measured and asked."""
    space = Space(layers=((0, 1), (0,), (1,)), heads=(2,), ffn=(96,))
    how = SearchConfig.model_validate(
        {"sampler": "random", "trials": 3, "tokens": 64, "patience_s": 0, "questions": (6,)}
        | search
    )
    changed = {"elastic": (ElasticConfig(space=space, train=TRAIN),), "search": how}
    return replace(study, config=study.config.model_copy(update=changed))


def test_moved_limits_keep_what_is_finished(study: Study, tmp_path: Path) -> None:
    """Between two commands: nothing is asked again, and the front is the one within the new limits."""
    before = stage.run(few_shapes(study), None)
    size_mb = max(p.cost.size_bytes for p in before.points) / 1e6 * 0.999
    moved = stage.run(few_shapes(study, max_size_mb=size_mb), None)
    asked = {p.candidate: (p.f1, p.seconds) for p in before.points}
    assert {p.candidate: (p.f1, p.seconds) for p in moved.points} == asked
    assert len(moved.points) == 3
    assert {len(p.candidate.layers) for p in moved.front} == {1}
    rows = json.loads((study.folder / "search" / "trials.json").read_text())
    assert ["max_size_mb" in (row["reason"] or "") for row in rows].count(True) == 1


def test_limits_are_moved_while_a_search_runs(study: Study, tmp_path: Path) -> None:
    """The candidate judged before the move counts, and the search ends under the last limits."""
    later, asked = Limits(max_size_mb=50.0), [0]

    def in_force() -> Limits:
        asked[0] += 1
        return Limits() if asked[0] < 4 else later

    few = few_shapes(study, questions=(7,))
    found = stage.run(few, None, limits=in_force)
    assert found.how.limits == later
    assert len(found.points) == 3
    record = json.loads((study.folder / "search" / "search.json").read_text())
    assert record["limits"]["max_size_mb"] == 50.0


def test_a_search_may_train_its_candidates(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each by a recipe of its own, without slices; members are finished by the recipe that was found."""
    brief = {"epochs": 0.1, "batch_size": 8}
    recipes = {"temperature": (1.0, 4.0), "learning_rate": (1e-3, 1e-4)}
    few = few_shapes(study, training={"train": brief, "space": recipes})
    finish = FinishConfig(members=1, train=TrainConfig.model_validate(brief))
    trained = replace(few, config=few.config.model_copy(update={"finish": finish}))
    found = stage.run(trained, None)
    usual = (("temperature", 1.0), ("learning_rate", 1e-3))
    assert found.points[0].candidate.recipe == usual
    assert all(p.f1 and set(dict(p.candidate.recipe)) == set(recipes) for p in found.points)
    assert not list((study.folder / "search" / "trainings").iterdir())
    assert "learning_rate" in [column.header for column in stage.table_of(found).columns]
    assert trained.sliced == frozenset()
    ((name, (member, _)),) = trained.members.items()
    assert member.start is None
    assert member.train is not None
    assert member.distill is not None
    recipe = (*member.distill.items(), ("learning_rate", member.train.learning_rate))
    assert recipe in [p.candidate.recipe for p in found.front]
    assert trained.student_inputs(member)["distill"]["temperature"] == recipe[0][1]
    trained.train_student(member)
    assert trained.model(name).config.num_hidden_layers == len(member.layers)


def test_latencies_are_measured_by_a_cost_worker(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows of the study file the name alone; what it measured is kept in the run folder."""
    search = """
        [search]
        tokens = 64
        patience_s = 0
        questions = [6]
        trials = 3
        sampler = "random"
    """
    file, storage = study_file(study, tmp_path, search), f"sqlite:///{tmp_path}/trials.db"
    command = (sys.executable, "-m", "optimizer.cli.main", "costs")
    given = ("--study", str(file), "--storage", storage)
    apart = os.environ | {"TMPDIR": str(tmp_path)}  # its lock is not that of this host
    run = replace(study, folder=tmp_path / "run")
    shutil.copytree(study.folder, run.folder, ignore=shutil.ignore_patterns("search"))
    arguments = [*given, "--data-dir", str(run.data_dir), "--run-dir", str(run.folder)]
    with subprocess.Popen([*command, *given], env=apart, cwd=ROOT) as worker:
        try:
            assert main.main(["search", *arguments, "--cost-workers"]) == 0
            assert worker.poll() is None
        finally:
            worker.kill()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = [json.loads(p.read_text()) for p in (run.folder / "search" / "costs").iterdir()]
    assert {row["p95_ms"] for row in result["front"]} <= {found["p95_ms"] for found in stored}
    assert main.main(["search", *arguments, "--stored-costs", "--trials", "3"]) == 0


def test_cost_workers_are_found_through_a_storage(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one nobody could answer."""
    assert main.main([*arguments(study, tmp_path, "[search]\n"), "--cost-workers"]) == 1
    assert "--cost-workers: needs --storage" in capsys.readouterr().err


def test_limits_of_a_file_that_is_being_written_stay_in_force(tmp_path: Path) -> None:
    """A search must not end because somebody saved half a file."""
    path = tmp_path / "study.toml"
    head = 'name = "x"\nlargest_name = "t"\n[[data]]\nsource = "a"\ncertifies = true\n'
    space = "[elastic.space]\nlayers = [[0]]\nheads = [1]\nffn = [8]\n"
    watched = WatchedLimits(path)

    def save(text: str, at_ns: int) -> Limits:
        path.write_text(text)
        os.utime(path, ns=(at_ns, at_ns))
        return watched()

    assert save(f"{head}{space}[search]\nmin_f1 = 0.5\n", 1) == Limits(min_f1=0.5)
    assert save(f"{head}{space}[search\n", 2) == Limits(min_f1=0.5)
    assert save(f"{head}{space}[search]\nmax_p95_ms = 9\n", 3) == Limits(max_p95_ms=9)
    path.unlink()
    assert watched() == Limits(max_p95_ms=9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[search]\nsampler = 'magic'\n", "search.sampler"),
        ("[search]\nmin_f = 0.5\n", "search.min_f"),
        ("[search]\nquestions = [400, 100]\n", "increase from rung to rung"),
        ("[search]\ntokens = 177\n", "tokens 177"),
        ("[search]\nmin_f1 = 50\n", "search.min_f1"),
        ("[search]\ntrials = 0\n", "search.trials"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    study: Study, tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the name of the key, before anything is measured."""
    assert main.main(arguments(study, tmp_path, text)) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("p95_ms", "expected_s"), [(10.5, 0.25), (20.0, PATIENCE_S)])
def test_a_busy_host_is_planned_with_the_whole_patience(p95_ms: float, expected_s: float) -> None:
    """25 runs of 10 ms, or as long as a search waits for a quiet round."""
    assert seconds_of(Cell(128, 1, 10.0, p95_ms, p95_ms)) == pytest.approx(expected_s)


def test_the_study_says_how_long_a_quiet_host_is_waited_for(study: Study, tmp_path: Path) -> None:
    """A host that is never quiet takes the whole patience for every shape."""
    gate = stage.gate_of(study.elastic, stage.how_of(study), tmp_path)
    assert (gate.patience_s, SearchConfig().patience_s) == (0, PATIENCE_S)


def test_a_slice_costs_what_random_weights_say(study: Study, gate: CostGate) -> None:
    """The gate knows the size to a few bytes before anything is trained."""
    for candidate in (SPACE.within(2).smallest, SPACE.within(2).largest):
        path = gate.folder.parent / "slice.onnx"
        export.write(study.elastic.slice(candidate), path, candidate.precision)
        assert gate.cost(candidate).size_bytes == pytest.approx(path.stat().st_size, rel=0.002)


def test_equal_shapes_are_measured_once(gate: CostGate) -> None:
    """Which layer of the teacher it is makes no difference to the time."""
    first = gate.cost(Candidate((0,), 1, 32))
    stored = [path.stat().st_mtime_ns for path in gate.folder.iterdir()]
    assert gate.cost(Candidate((1,), 1, 32)) == first
    assert [path.stat().st_mtime_ns for path in gate.folder.iterdir()] == stored
    gate.cost(Candidate((1,), 1, 32, precision=Precision.FP32))
    assert len(list(gate.folder.iterdir())) == 2


def test_a_shape_has_the_candidates_widths(study: Study) -> None:
    """And everything else of the teacher's."""
    teacher = export.graph_shape_of(study.elastic.net.model)
    shape = graph_shape(teacher, Candidate((0, 1), 1, 32, 8))
    assert (shape.heads, shape.ffn, shape.embedding_bits) == ((1, 1), (32, 32), 8)
    assert replace(shape, heads=teacher.heads, ffn=teacher.ffn, embedding_bits=4) == teacher


def test_a_higher_rung_asks_only_what_is_new(study: Study, tmp_path: Path) -> None:
    """And finds the same as asked all at once."""
    asked: list[Candidate] = []

    def cut(candidate: Candidate) -> Any:
        asked.append(candidate)
        return study.elastic.slice(candidate)

    questions = scoring.sample(study.questions.certifying(Split.SEARCH))
    candidate = SPACE.within(2).smallest
    climbed = SliceScorer(cut, study.tokenizer, questions, tmp_path / "lock")
    climbed.f1(candidate, 6)
    climbed.f1(candidate, 6)
    assert len(asked) == 1
    at_once = SliceScorer(cut, study.tokenizer, questions, tmp_path / "lock")
    assert climbed.f1(candidate, 12) == at_once.f1(candidate, 12)


def test_words_are_rounded_to_the_bits_that_are_searched(study: Study) -> None:
    """Eight bits are made from the words themselves, not from their four-bit rounding."""
    fine, coarse = (study.elastic.slice(Candidate((0, 1), 2, 96, bits)) for bits in (8, 4))
    ids = [[7, 8, 9]]
    words = bert_of(study.largest.load()).embeddings.word_embeddings(torch.tensor(ids))
    gaps = [
        (bert_of(model).embeddings.word_embeddings(torch.tensor(ids)) - words).abs().max().item()
        for model in (fine, coarse)
    ]
    assert gaps[0] < gaps[1] / 8
