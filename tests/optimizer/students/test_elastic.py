"""An elastic student of low-rank words and dropped tokens, and students beside it, from labels alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizer.models import student
from optimizer.students.exported import Exported
from optimizer.students.study import Study
from optimizer.study.config import (
    DataConfig,
    DistillConfig,
    ElasticConfig,
    StudentConfig,
    StudyConfig,
    TrainConfig,
)
from optimizer.study.space import Candidate, Space

FEWER: dict[str, Any] = {"rank": 64, "keep": 0.5, "drop_after": 1}
BRIEF = TrainConfig(epochs=0.3, batch_size=8)


@pytest.fixture(scope="module")
def thin(tiny_backbone: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study of words of low rank and few tokens, learned from labels alone."""
    shape: dict[str, Any] = {"layers": (0, 1), "ffn": 32, "embedding_bits": 4, **FEWER}
    space = Space(
        layers=((0, 1), (1,)),
        heads=(1, 2),
        ffn=(32, 96),
        embedding_bits=(4, 8),
        rank=(0, 64),
        keep=(1.0, 0.5),
        drop_after=(1,),
    )
    config = StudyConfig(
        name="thin",
        backbone=str(tiny_backbone),
        teacher=str(tiny_backbone),
        largest_name="tiny-2",
        max_tokens=64,
        data=(DataConfig(source="train.json.xz", by_article=True, certifies=True),),
        distill=DistillConfig(labels_only=True),
        elastic=(ElasticConfig(space=space, train=BRIEF),),
        students=(
            StudentConfig(name="thin-slice", start="elastic", heads=1, **shape),
            StudentConfig(name="thin-own", train=BRIEF, **shape),
            StudentConfig(name="thin-whole", start="thin-own", layers=(0, 1), ffn=32, train=BRIEF),
        ),
    )
    found = Study(config, tiny_data, tmp_path_factory.mktemp("thin"))
    found.largest.train()
    found.elastic.train()
    for student_ in config.students:
        found.train_student(student_)
    return found


@pytest.mark.parametrize("name", ["thin-slice", "thin-own"])
def test_a_student_of_low_rank_and_few_tokens_is_trained_and_exported(
    thin: Study, name: str
) -> None:
    """From the elastic student or from the teacher; the gates hold the graph against PyTorch."""
    model = thin.model(name)
    shape = student.shape_of(model, 4)
    assert (shape.rank, shape.keep, shape.drop_after) == (64, 0.5, 1)
    assert Exported(thin, name).export()["size_bytes"] < 2.5e6
    assert not (thin.folder / "students" / name / "checkpoint").exists()


def test_a_student_may_start_from_one_that_drops_tokens(thin: Study) -> None:
    """It has what its own lines say: here words in full width, and all tokens."""
    shape = student.shape_of(thin.model("thin-whole"), 8)
    assert (shape.rank, shape.keep, shape.drop_after) == (0, 1.0, 0)
    found = student.load(str(thin.folder / "students" / "thin-whole" / "checkpoint"))
    assert found.config.num_hidden_layers == 2


def test_labels_alone_need_no_teacher(thin: Study) -> None:
    """Asking it about every row takes minutes to hours."""
    assert not thin.distillation.folder.exists()


def test_words_of_other_bits_are_rounded_from_the_same_table(thin: Study) -> None:
    """Eight bits of it are nearer to what four bits were made of."""
    net = thin.elastic.net.thin
    assert net is not None
    shape = Candidate((0, 1), 1, 32, 4, **FEWER)
    ids = torch.arange(30522)
    gaps = [
        float(
            (
                student.bert_of(thin.elastic.slice(c)).embeddings.word_embeddings(ids)
                - net.exact(64)
            ).norm()
        )
        for c in (shape, replace(shape, embedding_bits=8))
    ]
    assert gaps[1] < 0.2 * gaps[0]
