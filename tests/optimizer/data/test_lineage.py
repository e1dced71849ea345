"""Floors come from questions that trained nothing: models of another split are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog import store
from gateway.catalog.store import Origin
from optimizer.data import lineage
from optimizer.data.lineage import TrainedOnIt
from optimizer.data.question_sets import SPLIT_VERSION
from optimizer.study.config import DataConfig, StudyConfig
from tests.fakes import small_and_large

ORIGIN = Origin("s", "0", "2026-01-01T00:00:00Z", 1, {"train.json": "a" * 64}, split_version=1)


def study(teacher: Path) -> StudyConfig:
    data = (DataConfig(source="train.json", certifies=True),)
    return StudyConfig(name="s", teacher=str(teacher), largest_name="t", data=data)


def stage(folder: Path, inputs: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    manifest = {"key": "k", "inputs": inputs, "results": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_models_of_another_split_are_not_certified_with_its_data() -> None:
    """What is set aside now may have trained them then."""
    with pytest.raises(TrainedOnIt, match=r"train\.json.*split version 1.*version 2.*Train anew"):
        lineage.check_catalog(ORIGIN, {"train.json": "a" * 64})


def test_models_of_another_split_are_certified_with_other_data() -> None:
    """How one file is split says nothing about another."""
    lineage.check_catalog(ORIGIN, {"mine.json": "b" * 64})
    lineage.check_catalog(replace(ORIGIN, split_version=SPLIT_VERSION), {"train.json": "a" * 64})


@pytest.mark.parametrize(
    "inputs",
    [
        {"data": [], "seed": 1},
        {"data": [], "split_version": 1},
        {"teacher": {"data": [], "split_version": 1}, "student": {}},
    ],
)
def test_a_teacher_of_another_split_is_refused(tmp_path: Path, inputs: dict[str, Any]) -> None:
    """Its students would have learnt from it what should certify them."""
    with pytest.raises(TrainedOnIt, match="split version 1"):
        lineage.check_study(study(stage(tmp_path / "teacher", inputs)))


def test_a_teacher_of_this_split_is_taken(tmp_path: Path) -> None:
    """A stage notes the version it trained under; a checkpoint beside its manifest has the same."""
    folder = stage(tmp_path / "teacher", {"data": [], "split_version": SPLIT_VERSION})
    (folder / "checkpoint").mkdir()
    lineage.check_study(study(folder))
    lineage.check_study(study(folder / "checkpoint"))


def test_a_checkpoint_from_elsewhere_says_nothing(tmp_path: Path) -> None:
    """What trained a model of a hub is not in its folder."""
    assert lineage.split_version_of(tmp_path) is None


def test_a_published_teacher_is_judged_by_its_catalog(tmp_path: Path) -> None:
    """A study may start from a variant of a repository."""
    store.write(tmp_path, replace(small_and_large(), origin=ORIGIN))
    with pytest.raises(TrainedOnIt, match="split version 1"):
        lineage.check_study(study(tmp_path / "small"))
