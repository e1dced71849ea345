"""A whole study on a tiny BERT: trained, distilled, exported, certified, published, resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gateway.catalog import schema as published
from gateway.catalog import store
from gateway.catalog.schema import Precision
from gateway.catalog.store import Catalog
from gateway.errors import RepositoryError
from gateway.lifecycle.validation import validate
from gateway.settings import Settings
from optimizer.certify import certification, plans
from optimizer.data.question_sets import DataError
from optimizer.models import student
from optimizer.models.layer_widths import ffn_of
from optimizer.publish import publication, recertify
from optimizer.students.exported import Exported
from optimizer.students.study import Study
from optimizer.study.config import (
    CertifyConfig,
    DataConfig,
    ElasticConfig,
    PhaseConfig,
    PruneConfig,
    StudentConfig,
    StudyConfig,
    TrainConfig,
)
from optimizer.study.space import Candidate, Space
from tests.optimizer.conftest import question_set
from tests.optimizer.models.test_magnitude import products


def study_of(backbone: Path, data: Path, folder: Path) -> Study:
    config = StudyConfig(
        name="tiny",
        backbone=str(backbone),
        largest_name="tiny-2",
        max_tokens=64,
        train=(PhaseConfig(epochs=1, batch_size=8),),
        data=(DataConfig(source="train.json.xz", by_article=True, certifies=True),),
        students=(
            StudentConfig(
                name="tiny-1",
                layers=(0,),
                ffn=48,
                embedding_bits=4,
                train=TrainConfig(epochs=1, batch_size=8),
            ),
            StudentConfig(
                name="tiny-slice", start="elastic", layers=(1,), heads=1, ffn=32, embedding_bits=4
            ),
        ),
        elastic=(
            ElasticConfig(
                space=Space(layers=((0, 1), (1,)), heads=(1, 2), ffn=(32, 96)),
                train=TrainConfig(epochs=0.5, batch_size=8),
            ),
        ),
        report=("test.json",),
    )
    return Study(config, data, folder)


@pytest.fixture(scope="module")
def study(
    tiny_backbone: Path, tiny_data: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    return study_of(tiny_backbone, tiny_data, folder)


@pytest.fixture(scope="module")
def repository(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model_repository"
    publication.publish(study, folder, allow_dominated=True, allow_constant=True)
    return folder


def test_a_study_ends_in_a_repository_that_validates(repository: Path) -> None:
    """What the optimizer writes is what the gateway can read."""
    catalog = store.read(repository)
    assert [v.name for v in catalog.variants] == ["tiny-2", "tiny-1", "tiny-slice"]
    assert store.check_files(repository, catalog) == []


def test_students_are_smaller_than_their_teacher(repository: Path) -> None:
    """A student that costs as much as its teacher is of no use."""
    teacher, *students = store.read(repository).variants
    for small in students:
        assert small.size_bytes < teacher.size_bytes
        assert small.shape.layers < teacher.shape.layers


def test_a_slice_of_the_elastic_student_has_its_own_shape(repository: Path) -> None:
    """The catalog tells what is served, not what it was cut from."""
    shape = store.read(repository).variant("tiny-slice").shape
    assert (shape.layers, shape.heads, shape.ffn) == (1, 1, 32)


def test_a_student_is_published_in_its_own_precision(study: Study, tmp_path: Path) -> None:
    """FP16 is for a GPU and may be batched there; what it drops is said, too."""
    half = StudentConfig(
        name="tiny-half",
        layers=(0, 1),
        ffn=96,
        keep=0.5,
        drop_after=1,
        precision=Precision.FP16,
    )
    asked = replace(study, config=study.config.model_copy(update={"students": (half,)}))
    catalog = publication.publish(
        asked, tmp_path / "repo", allow_dominated=True, allow_constant=True
    )
    variant = catalog.variant("tiny-half")
    assert (variant.precision, variant.max_batch) == (published.Precision.FP16, published.MAX_BATCH)
    assert (variant.shape.keep, variant.shape.drop_after) == (0.5, 1)
    config = (tmp_path / "repo" / "tiny-half" / "config.pbtxt").read_text()
    assert "KIND_AUTO" in config
    assert f"max_batch_size: {published.MAX_BATCH}\n" in config
    assert "then FP16, for a GPU." in variant.recipe
    assert validate(tmp_path / "repo", Settings()).problems == ()


def test_a_student_that_drops_tokens_often_is_trained_and_published(
    study: Study, tmp_path: Path
) -> None:
    """Its heads are trained, loaded again and served; the next student may start from it, not from the file."""
    fewer = StudentConfig(
        name="tiny-fewer",
        layers=(0, 1, 1),
        ffn=96,
        keep=(1.0, 0.75, 0.5),
        precision=Precision.FP16,
        train=TrainConfig(epochs=0.2, batch_size=8),
    )
    again = StudentConfig(
        name="tiny-again",
        start="tiny-fewer",
        layers=(0, 1, 2),
        ffn=48,
        keep=(1.0, 1.0, 0.5),
        precision=Precision.FP16,
    )
    asked = replace(study, config=study.config.model_copy(update={"students": (fewer, again)}))
    asked.train_student(fewer)
    trained, first = asked.model("tiny-fewer"), asked.model("tiny-again")
    heads = [trained.get_parameter(f"early_outputs{i}.weight") for i in ("", "_2")]
    assert not torch.equal(*heads)
    assert torch.equal(first.get_parameter("early_outputs.weight"), heads[0])
    repository = tmp_path / "repo"
    catalog = publication.publish(asked, repository, allow_dominated=True, allow_constant=True)
    shape = catalog.variant("tiny-fewer").shape
    assert (shape.keep, shape.drop_after, shape.layer_keep) == (0.5, 1, (1.0, 0.75, 0.5))
    shape = catalog.variant("tiny-again").shape
    assert (shape.keep, shape.drop_after, shape.layer_keep) == (0.5, 2, ())
    assert validate(repository, Settings()).problems == ()
    assert not (asked.folder / "students" / "tiny-fewer" / "checkpoint").exists()
    with pytest.raises(student.ModelError, match="it drops tokens; give a variant"):
        student.load(str(repository / "tiny-fewer"))


def test_a_student_whose_layers_differ_is_trained_and_published(
    study: Study, tmp_path: Path
) -> None:
    """What was cut is trained, loaded with its widths again, served and described."""
    uneven = StudentConfig(
        name="tiny-uneven",
        layers=(0, 1),
        ffn=(96, 32),
        heads=(1, 2),
        embedding_bits=4,
        train=TrainConfig(epochs=0.2, batch_size=8),
    )
    asked = replace(study, config=study.config.model_copy(update={"students": (uneven,)}))
    asked.train_student(uneven)
    catalog = publication.publish(
        asked, tmp_path / "repo", allow_dominated=True, allow_constant=True
    )
    variant = catalog.variant("tiny-uneven")
    assert (variant.shape.layer_ffn, variant.shape.layer_heads) == ((96, 32), (1, 2))
    even = student.cut(asked.largest.load(), (0, 1), 96, 2)
    gone = 64 * (64 * 2 + 1) + 32 * (4 * 64 + 3)  # neurons of a layer, a head of the other
    assert variant.parameters == student.parameters_of(even) - gone
    assert not (asked.folder / "students" / "tiny-uneven" / "checkpoint").exists()
    assert validate(tmp_path / "repo", Settings()).problems == ()


def test_a_pruned_student_has_the_widths_that_are_left(study: Study) -> None:
    """Which those are, its weights say: it is loaded without being measured again."""
    pruned = StudentConfig(
        name="tiny-pruned",
        layers=(0, 1),
        ffn=96,
        embedding_bits=4,
        train=TrainConfig(epochs=0.3, batch_size=8),
        prune=PruneConfig(ffn=64, heads=1),
    )
    asked = replace(study, config=study.config.model_copy(update={"students": (pruned,)}))
    found = asked.train_student(pruned)
    model = asked.model("tiny-pruned")
    assert (ffn_of(model), student.heads_of(model)) == ((64, 64), (1, 1))
    assert found["parameters"] == student.parameters_of(model)
    assert "its layers 0, 1, pruned by movement while" in publication._recipe(asked, "tiny-pruned")


def test_a_ticket_is_trained_from_the_start_with_the_masks_of_another(study: Study) -> None:
    """A change of the other one is a change of its own; what it keeps, the other's weights say."""
    other = StudentConfig(
        name="tiny-dense",
        layers=(0, 1),
        ffn=96,
        embedding_bits=4,
        train=TrainConfig(epochs=0.3, batch_size=8),
    )
    prune = PruneConfig(weights=0.5, ticket="tiny-dense")
    ticket = other.model_copy(update={"name": "tiny-ticket", "prune": prune})
    asked = replace(study, config=study.config.model_copy(update={"students": (other, ticket)}))
    for config in (other, ticket):
        asked.train_student(config)
    chosen_by, found = (products(asked.model(config.name)) for config in (other, ticket))
    n = round(0.5 * len(found))
    assert set(chosen_by.abs().topk(n, largest=False).indices.tolist()) == set(
        (found == 0).nonzero()[:, 0].tolist()
    )
    assert asked.student_inputs(ticket)["ticket"] == asked.student_inputs(other)
    said = publication._recipe(asked, "tiny-ticket")
    assert "its layers 0, 1 (50 % of the weights are 0, chosen by tiny-dense); then" in said


