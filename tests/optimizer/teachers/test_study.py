"""A study whose teachers, first weights and largest model are different checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from optimizer.models import student
from optimizer.models.student import ModelError
from optimizer.students.exported import Exported
from optimizer.students.study import Study
from optimizer.study import stages
from optimizer.study.config import DataConfig, PhaseConfig, StudentConfig, StudyConfig, TrainConfig
from tests.optimizer.teachers import families

SHORT = TrainConfig(epochs=0.3, batch_size=8)


def study_of(data: Path, folder: Path, **roles: object) -> Study:
    config = StudyConfig.model_validate(
        {
            "name": "roles",
            "largest_name": "tiny-2",
            "max_tokens": 64,
            "train": (PhaseConfig(epochs=0.3, batch_size=8),),
            "data": (DataConfig(source="train.json.xz", by_article=True, certifies=True),),
            "students": (StudentConfig(name="tiny-1", layers=(0,), ffn=48, train=SHORT),),
            **roles,
        }
    )
    return Study(config, data, folder)


@pytest.fixture(scope="module")
def taught(tiny_backbone: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a trained study: two teachers of other families, a BERT that learns from them."""
    folder = tmp_path_factory.mktemp("roles")
    teachers = tuple(str(families.save(f, folder / f)) for f in ("deberta-v3", "xlnet"))
    study = study_of(tiny_data, folder / "run", teacher=teachers, weights=str(tiny_backbone))
    study.largest.train()
    study.train_student(study.config.students[0])
    return study


def test_teachers_of_other_families_are_neither_cut_nor_published(taught: Study) -> None:
    """What is published starts from the weights, in the weights' own words."""
    assert taught.variant_names == ("tiny-2", "tiny-1")
    assert taught.model("tiny-2").config.model_type == "bert"
    exported = Exported(taught, "tiny-1").export()
    assert exported["operators"]
    found = sorted(p.name.rpartition("-")[0] for p in (taught.folder / "teacher-answers").iterdir())
    assert found == ["deberta-v3", "xlnet"]


def test_the_manifest_says_how_many_answers_were_mapped(taught: Study) -> None:
    """By teacher; there are no states of another model's to be like."""
    manifest = stages.read_manifest(taught.folder / "teacher-states")
    assert manifest is not None
    assert manifest["results"]["rows"] == len(taught.distillation.rows)
    assert len(manifest["results"]["mapped"]) == 2
    assert not list((taught.folder / "teacher-states").glob("*.f16"))


def test_a_second_run_asks_and_trains_nothing(taught: Study, tmp_path: Path) -> None:
    """The teachers' weights are not even opened, once their files are known to be the same."""
    before = {p: p.stat().st_mtime_ns for p in taught.folder.rglob("*") if p.is_file()}
    again = Study(taught.config, taught.data_dir, taught.folder)
    again.largest.train()
    again.train_student(again.config.students[0])
    assert {p: p.stat().st_mtime_ns for p in taught.folder.rglob("*") if p.is_file()} == before


def test_students_may_start_from_other_weights_than_the_largest_model(
    tiny_backbone: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Then the largest model teaches by its answers, whatever its width."""
    study = study_of(
        tiny_data,
        tmp_path / "run",
        largest="model_repository/minilm-6",
        weights=str(tiny_backbone),
    )
    study.largest.train()
    found = study.train_student(study.config.students[0])
    assert found["parameters"] < 3e6
    assert student.load(str(tmp_path / "run" / "teacher")).config.hidden_size == 384
    assert study.distillation.start().config.hidden_size == 64


def test_weights_with_other_words_are_refused(
    tiny_backbone: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """All that is published together shares one tokenizer."""
    other = tmp_path / "other"
    shutil.copytree(tiny_backbone, other)
    families.lower_word_piece().save(str(other / "tokenizer.json"))
    study = study_of(
        tiny_data,
        tmp_path / "run",
        largest="model_repository/minilm-6",
        weights=str(other),
    )
    study.largest.train()
    with pytest.raises(ModelError, match="its vocabulary differs from the largest model's"):
        study.train_student(study.config.students[0])


def test_a_teacher_that_cannot_be_cut_says_what_it_can_do(tiny_data: Path, tmp_path: Path) -> None:
    """It may teach, once the study has weights to start from."""
    folder = families.save("deberta-v3", tmp_path / "teacher")
    with pytest.raises(ModelError, match=r"it can still be a teacher: name the weights"):
        study_of(tiny_data, tmp_path / "run", teacher=str(folder)).largest.train()
