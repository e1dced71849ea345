"""Members of a search's front become students of their own, trained and published like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog.schema import Precision
from optimizer.students import finish
from optimizer.students.finish import Finished
from optimizer.students.study import Study
from optimizer.study.config import (
    ConfigError,
    ElasticConfig,
    FinishConfig,
    StudentConfig,
    TrainConfig,
)
from optimizer.study.space import Candidate, Space
from tests.optimizer.students.test_study import study_of

HOW = FinishConfig(members=2, train=TrainConfig(epochs=0.3, batch_size=8))
SPACE = Space(layers=((0, 1), (1,)), heads=(1,), ffn=(32,))
ELASTICS = (ElasticConfig(space=SPACE),)


def row(
    f1: float, ms: float, *, layers: tuple[int, ...] = (1,), **candidate: Any
) -> dict[str, Any]:
    shape = {"heads": 1, "ffn": 32, "embedding_bits": 4, "precision": "int8-dynamic"} | candidate
    return {"candidate": {"layers": layers, **shape}, "f1": f1, "p95_ms": ms, "size_bytes": 1000}


def members_of(
    folder: Path, *rows: dict[str, Any], **how: Any
) -> dict[str, tuple[StudentConfig, float]]:
    """Return the members of a Pareto front of these rows."""
    write_front(folder, *rows)
    return finish.members(folder, ELASTICS, HOW.model_copy(update=how))


def write_front(folder: Path, *rows: dict[str, Any], search: str = "search") -> None:
    path = folder / search / "front.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def test_members_dominate_most_of_what_the_pareto_front_does(tmp_path: Path) -> None:
    """Neighbours would serve the same requests."""
    best, middle = row(0.7, 30.0, layers=(0, 1)), row(0.65, 12.0, ffn=96)
    near, fast = row(0.64, 11.8, ffn=64), row(0.5, 5.0)
    found = members_of(tmp_path, best, middle, near, fast, members=3)
    assert [f1 for _, f1 in found.values()] == [0.7, 0.65, 0.5]
    assert list(found) == ["bert-2", "bert-1", "bert-1-b"]


def test_no_member_takes_the_name_of_another_variant(tmp_path: Path) -> None:
    """A member with as many layers as the largest model must not be published in its place."""
    write_front(tmp_path, row(0.7, 30.0, layers=(0, 1)), row(0.5, 5.0))
    found = finish.members(tmp_path, ELASTICS, HOW, ("bert-2", "bert-1", "bert-1-b"))
    assert list(found) == ["bert-2-b", "bert-1-c"]


def test_each_family_has_members_of_its_own(tmp_path: Path) -> None:
    """A front per elastic student: the slow one's small members would lose against the fast one's."""
    trained = TrainConfig(epochs=3.0)
    families = (
        ElasticConfig(name="wide", space=SPACE, members=1),
        ElasticConfig(name="narrow", space=SPACE, finish=trained),
    )
    write_front(tmp_path, row(0.8, 60.0), row(0.7, 40.0), search="search-wide")
    write_front(tmp_path, row(0.6, 6.0), row(0.5, 3.0), search="search-narrow")
    found = finish.members(tmp_path, families, HOW)
    assert {name: config.start for name, (config, _) in found.items()} == {
        "wide-1": "wide",
        "narrow-1": "narrow",
        "narrow-1-b": "narrow",
    }
    assert [config.train for config, _ in found.values()] == [HOW.train, trained, trained]


def test_members_weigh_no_more_together_than_they_may(tmp_path: Path) -> None:
    """A repository has a limit; what cannot be kept within is said before anything is trained."""
    heavy = row(0.7, 30.0, layers=(0, 1)) | {"size_bytes": 9_000_000}
    light = row(0.6, 20.0, ffn=16) | {"size_bytes": 3_000_000}
    fast = row(0.5, 5.0) | {"size_bytes": 4_000_000}
    found = members_of(tmp_path, heavy, light, fast, max_total_mb=8.0)
    assert [f1 for _, f1 in found.values()] == [0.6, 0.5]
    with pytest.raises(ConfigError, match=r"max_total_mb: the 2 lightest weigh 7 of 6\.5 MB"):
        members_of(tmp_path, heavy, light, fast, max_total_mb=6.5)


def test_only_what_is_published_is_finished(tmp_path: Path) -> None:
    """An fp32 point of the Pareto front shows what quantizing costs; it is not served."""
    found = members_of(tmp_path, row(0.7, 30.0, precision="fp32"), row(0.5, 5.0))
    assert [f1 for _, f1 in found.values()] == [0.5]


def test_a_member_keeps_its_precision(tmp_path: Path) -> None:
    """What was found for a GPU is published for one, and says so in its name."""
    found = members_of(tmp_path, row(0.7, 30.0, precision="fp16"))
    ((name, (config, _)),) = found.items()
    assert name == "bert-1-fp16"
    assert config.candidate(1).precision is Precision.FP16


def test_a_member_keeps_its_rank_and_its_tokens(tmp_path: Path) -> None:
    """What the search found is what is trained."""
    less = row(0.5, 5.0, layers=(0, 1), rank=128, keep=0.5, drop_after=1)
    plain = row(0.7, 30.0, layers=(0, 1), rank=0, keep=1.0, drop_after=0)
    config = members_of(tmp_path, plain, less)["bert-2-b"][0]
    assert config.candidate(1) == Candidate((0, 1), 1, 32, 4, rank=128, keep=0.5, drop_after=1)


def test_without_a_pareto_front_there_is_nothing_to_finish(tmp_path: Path) -> None:
    """The message says which command makes one."""
    assert finish.members(tmp_path, ELASTICS, HOW) == {}
    with pytest.raises(ConfigError, match=r"search/front\.json: .*bertier-optimize search"):
        finish.check({}, tmp_path, ELASTICS)


def test_the_rank_correlation_compares_orders() -> None:
    """Values may differ by any amount; two members have no order to speak of."""
    found = [Finished("a", 0.3, 0.5), Finished("b", 0.4, 0.6), Finished("c", 0.5, 0.9)]
    assert finish.rank_correlation(found) == pytest.approx(1.0)
    assert finish.rank_correlation([replace(f, f1=-f.f1) for f in found]) == pytest.approx(-1.0)
    assert finish.rank_correlation(found[:2]) is None


def test_a_member_is_trained_from_its_slice(
    tiny_backbone: Path, tiny_data: Path, trained: Path, tmp_path: Path
) -> None:
    """It starts where the elastic student left it, and ends as a variant of the study."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    plain = study_of(tiny_backbone, tiny_data, tmp_path)
    study = Study(plain.config.model_copy(update={"finish": HOW}), tiny_data, tmp_path)
    write_front(tmp_path, row(0.5, 5.0))
    (name,) = study.members
    config = study.student(name)
    assert config is not None
    before = study.elastic.slice(Candidate((1,), 1, 32, 4)).state_dict()
    study.train_student(config)
    after = study.model(name).state_dict()
    assert study.variant_names[-1] == name
    assert any((before[key] != weights).any() for key, weights in after.items())
