"""Comparisons on a real study, tiny: trained, sliced, exported and asked as it is served."""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from optimizer.benchmarks import commands as compare_cli
from optimizer.benchmarks import labels as compare_labels
from optimizer.benchmarks import latency, results, searches
from optimizer.benchmarks import reference as compare_reference
from optimizer.benchmarks.reference import FP32
from optimizer.benchmarks.results import ComparisonError, Contest, Labels, ReferenceComparison
from optimizer.benchmarks.searches import ComparisonPlan
from optimizer.cli import main
from optimizer.publish import publication
from optimizer.search import subarchitecture
from optimizer.search.costs import Wanted
from optimizer.search.scoring import SliceScorer
from optimizer.students.study import Study
from optimizer.students.trainings import Trainer, outputs_only, teacher_layers
from optimizer.study.config import RelationLoss, Sampler, SearchConfig, TrainConfig
from optimizer.study.space import RECIPE_KNOBS, Candidate
from optimizer.training import loop
from tests.optimizer.students.test_study import study_of

SEARCH = SearchConfig(sampler=Sampler.RANDOM, trials=4, tokens=64, questions=(6, 12))
ELASTIC_MINUTES = 0.1  # trainings have as much time beside that of the first method
PLAN = ComparisonPlan(
    ("tpe", "random", "bort", "trainings"), 2, 4, None, 0.2, elastic_minutes=ELASTIC_MINUTES
)