def test_another_precision_trains_nothing_anew(study: Study) -> None:
    """It is how trained weights are written; only the export depends on it."""
    small = study.config.students[0]
    half = small.model_copy(update={"precision": Precision.FP16})
    assert study.student_inputs(half) == study.student_inputs(small)


def test_floors_lie_below_the_sample_mean(repository: Path) -> None:
    """A floor is a lower bound, and a few contexts cannot carry a tight one."""
    for plan in store.read(repository).plans:
        certificate = plan.certificate
        assert certificate.floor <= certificate.f1
        assert certificate.n_contexts < certificate.n_questions


def test_a_certificate_tells_of_its_parts_and_of_other_data(repository: Path) -> None:
    """The floor of all says little to who asks answerable questions only."""
    catalog = store.read(repository)
    for plan in catalog.plans:
        certificate = plan.certificate
        assert {b.method for b in certificate.bounds} == {"betting (STaR)", "Hoeffding-Bentkus"}
        assert certificate.floor in {b.floor for b in certificate.bounds}
        strata = [s.name for s in certificate.strata]
        assert strata == ["answerable", "unanswerable", "to 128 tokens"]
        checked = [(c.data, c.stratum) for c in certificate.checks]
        assert checked == [
            ("test", s) for s in ("all", *strata)
        ]  # too few articles to hold some out
        assert certificate.paired is not None
        assert certificate.paired.to == "tiny-2"
    for variant in catalog.variants:
        card = (repository / variant.name / "README.md").read_text()
        assert "| unanswerable |" in card


