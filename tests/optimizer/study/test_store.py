"""A run folder in an object store: what one machine finished is not done again on another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optimizer.cli import main
from optimizer.students.study import Study
from optimizer.study import stages, store
from optimizer.study.config import (
    DataConfig,
    DistillConfig,
    PhaseConfig,
    StudentConfig,
    StudyConfig,
    TrainConfig,
)
from optimizer.study.stages import MANIFEST, run_stage
from optimizer.study.store import StoreError
from tests import local_store
from tests.local_store import LocalStore

INPUTS = {"seed": 1}


@pytest.fixture(autouse=True)
def detached() -> Iterator[None]:
    """Forget which folders are copies."""
    yield
    store._attached.clear()


@pytest.fixture(scope="module")
def s3() -> Iterator[LocalStore]:
    with local_store.server() as running:
        yield running


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty run folder in each kind of store."""
    if request.param == "file":
        return f"file://{tmp_path}/store/mine"
    request.getfixturevalue("s3")
    return f"s3://studies/{tmp_path.name}/mine"


def stage(folder: Path, inputs: dict[str, Any] = INPUTS) -> tuple[dict[str, Any], int]:
    """Run a stage that has another one in it; return its results and how often it worked."""
    worked = []

    def work() -> dict[str, Any]:
        worked.append(1)
        (folder / "model.bin").write_bytes(b"weights")
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "config.json").write_text("{}")
        (folder / stages.CHECKPOINT).write_bytes(b"unfinished")
        run_stage(folder / "inner", inputs, lambda: {"inner": True})
        return {"loss": 0.5}

    return run_stage(folder, inputs, work), len(worked)


def test_what_one_machine_finished_another_fetches(url: str, tmp_path: Path) -> None:
    """Whole, and without what no finished stage needs; other inputs are another stage."""
    first, second = tmp_path / "first", tmp_path / "second"
    store.attach(url, first)
    store.attach(url, second)
    assert stage(first / "teacher") == ({"loss": 0.5}, 1)
    assert stage(second / "teacher") == ({"loss": 0.5}, 0)
    names = {p.relative_to(second).as_posix() for p in second.rglob("*") if p.is_file()}
    assert names == {
        "teacher/model.bin",
        "teacher/deep/config.json",
        f"teacher/{MANIFEST}",
        f"teacher/{stages.LOCK}",
    }
    assert stage(second / "teacher", {"seed": 2}) == ({"loss": 0.5}, 1)


def test_a_store_that_is_gone_costs_no_finished_work(s3: LocalStore, tmp_path: Path) -> None:
    """The message says where the work is; the same command brings it to the store."""
    url = f"s3://studies/{tmp_path.name}/mine"
    here = tmp_path / "here"
    store.attach(url, here)

    def work() -> dict[str, Any]:
        s3.stop()
        return {"loss": 0.5}

    with pytest.raises(StoreError, match="run the same command again") as raised:
        run_stage(here / "teacher", INPUTS, work)
    assert url in str(raised.value)
    assert str(here) in str(raised.value)
    s3.start()
    assert run_stage(here / "teacher", INPUTS, work) == {"loss": 0.5}
    there = tmp_path / "there"
    store.attach(url, there)
    assert run_stage(there / "teacher", INPUTS, work) == {"loss": 0.5}


def test_a_store_that_is_full_costs_no_finished_work(tmp_path: Path) -> None:
    """Its manifest comes last, so no other machine takes a part for the whole."""
    kept = tmp_path / "store" / "mine"
    (kept / "teacher").mkdir(parents=True)
    full = kept / "teacher" / "model.bin"
    full.symlink_to("/dev/full")
    store.attach(f"file://{kept}", tmp_path / "here")
    with pytest.raises(StoreError, match="No space left"):
        stage(tmp_path / "here" / "teacher")
    assert not (kept / "teacher" / MANIFEST).exists()
    full.unlink()
    assert stage(tmp_path / "here" / "teacher") == ({"loss": 0.5}, 0)
    assert json.loads((kept / "teacher" / MANIFEST).read_text())["results"] == {"loss": 0.5}


def test_a_store_that_cannot_be_used_says_why(
    s3: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work is done."""
    store.attach("s3://no-such-bucket/mine", tmp_path / "here")
    with pytest.raises(StoreError, match="s3://no-such-bucket/mine"):
        stage(tmp_path / "here" / "teacher")
    for url, said in (
        ("gs://bucket/mine", "pip install 'bertier[gs]'"),
        ("nothing://bucket/mine", "use file://, s3:// or gs://"),
        ("s3://bucket", "names no folder"),
    ):
        with pytest.raises(SystemExit):
            main.main(["teacher", "--run-dir", url])
        assert said in capsys.readouterr().err


def test_a_study_goes_on_where_no_folder_was_copied(
    s3: LocalStore, tiny_backbone: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Questions and trained models come from the store; only what is new is trained."""
    root = f"s3://studies/{tmp_path.name}"
    data = store.attach(f"{root}/data", tiny_data)
    data.keep([tiny_data / "train.json.xz"])
    brief = TrainConfig(epochs=0.1, batch_size=8)
    shape: dict[str, Any] = {"layers": (0,), "ffn": 32, "train": brief}
    config = StudyConfig(
        name="mine",
        backbone=str(tiny_backbone),
        largest_name="tiny-2",
        max_tokens=64,
        train=(PhaseConfig(epochs=0.1, batch_size=8),),
        data=(DataConfig(source="train.json.xz", by_article=True, certifies=True),),
        distill=DistillConfig(labels_only=True),
        students=(
            StudentConfig(name="one", **shape),
            StudentConfig(name="two", start="one", **shape),
        ),
    )
    one, two = config.students
    studies = []
    for machine in ("first", "second"):
        folder, questions = tmp_path / machine, tmp_path / f"{machine}-data"
        store.attach(f"{root}/mine", folder)
        store.attach(f"{root}/data", questions)
        studies.append(Study(config, questions, folder))
    first, second = studies
    first.largest.train()
    trained = first.train_student(one)
    assert second.train_student(two)["final_loss"] is not None
    assert (second.folder / "students" / "one" / "student.pt").exists()
    assert not (second.folder / "teacher" / "phase-1").exists(), "nothing was trained again"
    assert second.train_student(one) == trained