@pytest.fixture(scope="module", autouse=True)
def _latency_by_size() -> Iterator[None]:
    """What so tiny models take is noise, by which the largest may be the fastest; tests of the gate measure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wanted, "_p95_ms", lambda _, path: path.stat().st_size / 1e6)
        yield


@pytest.fixture(scope="module")
def study(
    tiny_backbone: Path, tiny_data: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    found = study_of(tiny_backbone, tiny_data, folder)
    return replace(found, config=found.config.model_copy(update={"search": SEARCH}))


@pytest.fixture(scope="module")
def labels(study: Study) -> Labels:
    return compare_labels.run(study, from_teacher=False)


@pytest.fixture(scope="module")
def contest(study: Study) -> Contest:
    return searches.run(study, PLAN, study.folder / "lock")


@pytest.fixture(scope="module")
def reference(study: Study, tmp_path_factory: pytest.TempPathFactory) -> ReferenceComparison:
    repository = tmp_path_factory.mktemp("published") / "model_repository"
    publication.publish(study, repository, allow_dominated=True, allow_constant=True)
    return compare_reference.run(study, repository, rounds=4)


# Labels


def test_a_twin_is_trained_for_as_long_on_labels_alone(study: Study, labels: Labels) -> None:
    """Same shape, same steps, other weights: what differs is what it learned from."""
    folders = [study.folder / "students" / name for name in ("tiny-1", "tiny-1.labels")]
    curves = [json.loads((folder / "losses.json").read_text()) for folder in folders]
    assert curves[0]["steps"] == curves[1]["steps"] > 0
    ours, twins = (torch.load(folder / "student.pt", weights_only=True) for folder in folders)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in twins.items()}
    assert any((ours[name] != weights).any() for name, weights in twins.items())
    manifest = json.loads((folders[1] / "manifest.json").read_text())
    assert manifest["inputs"]["distill"]["labels_only"] is True
    assert labels.start == "slice"


def test_twins_are_compared_where_thresholds_come_from_and_on_test_data(labels: Labels) -> None:
    """Only students with a training of their own have a twin."""
    assert [(p.first, p.second, p.data) for p in labels.pairs] == [
        ("tiny-1", "tiny-1.labels", "search"),
        ("tiny-1", "tiny-1.labels", "test"),
    ]
    for pair in labels.pairs:
        assert pair.f1_difference.mean == pytest.approx(pair.f1[0] - pair.f1[1])
        assert pair.forced_difference is not None
        assert pair.f1_difference.low <= pair.f1_difference.mean <= pair.f1_difference.high
        assert pair.n > pair.n_contexts > 1


def test_the_same_comparison_again_trains_nothing(study: Study, labels: Labels) -> None:
    """Every twin is a stage of the run folder."""
    trained = {path: path.stat().st_mtime_ns for path in study.folder.rglob("*.pt")}
    again = compare_labels.run(study, from_teacher=False)
    assert trained == {path: path.stat().st_mtime_ns for path in study.folder.rglob("*.pt")} != {}
    assert again.pairs == labels.pairs
    assert results.read(Labels, study.folder / results.LABELS) == again


def test_a_twin_from_the_teacher_has_the_teachers_layers(study: Study) -> None:
    """Through whatever the student was cut from."""
    first, sliced = study.config.students
    chained = first.model_copy(update={"name": "chained", "start": "tiny-1", "layers": (0,)})
    for config, layers in ((first, (0,)), (sliced, (1,)), (chained, (0,))):
        twin = compare_labels.twin_of(study, config, from_teacher=True)
        assert (twin.start, twin.layers, twin.ffn) == (None, layers, config.ffn)
        assert twin.name != config.name
    assert teacher_layers((0, 2), 3, 6) == (0, 4)
    assert teacher_layers((1, 3, 5), 6, 6) == (1, 3, 5)


def test_without_a_trained_student_there_is_nothing_to_compare(study: Study) -> None:
    """The message says which command trains one."""
    none = study.config.model_copy(update={"students": study.config.students[1:]})
    with pytest.raises(ComparisonError, match="bertier-optimize finish"):
        compare_labels.run(replace(study, config=none), from_teacher=False)


# Searches


def test_every_method_has_every_seed(study: Study, contest: Contest) -> None:
    """The file is what was returned."""
    runs = {(run.method, run.seed) for run in contest.runs}
    assert runs == {(method, seed) for method in PLAN.methods for seed in range(2)}
    assert results.read(Contest, study.folder / results.SEARCHES) == contest
    assert {(a.method, a.at) for a in contest.against} == {
        ("random", "candidates"),
        ("random", "minutes"),
        ("bort", "candidates"),
        ("bort", "minutes"),
        ("trainings", "minutes"),
    }
    assert all(a.seeds == 2 for a in contest.against)


def test_slices_have_the_same_number_of_candidates_and_pay_for_the_elastic_student(
    contest: Contest,
) -> None:
    """Its training is part of every search that uses it."""
    for run in (r for r in contest.runs if r.method != "trainings"):
        assert run.candidates == PLAN.candidates
        assert run.minutes > contest.elastic_minutes == ELASTIC_MINUTES
        assert all(ELASTIC_MINUTES < step.minutes <= run.minutes for step in run.curve)
        assert run.hypervolume > 0


def test_the_grid_of_bort_is_part_of_its_minutes(
    study: Study, contest: Contest, tmp_path: Path
) -> None:
    """It measures all shapes before it tries one; a run that goes on does not pay for them again."""
    shutil.copytree(study.folder / "compare", tmp_path / "compare")
    for name in ("teacher", "elastic"):
        (tmp_path / name).symlink_to(study.folder / name)
    grid_s = 60.0
    with sqlite3.connect(tmp_path / "compare" / "searches" / "ledger.db") as database:
        database.execute("UPDATE results SET seconds = ? WHERE key LIKE '%/cost/%'", (grid_s,))
        database.execute("DELETE FROM charges WHERE run LIKE '%/bort-0'")
    shutil.rmtree(tmp_path / "compare" / "searches" / "bort-0")
    elsewhere, plan = replace(study, folder=tmp_path), replace(PLAN, methods=("bort",), seeds=1)
    n_shapes = len(subarchitecture.grid_of(study.elastic.config.space))
    (once,) = searches.run(elsewhere, plan, tmp_path / "lock").runs
    assert once.minutes == pytest.approx(ELASTIC_MINUTES + n_shapes * grid_s / 60, rel=0.2)
    more = replace(plan, candidates=PLAN.candidates + 1)
    (again,) = searches.run(elsewhere, more, tmp_path / "lock").runs
    assert once.minutes < again.minutes < once.minutes + n_shapes * grid_s / 60
    assert again.best_w >= once.best_w > 0


def test_trainings_fit_into_the_minutes_of_the_first_method(contest: Contest) -> None:
    """The same seed's, the elastic student included."""
    taken = {run.seed: run.minutes for run in contest.of("tpe")}
    for run in contest.of("trainings"):
        assert run.budget_minutes == taken[run.seed]
        assert run.minutes <= run.budget_minutes


