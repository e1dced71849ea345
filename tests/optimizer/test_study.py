"""A whole study on a tiny BERT: trained, distilled, exported, certified, published, resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway import catalog as catalogs
from gateway.catalog import Catalog
from optimizer import publication, student
from optimizer.config import (
    CertifyConfig,
    DataConfig,
    ElasticConfig,
    StudentConfig,
    StudyConfig,
    TrainConfig,
)
from optimizer.space import Space
from optimizer.study import Study


def study_of(backbone: Path, data: Path, folder: Path) -> Study:
    config = StudyConfig(
        name="tiny",
        backbone=str(backbone),
        teacher_name="tiny-2",
        train=TrainConfig(epochs=1, batch_size=8, max_tokens=64),
        data=(DataConfig(source="train.json.xz", by_article=True, certifies=True),),
        students=(
            StudentConfig(
                name="tiny-1",
                layers=(0,),
                ffn=48,
                embedding_bits=4,
                train=TrainConfig(epochs=1, batch_size=8, max_tokens=64),
            ),
            StudentConfig(
                name="tiny-slice", start="elastic", layers=(1,), heads=1, ffn=32, embedding_bits=4
            ),
        ),
        elastic=ElasticConfig(
            space=Space(layers=((0, 1), (1,)), heads=(1, 2), ffn=(32, 96)),
            train=TrainConfig(epochs=0.5, batch_size=8, max_tokens=64),
        ),
        report=("test.json",),
    )
    return Study(config, data, folder)


@pytest.fixture(scope="module")
def study(tiny_backbone: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    found = study_of(tiny_backbone, tiny_data, tmp_path_factory.mktemp("run"))
    found.train_teacher()
    assert found.config.elastic is not None
    found.train_elastic(found.config.elastic)
    for config in found.config.students:
        found.train_student(config)
    return found


@pytest.fixture(scope="module")
def repository(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model_repository"
    publication.publish(study, folder, allow_dominated=True)
    return folder


def test_a_study_ends_in_a_repository_that_validates(repository: Path) -> None:
    """What the optimizer writes is what the gateway can read."""
    catalog = catalogs.read(repository)
    assert [v.name for v in catalog.variants] == ["tiny-2", "tiny-1", "tiny-slice"]
    assert catalogs.check_files(repository, catalog) == []


def test_students_are_smaller_than_their_teacher(repository: Path) -> None:
    """A student that costs as much as its teacher is of no use."""
    teacher, *students = catalogs.read(repository).variants
    for small in students:
        assert small.size_bytes < teacher.size_bytes
        assert small.shape.layers < teacher.shape.layers
        assert small.profile.cell(384).p50_ms < teacher.profile.cell(384).p50_ms


def test_a_slice_of_the_elastic_student_has_its_own_shape(repository: Path) -> None:
    """The catalog tells what is served, not what it was cut from."""
    shape = catalogs.read(repository).variant("tiny-slice").shape
    assert (shape.layers, shape.heads, shape.ffn) == (1, 1, 32)


def test_floors_lie_below_the_sample_mean(repository: Path) -> None:
    """A floor is a lower bound, and a few contexts cannot carry a tight one."""
    for plan in catalogs.read(repository).plans:
        certificate = plan.certificate
        assert certificate.floor <= certificate.f1
        assert certificate.n_contexts < certificate.n_questions


def test_a_certificate_tells_of_its_parts_and_of_other_data(repository: Path) -> None:
    """The floor of all says little to who asks answerable questions only."""
    catalog = catalogs.read(repository)
    for plan in catalog.plans:
        certificate = plan.certificate
        assert {b.method for b in certificate.bounds} == {"betting (WSR)", "Hoeffding-Bentkus"}
        assert certificate.floor in {b.floor for b in certificate.bounds}
        strata = [s.name for s in certificate.strata]
        assert strata == ["answerable", "unanswerable", "to 128 tokens"]
        checked = [(c.data, c.stratum) for c in certificate.checks]
        assert checked == [(d, s) for d in ("fresh contexts", "test") for s in ("all", *strata)]
        card = (repository / plan.name / "README.md").read_text()
        assert "| unanswerable |" in card


def test_the_gates_stand_before_a_publication(study: Study, tmp_path: Path) -> None:
    """A study asks for a floor; when none keeps it, nothing is written."""
    asked = study.config.model_copy(update={"certify": CertifyConfig(min_floor=0.999)})
    with pytest.raises(publication.NothingToPublish, match=r"no variant is certified at F1 0\.999"):
        publication.publish(replace(study, config=asked), tmp_path / "repo", allow_dominated=True)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_trains_nothing(study: Study, tiny_backbone: Path, tiny_data: Path) -> None:
    """A finished stage is skipped, so a killed study goes on where it was."""
    weights = study.teacher_folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = study_of(tiny_backbone, tiny_data, study.folder)
    again.train_teacher()
    assert weights.stat().st_mtime_ns == before


def test_publishing_the_same_study_again_adds_no_version(study: Study, repository: Path) -> None:
    """Versions stand for models, not for publications."""
    catalog = publication.publish(study, repository, allow_dominated=True)
    assert [v.version for v in catalog.variants] == [1, 1, 1]
    folders = sorted(p.name for p in (repository / "tiny-1").iterdir())
    assert folders == ["1", "README.md", "config.pbtxt"]


def test_int8_answers_depend_on_the_batch(repository: Path) -> None:
    """Dynamic INT8 is published as batch-variant, so Triton gets it one request at a time."""
    for variant in catalogs.read(repository).variants:
        assert not variant.batch_invariant
        config = (repository / variant.name / "config.pbtxt").read_text()
        assert "max_batch_size: 1\n" in config


def test_the_catalog_survives_a_round_trip(repository: Path, tmp_path: Path) -> None:
    """What is written is what is read, to the last digit."""
    catalog: Catalog = catalogs.read(repository)
    catalogs.write(tmp_path, catalog)
    assert catalogs.read(tmp_path) == catalog


def test_a_trained_student_is_a_checkpoint_too(study: Study) -> None:
    """Another study can start from it, and any other program can load it."""
    found = student.load(str(study.folder / "students" / "tiny-1" / "checkpoint"))
    assert found.config.num_hidden_layers == 1
    assert found.config.intermediate_size == 48