def test_a_published_repository_is_certified_without_its_run_folder(
    study: Study, repository: Path, tmp_path: Path
) -> None:
    """The files that are served are asked; what was asked once is not asked again."""
    before = store.read(repository)
    published = tmp_path / "repository"
    shutil.copytree(repository, published)
    (published / store.PREVIOUS).unlink(missing_ok=True)
    arguments = (published, study.config, study.data_dir, tmp_path / "run")
    catalog, rated = recertify.certify(*arguments)
    assert [replace_commit(p) for p in catalog.plans] == [replace_commit(p) for p in before.plans]
    assert all(r.cpu["test"] > 0 for r in rated)
    asked = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("readings.json")}
    assert len(asked) == 3 * len(catalog.variants)
    recertify.write(published, *recertify.certify(*arguments)[:1])
    assert {p: p.stat().st_mtime_ns for p in asked} == asked
    assert store.check_files(published, store.read(published)) == []
    assert (published / store.PREVIOUS).read_bytes() == (repository / store.CATALOG).read_bytes()
    assert not list(published.rglob("*.part"))


def test_plans_are_certified_as_they_are_without_asking_the_test_data(
    study: Study, repository: Path, tmp_path: Path
) -> None:
    """After a new version of the method: the same floors of variants, a third of the questions asked; delta counts cascades that were left out, too."""
    arguments = (study.config, study.data_dir, tmp_path / "run")
    catalog, before = recertify.certify_as_they_are(repository, *arguments), store.read(repository)
    asked = {p.parent.name for p in (tmp_path / "run").rglob("readings.json")}
    assert asked == {"readings-calibrate"}
    for again, plan in zip(catalog.plans, before.plans, strict=True):
        assert (again.name, again.certified_f1) == (plan.name, plan.certified_f1)
        assert [c.f1 for c in again.certificate.checks] == [c.f1 for c in plan.certificate.checks]
        of_parts = zip(again.certificate.strata, plan.certificate.strata, strict=True)
        assert all(new.floor <= old.floor for new, old in of_parts)  # shared with cascades left out
    assert [v.quality for v in catalog.variants] == [v.quality for v in before.variants]
    assert [look.spent for look in catalog.looks] == [look.spent for look in before.looks]


