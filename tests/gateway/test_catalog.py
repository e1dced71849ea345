"""The catalog refuses what it cannot vouch for, and says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import catalog as catalogs
from gateway.catalog import Catalog
from gateway.errors import RepositoryError
from tests.fakes import TOKENIZER, make_catalog, make_variant, small_and_large


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a folder that holds every file its catalog names."""
    model = b"a model"
    (tmp_path / "model").write_bytes(model)
    sha256 = catalogs.sha256_of(tmp_path / "model")
    variant = make_variant("small", 5, sha256=sha256)
    path = catalogs.model_path(tmp_path, variant)
    path.parent.mkdir(parents=True)
    path.write_bytes(model)
    (tmp_path / "small" / "config.pbtxt").write_text(f'name: "small"\n# {sha256}\n')
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    catalogs.write(tmp_path, make_catalog([variant], [0.5]))
    return tmp_path


def change(repository: Path, edit: Callable[[Any], Any]) -> None:
    path = repository / "catalog.json"
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))


def refusal(repository: Path) -> str:
    with pytest.raises(RepositoryError) as caught:
        catalogs.read(repository)
    return str(caught.value)


def test_a_catalog_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Both halves of the project see the same values."""
    catalog = small_and_large()
    catalogs.write(tmp_path, catalog)
    assert catalogs.read(tmp_path) == catalog


def test_a_whole_repository_has_no_problem(repository: Path) -> None:
    """Nothing is reported that is not wrong."""
    assert catalogs.check_files(repository, catalogs.read(repository)) == []


def test_the_catalog_before_is_kept(tmp_path: Path) -> None:
    """A rollback needs the file as it was, byte for byte."""
    catalogs.write(tmp_path, make_catalog([make_variant("old", 5)], [0.5]))
    before = (tmp_path / "catalog.json").read_bytes()
    catalogs.write(tmp_path, small_and_large())
    assert (tmp_path / "catalog.previous.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalog.json", "catalog.previous.json"]


def test_a_newer_schema_asks_for_an_upgrade(repository: Path) -> None:
    """What this gateway cannot understand it must not half understand."""
    change(repository, lambda document: document.update(schema_version=2))
    assert "newer than this gateway; upgrade" in refusal(repository)


@pytest.mark.parametrize("version", [None, 0, "1", []])
def test_another_schema_is_not_ours(repository: Path, version: object) -> None:
    """A file of another program is told apart from one of a newer version."""
    change(repository, lambda document: document.update(schema_version=version))
    assert "not a catalog of this project" in refusal(repository)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_file_that_is_no_catalog_is_refused(repository: Path, raw: bytes) -> None:
    """A cut or overwritten file is named."""
    (repository / "catalog.json").write_bytes(raw)
    assert "catalog.json" in refusal(repository)


EDITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "unknown key": (lambda d: d.update(certified=True), "certified"),
    "missing key": (lambda d: d.pop("plans"), "plans"),
    "wrong type": (lambda d: d["variants"][0].update(size_bytes="many"), "size_bytes"),
    "unknown precision": (lambda d: d["variants"][0].update(precision="int1"), "precision"),
    "no variants": (lambda d: d.update(variants=[]), "no variant"),
    "no plans": (lambda d: d.update(plans=[]), "no plan"),
    "a name twice": (lambda d: d["variants"].append(d["variants"][0]), "twice"),
    "unknown variant": (lambda d: d["plans"][0].update(variants=["nobody"]), "nobody"),
    "threshold too many": (lambda d: d["plans"][0].update(thresholds=[0.5]), "threshold"),
    "no profile": (lambda d: d["variants"][0]["profile"].update(cells=[]), "latency profile"),
    "no golden logits": (lambda d: d["variants"][0].update(golden=[]), "golden"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_catalog_that_contradicts_itself_is_refused(repository: Path, case: str) -> None:
    """The message names the place."""
    edit, place = EDITS[case]
    change(repository, edit)
    assert place in refusal(repository)


def test_a_missing_catalog_says_where_models_come_from(tmp_path: Path) -> None:
    """The first thing a newcomer gets wrong is the folder."""
    message = refusal(tmp_path)
    assert "bertier-optimize publish" in message
    assert "--model-repository" in message


@pytest.mark.parametrize("name", ["small/1/model.onnx", "small/config.pbtxt", "tokenizer.json"])
def test_a_missing_file_is_named(repository: Path, name: str) -> None:
    """One line for it, with what to do."""
    (repository / name).unlink()
    (problem,) = catalogs.check_files(repository, catalogs.read(repository))
    assert problem.startswith(f"{repository / name}: missing; ")


@pytest.mark.parametrize("name", ["small/1/model.onnx", "tokenizer.json"])
def test_another_file_than_the_catalogs_is_named(repository: Path, name: str) -> None:
    """A certificate holds for one file, bit for bit."""
    (repository / name).write_bytes(b"another")
    (problem,) = catalogs.check_files(repository, catalogs.read(repository))
    assert problem.startswith(f"{repository / name}: sha256 is ")


def test_a_config_without_the_hash_is_named(repository: Path) -> None:
    """Triton tells the gateway what it loaded by that hash."""
    (repository / "small" / "config.pbtxt").write_text('name: "small"')
    (problem,) = catalogs.check_files(repository, catalogs.read(repository))
    assert "sha256" in problem


def test_the_best_floor_is_the_largest_certified_one() -> None:
    """The default class asks for a little less than it."""
    catalog: Catalog = small_and_large()
    assert catalog.best_floor == 0.7
    assert replace(catalog, plans=catalog.plans[:1]).best_floor == 0.5