def test_a_finished_comparison_evaluates_nothing(
    study: Study, contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is in the run folder: the same command shows the same result."""

    def fail(*_args: Any, **_more: Any) -> float:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(SliceScorer, "f1", fail)
    monkeypatch.setattr(loop, "train", fail)
    assert searches.run(study, PLAN, study.folder / "lock").runs == contest.runs


def test_a_killed_comparison_goes_on(study: Study, tmp_path: Path, contest: Contest) -> None:
    """Finished trials are kept, and nothing is scored twice."""
    asked: list[tuple[Candidate, int]] = []
    real = SliceScorer.f1

    def stop_at(n: int) -> Any:
        def f1(scorer: SliceScorer, candidate: Candidate, questions: int) -> float:
            if len(asked) == n:
                raise KeyboardInterrupt
            found = real(scorer, candidate, questions)
            asked.append((candidate, questions))
            return found

        return f1

    alone = replace(PLAN, methods=("random",), seeds=1)
    shutil.copytree(study.folder / "compare" / "costs", tmp_path / "compare" / "costs")
    for name in ("teacher", "elastic"):
        (tmp_path / name).symlink_to(study.folder / name)
    elsewhere = replace(study, folder=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SliceScorer, "f1", stop_at(3))
        with pytest.raises(KeyboardInterrupt):
            searches.run(elsewhere, alone, tmp_path / "lock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SliceScorer, "f1", stop_at(1000))
        (run,) = searches.run(elsewhere, alone, tmp_path / "lock").runs
    assert run.candidates == PLAN.candidates
    assert len(asked) == len(set(asked)) > 3


def test_a_cap_ends_a_run_early(study: Study, contest: Contest, tmp_path: Path) -> None:
    """And the result says at which scale it was made; what was found before the cap is the same."""
    whole = contest.of("random")[0]
    assert len(whole.curve) > 0
    cap = (whole.curve[0].minutes - contest.elastic_minutes) * 1.0001
    shutil.copytree(study.folder / "compare", tmp_path / "compare")
    for name in ("teacher", "elastic"):
        (tmp_path / name).symlink_to(study.folder / name)
    plan = replace(PLAN, methods=("random",), seeds=1, minutes_cap=cap)
    brief = searches.run(replace(study, folder=tmp_path), plan, tmp_path / "lock")
    assert brief.minutes_cap == cap
    assert brief.runs[0].candidates < whole.candidates
    assert brief.runs[0].minutes <= contest.elastic_minutes + cap


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ("magic",)}, "must be among gp, tpe"),
        ({"methods": ("trainings", "gp")}, "name a sampler first"),
        ({"seeds": 0}, "seeds 0"),
        ({"minutes_cap": -1.0}, "minutes_cap -1"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(
    study: Study, change: dict[str, Any], said: str
) -> None:
    """Before anything is evaluated."""
    with pytest.raises(ComparisonError, match=said):
        searches.run(study, replace(PLAN, **change))


def test_a_trained_candidate_is_cut_from_the_teacher(study: Study, tmp_path: Path) -> None:
    """With the teacher's outputs and no states in its loss; a second look trains nothing."""
    trainer = Trainer(outputs_only(study), 2, TrainConfig(epochs=0.2, batch_size=8), 5, tmp_path)
    candidate = Candidate((1,), 1, 32)
    model = trainer.student(candidate)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (1, 32)
    assert trainer.inputs["distill"]["hidden_weight"] == 0
    assert trainer.late_s() == 0
    again = trainer.student(candidate)
    assert trainer.late_s() > 0
    weights = model.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in again.state_dict().items())
    trainer.forget(candidate)
    assert list(tmp_path.iterdir()) == []


def test_every_key_of_a_recipe_is_used(study: Study, tmp_path: Path) -> None:
    """Two trainings that differ in one key end in different weights; without a difference, in the same."""
    inside = RelationLoss(loss="relations", heads=2, student_layer=1)
    distill = study.config.distill.model_copy(update={"intermediate": (inside,)})
    study = replace(study, config=study.config.model_copy(update={"distill": distill}))
    trainer = Trainer(study, 2, TrainConfig(epochs=0.1, batch_size=8), 5, tmp_path)

    def weights(*recipe: tuple[str, float]) -> dict[str, torch.Tensor]:
        candidate = Candidate((0, 1), 2, 96, keep=0.5, drop_after=1, recipe=recipe)
        found: dict[str, torch.Tensor] = trainer.student(candidate).state_dict()
        return found

    other = {
        "temperature": 8.0,
        "label_weight": 0.9,
        "hidden_weight": 0.0,
        "early_weight": 3.0,
        "intermediate_weight": 0.2,
        "learning_rate": 3e-4,
        "warmup": 0.9,
        "weight_decay": 0.5,
    }
    usual = weights()

    def differs(*recipe: tuple[str, float]) -> bool:
        found = weights(*recipe)
        return not all(torch.equal(w, found[key]) for key, w in usual.items())

    assert set(other) == set(RECIPE_KNOBS)
    assert not differs(("temperature", distill.temperature))
    assert [name for name, value in other.items() if not differs((name, value))] == []