def test_a_repository_whose_files_are_not_the_catalogs_is_not_certified(
    study: Study, repository: Path, tmp_path: Path
) -> None:
    """A certificate speaks of the files that are served."""
    published = tmp_path / "repository"
    shutil.copytree(repository, published)
    (published / "tiny-1" / "1" / "model.onnx").write_bytes(b"another")
    with pytest.raises(RepositoryError, match=r"not certified: .*sha256"):
        recertify.certify(published, study.config, study.data_dir, tmp_path / "run")


def replace_commit(plan: published.Plan) -> published.Plan:
    """Return the plan as it is whatever was committed meanwhile."""
    return replace(plan, certificate=replace(plan.certificate, commit=""))


def test_publish_checks_run_before_a_publication(study: Study, tmp_path: Path) -> None:
    """A study asks for a floor; when none keeps it, nothing is written."""
    asked = study.config.model_copy(update={"certify": CertifyConfig(min_floor=0.999)})
    with pytest.raises(publication.NothingToPublish, match=r"no variant is certified at F1 0\.999"):
        publication.publish(
            replace(study, config=asked),
            tmp_path / "repo",
            allow_dominated=True,
            allow_constant=True,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_trains_nothing(study: Study, tiny_backbone: Path, tiny_data: Path) -> None:
    """A finished stage is skipped, so a killed study goes on where it was."""
    weights = study.largest.folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = study_of(tiny_backbone, tiny_data, study.folder)
    again.largest.train()
    assert weights.stat().st_mtime_ns == before


def test_publishing_the_same_study_again_adds_no_version(study: Study, repository: Path) -> None:
    """Versions stand for models, not for publications."""
    catalog = publication.publish(study, repository, allow_dominated=True, allow_constant=True)
    assert [v.version for v in catalog.variants] == [1, 1, 1]
    folders = sorted(p.name for p in (repository / "tiny-1").iterdir())
    assert folders == ["1", "README.md", "README.previous.md", "config.pbtxt"]


def test_a_teacher_that_was_published_stays_the_file_it_is(
    study: Study, repository: Path, tmp_path: Path
) -> None:
    """Rounded once more it would be another model, and a new version of it for nothing."""
    name = study.config.largest_name
    changed = study.config.model_copy(update={"teacher": str(repository / name), "students": ()})
    again = replace(study, config=changed, folder=tmp_path / "run")
    again.largest.train()
    before = store.read(repository).variant(name)
    exported = Exported(again, name)
    assert exported.export()["sha256"] == before.sha256
    assert exported.file.read_bytes() == (repository / name / "1" / "model.onnx").read_bytes()


def test_int8_answers_depend_on_the_batch(repository: Path) -> None:
    """Dynamic INT8 is published as batch-variant, so Triton gets it one request at a time."""
    for variant in store.read(repository).variants:
        assert not variant.batch_invariant
        config = (repository / variant.name / "config.pbtxt").read_text()
        assert "max_batch_size: 1\n" in config


def test_the_catalog_survives_a_round_trip(repository: Path, tmp_path: Path) -> None:
    """What is written is what is read, to the last digit."""
    catalog: Catalog = store.read(repository)
    store.write(tmp_path, catalog)
    assert store.read(tmp_path) == catalog


def test_an_elastic_student_of_an_older_version_says_what_to_do(
    study: Study, tmp_path: Path
) -> None:
    """Its run folder may be older than the code."""
    weights = torch.load(study.folder / "elastic" / "elastic.pt", weights_only=True)
    del weights["neuron_mean_0"]
    shutil.copytree(study.largest.folder, tmp_path / "teacher")
    (tmp_path / "elastic").mkdir()
    torch.save(weights, tmp_path / "elastic" / "elastic.pt")
    with pytest.raises(student.ModelError, match="train again"):
        _ = replace(study, folder=tmp_path).elastic.net


def test_floors_need_contexts_and_their_check_does_not(study: Study, tmp_path: Path) -> None:
    """A few contexts certify little, but they do; none at all is said with what to do."""
    variants = publication.catalog_of(study, study.folder).variants
    none = certification.evidence_of(study)
    looked = plans.plans_of(variants, replace(none, hold_out=False))
    found = looked.kept[0].plan.certificate
    assert {check.data for check in found.checks} == {"test"}

    one = study.config.model_copy(update={"data": (DataConfig(source="one.json", certifies=True),)})
    (tmp_path / "one.json").write_text(json.dumps(question_set(0)))
    with pytest.raises(DataError, match="let a larger"):
        certification.evidence_of(replace(study, config=one, data_dir=tmp_path))


def test_a_teacher_is_trained_phase_by_phase(study: Study, tmp_path: Path) -> None:
    """Each goes on where the last ended; one that is done is never trained again."""
    first = study.config.train[0]
    second = PhaseConfig(epochs=0.5, batch_size=8, learning_rate=1e-3, seed=5)
    shutil.copytree(study.largest.folder, tmp_path / "teacher")  # its one phase is done
    config = study.config.model_copy(update={"train": (first, second)})
    done = tmp_path / "teacher" / "phase-1" / "model.safetensors"
    written = done.stat().st_mtime_ns
    Study(config, study.data_dir, tmp_path).largest.train()
    assert done.stat().st_mtime_ns == written

    one = student.load(str(tmp_path / "teacher" / "phase-1")).state_dict()
    two = student.load(str(tmp_path / "teacher")).state_dict()
    moved = {name: float((two[name] - one[name]).abs().max()) for name in one}
    assert 0 < max(moved.values()) < 1, "the second phase starts at the first's weights"


def test_a_phase_may_keep_a_share_of_its_start(study: Study, tmp_path: Path) -> None:
    """Averaged with its start, a phase moves by that much less."""
    config = study.config.train[0]
    kept = study.config.model_copy(
        update={"train": (config.model_copy(update={"keep_start": 0.75}),)}
    )
    Study(kept, study.data_dir, tmp_path).largest.train()
    start = student.load(study.config.backbone).state_dict()
    near = student.load(str(tmp_path / "teacher")).state_dict()
    far = study.largest.load().state_dict()
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.allclose(near[name] - start[name], 0.25 * (far[name] - start[name]), atol=1e-6)


def test_a_random_head_is_not_kept(study: Study, tmp_path: Path) -> None:
    """An encoder answers nothing yet: a share of its head would be a share of noise."""
    encoder = tmp_path / "encoder"
    student.bert_of(student.load(study.config.backbone)).save_pretrained(encoder)
    phase = study.config.train[0].model_copy(update={"keep_start": 0.25})
    changes = {"train": (phase,), "backbone": str(encoder), "teacher": None}
    config = study.config.model_copy(update=changes)
    with pytest.raises(student.ModelError, match="not fine-tuned to answer questions"):
        Study(config, study.data_dir, tmp_path / "run").largest._train_phase(0)


def test_a_slice_the_elastic_student_has_not_is_refused(study: Study) -> None:
    """It was trained for its space, and for nothing beside it."""
    with pytest.raises(student.ModelError, match="words of rank 0"):
        study.elastic.slice(Candidate((0, 1), 1, 32, 4, rank=64))


def test_a_trained_student_is_a_checkpoint_too(study: Study) -> None:
    """Another study can start from it, and any other program can load it."""
    found = student.load(str(study.folder / "students" / "tiny-1" / "checkpoint"))
    assert found.config.num_hidden_layers == 1
    assert found.config.intermediate_size == 48