# The fp32 teacher


def test_variants_are_set_beside_the_fp32_teacher(reference: ReferenceComparison) -> None:
    """Every ratio is of what the file says."""
    times = {(t.model, t.tokens): t for t in reference.timings}
    assert all(t.cpu_ms > 0 and t.min_ms <= t.median_ms for t in reference.timings)
    words_bytes = 4 * 30522 * 64  # published, a word has 8 bits
    assert words_bytes < reference.size_bytes
    assert {t.bucket for t in reference.timings if t.tokens == 177} == {192}
    assert {line.variant for line in reference.headlines} == {"tiny-2", "tiny-1", "tiny-slice"}
    for line in reference.headlines:
        assert line.times_smaller == pytest.approx(reference.size_bytes / line.size_bytes)
        for n in latency.LENGTHS:
            ratio = times[FP32, n].min_ms / times[line.variant, n].min_ms
            assert line.times_faster[n] == pytest.approx(ratio)
        forced = reference.quality[-1].forced_f1
        assert line.forced_f1 is not None
        assert forced
        assert line.share_of_forced_f1 == pytest.approx(line.forced_f1 / forced)
        assert line.data == reference.quality[-1].data == "test"


def test_quantization_is_reported_as_a_paired_loss(
    study: Study, reference: ReferenceComparison
) -> None:
    """The teacher as published against itself in fp32, on the test data."""
    (pair,) = reference.int8
    assert (pair.first, pair.second, pair.data) == ("tiny-2", FP32, "test")
    assert pair.f1_difference.low <= pair.f1[0] - pair.f1[1] <= pair.f1_difference.high
    assert pair.f1[1] == pytest.approx(reference.quality[-1].f1)
    path = study.folder / results.REFERENCE
    assert results.read(ReferenceComparison, path) == reference


def test_a_window_is_padded_to_its_bucket() -> None:
    """177 tokens are served as 192, of which 15 are no tokens."""
    windows = latency.windows_of(177)
    assert windows.input_ids.shape == (1, 192)
    assert int(windows.attention_mask.sum()) == 177
    assert not windows.is_context[:, 177:].any()


def test_the_commands_print_a_table_and_return_what_they_found(
    study: Study,
    labels: Labels,
    contest: Contest,
    reference: ReferenceComparison,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All that was computed before is shown again."""
    parser, options = argparse.ArgumentParser(), argparse.ArgumentParser(add_help=False)
    compare_cli.add(parser.add_subparsers(), options, lambda _: study)

    def ask(*given: str) -> dict[str, Any]:
        args = parser.parse_args(given)
        found: dict[str, Any] = json.loads(json.dumps(args.run(args)))
        return found

    assert len(ask("compare", "labels")["pairs"]) == len(labels.pairs)
    assert "labels alone, from the same slice" in capsys.readouterr().out
    methods = ("--methods", ",".join(PLAN.methods), "--seeds", "2", "--epochs", "0.2")
    found = ask("compare", "searches", *methods, "--elastic-minutes", str(ELASTIC_MINUTES))
    assert [run["hypervolume"] for run in found["runs"]] == [r.hypervolume for r in contest.runs]
    assert "box to F1 0" in " ".join(capsys.readouterr().out.split())
    Console().print(compare_cli.reference_table(reference))
    assert "177 tokens in a bucket of 192" in " ".join(capsys.readouterr().out.split())


def test_the_program_knows_the_commands(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study without trained students is named what makes some."""
    file = tmp_path / "study.toml"
    file.write_text('name = "x"\nteacher_name = "t"\n[[data]]\nsource = "d"\ncertifies = true\n')
    given = ["--study", str(file), "--run-dir", str(tmp_path)]
    assert main.main(["compare", "labels", *given]) == 1
    assert "bertier-optimize finish" in capsys.readouterr().err
    assert main.main(["compare", "searches", *given]) == 1
    assert "a search needs [elastic]" in capsys.readouterr().err
    assert main.main(["reference", *given, "--model-repository", str(tmp_path)]) == 1
