"""The catalog refuses what it cannot vouch for, and says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog import store
from gateway.catalog.schema import Check
from gateway.catalog.store import Catalog
from gateway.errors import RepositoryError
from gateway.lifecycle.validation import validate
from gateway.settings import Settings
from tests.fakes import ROOT, TOKENIZER, make_catalog, make_variant, small_and_large


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a folder that holds every file its catalog names."""
    model = b"a model"
    (tmp_path / "model").write_bytes(model)
    sha256 = store.sha256_of(tmp_path / "model")
    variant = make_variant("small", 5, sha256=sha256)
    path = store.model_path(tmp_path, variant)
    path.parent.mkdir(parents=True)
    path.write_bytes(model)
    (tmp_path / "small" / "config.pbtxt").write_text(f'name: "small"\n# {sha256}\n')
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    store.write(tmp_path, make_catalog([variant], [0.5]))
    return tmp_path


def change(repository: Path, edit: Callable[[Any], Any]) -> None:
    path = repository / "catalog.json"
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))


def refusal(repository: Path) -> str:
    with pytest.raises(RepositoryError) as caught:
        store.read(repository)
    return str(caught.value)


def test_a_catalog_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Both halves of the project see the same values."""
    catalog = small_and_large()
    store.write(tmp_path, catalog)
    assert store.read(tmp_path) == catalog


def test_layers_that_differ_are_in_the_catalog_where_they_do(tmp_path: Path) -> None:
    """An older gateway reads a catalog without the fields, and refuses one with them."""
    variant = make_variant("uneven", 5)
    shape = replace(variant.shape, layer_ffn=(8, variant.shape.ffn))
    catalog = make_catalog([replace(variant, shape=shape)], [0.5])
    store.write(tmp_path, catalog)
    assert store.read(tmp_path) == catalog
    assert shape.all_ffn == (8, variant.shape.ffn)
    (found,) = json.loads((tmp_path / "catalog.json").read_bytes())["variants"]
    assert found["shape"]["layer_ffn"] == [8, variant.shape.ffn]
    assert not {"layer_heads", "layer_keep"} & set(found["shape"])


def test_shares_of_tokens_by_layer_are_in_the_catalog(tmp_path: Path) -> None:
    """Beside the last of them, and how many layers see all tokens: what one drop says, too."""
    variant = make_variant("fewer", 5)
    shape = replace(variant.shape, layers=3, keep=0.3, drop_after=1, layer_keep=(1.0, 0.6, 0.3))
    catalog = make_catalog([replace(variant, shape=shape)], [0.5])
    store.write(tmp_path, catalog)
    assert store.read(tmp_path) == catalog


def test_a_whole_repository_has_no_problem(repository: Path) -> None:
    """Nothing is reported that is not wrong."""
    assert store.check_files(repository, store.read(repository)) == []


def test_the_catalog_before_is_kept(tmp_path: Path) -> None:
    """A rollback needs the file as it was, byte for byte."""
    store.write(tmp_path, make_catalog([make_variant("old", 5)], [0.5]))
    before = (tmp_path / "catalog.json").read_bytes()
    store.write(tmp_path, small_and_large())
    assert (tmp_path / "catalog.previous.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalog.json", "catalog.previous.json"]


def test_a_newer_schema_asks_for_an_upgrade(repository: Path) -> None:
    """What this gateway cannot understand it must not half understand."""
    change(repository, lambda document: document.update(schema_version=3))
    assert "newer than this gateway; upgrade" in refusal(repository)


@pytest.mark.parametrize("version", [None, 0, "1", []])
def test_another_schema_is_not_ours(repository: Path, version: object) -> None:
    """A file of another program is distinguished from one of a newer version."""
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
    "no variants": (lambda d: d.update(variants=[]), "variants: empty"),
    "no plans": (lambda d: d.update(plans=[]), "plans: empty"),
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


def variant(**values: Any) -> Callable[[Any], Any]:
    return lambda d: d["variants"][0].update(values)


def inside(*path: str | int, **values: Any) -> Callable[[Any], Any]:
    def edit(document: Any) -> None:
        for part in path:
            document = document[part]
        document.update(values)

    return edit


def stratum(**changes: Any) -> dict[str, Any]:
    whole = {"name": "answerable", "n_contexts": 9, "n_questions": 20, "f1": 0.6, "floor": 0.5}
    return whole | changes


def check(**changes: Any) -> dict[str, Any]:
    whole = stratum(data="fresh", stratum="all", f1_high=0.7, shift="")
    del whole["name"]
    return whole | changes


PROFILE, PLAN = ("variants", 0, "profile"), ("plans", 0)
VALUES: list[tuple[Callable[[Any], Any], str]] = [
    (variant(size_bytes=0), "variants.0.size_bytes: 0 is less than 1"),
    (variant(parameters=-5), "variants.0.parameters: -5"),
    (variant(version=0), "variants.0.version: 0"),
    (variant(version="1"), "variants.0.version: "),
    (variant(instances=True), "variants.0.instances: "),
    (variant(instances=0), "variants.0.instances: 0"),
    (variant(sha256="0" * 63), "variants.0.sha256: "),
    (variant(sha256="G" * 64), "variants.0.sha256: "),
    (variant(name="../small"), "variants.0.name: '../small' is not a name"),
    (variant(name=""), "variants.0.name: "),
    (variant(name=".hidden"), "variants.0.name: "),
    (variant(golden_tolerance=0.0), "variants.0.golden_tolerance: 0"),
    (variant(golden_tolerance=float("nan")), "golden_tolerance: "),
    (inside("variants", 0, "shape", heads=0), "variants.0.shape.heads: 0"),
    (inside("variants", 0, "shape", layer_ffn=[8]), "shape.layer_ffn: 1 widths for 2 layers"),
    (
        inside("variants", 0, "shape", layer_heads=[1, 0]),
        "shape.layer_heads: widths from 0 to 1; each",
    ),
    (
        inside("variants", 0, "shape", layer_heads=[1, 99]),
        "shape.layer_heads: widths from 1 to 99; each",
    ),
    (inside("variants", 0, "shape", layer_keep=[1.0]), "shape.layer_keep: 1 shares for 2 layers"),
    (
        inside("variants", 0, "shape", layer_keep=[0.5, 0.6]),
        r"layer_keep: [0.5, 0.6]; each must be",
    ),
    (inside("variants", 0, "shape", layer_keep=[1.0, 0.0]), "layer_keep: [1.0, 0.0]; each must be"),
    (inside("variants", 0, "shape", layer_keep=[1.5, 1.0]), "layer_keep: [1.5, 1.0]; each must be"),
    (
        inside("variants", 0, "shape", keep=0.5, drop_after=1, layer_keep=[1.0, 0.6]),
        "layer_keep: [1.0, 0.6]; must be 1.0 for the first 1 layers only, and end with 0.5",
    ),
    (inside("variants", 0, "shape", rank=9), "variants.0.shape.rank: 9 is not from 0 to hidden"),
    (inside("variants", 0, "shape", rank=-64), "variants.0.shape.rank: -64"),
    (inside("variants", 0, "shape", keep=1.5), "variants.0.shape.keep: 1.5"),
    (inside("variants", 0, "shape", drop_after=2), "shape.drop_after: 2 of 2 layers"),
    (inside("variants", 0, "quality", 0, f1=1.2), "variants.0.quality.0.f1: 1.2 is not from 0"),
    (inside("variants", 0, "quality", 0, forced_f1=-0.1), "variants.0.quality.0.forced_f1: "),
    (inside("variants", 0, "quality", 0, n=0), "variants.0.quality.0.n: 0"),
    (inside("variants", 0, "quality", 0, f1_low=0.9), "variants.0.quality.0.f1_low: 0.9 is more"),
    (inside("variants", 0, "golden", 0, end=[]), "variants.0.golden.0: 1 start and 0 end"),
    (inside(*PROFILE, threads=0), "variants.0.profile.threads: 0"),
    (inside(*PROFILE, "host", cores=0), "variants.0.profile.host.cores: 0"),
    (inside(*PROFILE, "cells", 1, p50_ms=0.0), "variants.0.profile.cells.1.p50_ms: 0"),
    (inside(*PROFILE, "cells", 1, p95_ms=1.0), "profile.cells.1.p95_ms: 1 is less than p50_ms 5"),
    (inside(*PROFILE, "cells", 2, p99_ms=6.0), "profile.cells.2.p99_ms: 6 is less than p95_ms 7.5"),
    (inside(*PROFILE, "cells", 1, bucket=64), "profile.cells.1: bucket 64, batch 1 occurs twice"),
    (inside("origin", data_sha256={"x.json": "abc"}), "origin.data_sha256.x.json: 'abc'"),
    (inside(tokenizer_sha256="abc"), "tokenizer_sha256: 'abc'"),
    (inside("golden_inputs", 0, question=" "), "golden_inputs.0: "),
    (inside(*PLAN, name="a b"), "plans.0.name: 'a b'"),
    (lambda d: d["plans"].append(d["plans"][0]), "plans.1.name: 'small' occurs twice"),
    (inside(*PLAN, "certificate", floor=1.5), "plans.0.certificate.floor: 1.5"),
    (inside(*PLAN, "certificate", floor=0.9), "plans.0.certificate.floor: 0.9 is more than"),
    (inside(*PLAN, "certificate", delta=0.0), "plans.0.certificate.delta: 0"),
    (inside(*PLAN, "certificate", n_contexts=0), "plans.0.certificate.n_contexts: 0"),
    (inside(*PLAN, "certificate", model_sha256=["1" * 64]), "plans.0.certificate.model_sha256: "),
    (inside(*PLAN, "certificate", bounds=[{"method": "x", "floor": 1.5}]), "bounds.0.floor: 1.5"),
    (inside(*PLAN, "certificate", strata=[stratum(floor=0.7)]), "strata.0.floor: 0.7 is more than"),
    (inside(*PLAN, "certificate", strata=[stratum(f1=1.5)]), "certificate.strata.0.f1: 1.5"),
    (inside(*PLAN, "certificate", checks=[check(n_contexts=0)]), "checks.0.n_contexts: 0"),
    (inside(*PLAN, "certificate", checks=[check(f1_high=1.5)]), "checks.0.f1_high: 1.5"),
    (inside(*PLAN, cost=1), "plans.0.cost: "),
    (inside(*PROFILE, "host", ram=1), "variants.0.profile.host.ram: "),
    (inside("origin", author="x"), "origin.author: "),
]


@pytest.mark.parametrize(("edit", "message"), VALUES, ids=[message for _, message in VALUES])
def test_a_value_that_cannot_be_is_refused_with_its_path(
    repository: Path, edit: Callable[[Any], Any], message: str
) -> None:
    """A latency of nought, or a floor of 1.5, would be believed by every request; validate says it."""
    change(repository, edit)
    assert message in refusal(repository)
    (said,) = validate(repository, Settings()).problems
    assert message in said


def test_what_no_gateway_would_read_is_not_written(tmp_path: Path) -> None:
    """The catalog that is served stays."""
    store.write(tmp_path, small_and_large())
    with pytest.raises(RepositoryError, match=r"variants\.0\.size_bytes"):
        store.write(tmp_path, make_catalog([replace(make_variant("s", 5), size_bytes=0)], [0.5]))
    assert store.read(tmp_path) == small_and_large()


def test_the_shipped_catalog_is_valid() -> None:
    """It is the first one that anybody reads."""
    assert store.read(ROOT / "model_repository").variants


def test_a_missing_catalog_says_where_models_come_from(tmp_path: Path) -> None:
    """The first thing a newcomer gets wrong is the folder."""
    message = refusal(tmp_path)
    assert "bertier-optimize publish" in message
    assert "--model-repository" in message


@pytest.mark.parametrize("name", ["small/1/model.onnx", "small/config.pbtxt", "tokenizer.json"])
def test_a_missing_file_is_named(repository: Path, name: str) -> None:
    """One line for it, with what to do."""
    (repository / name).unlink()
    (problem,) = store.check_files(repository, store.read(repository))
    assert problem.startswith(f"{repository / name}: missing; ")


@pytest.mark.parametrize("name", ["small/1/model.onnx", "tokenizer.json"])
def test_another_file_than_the_catalogs_is_named(repository: Path, name: str) -> None:
    """A certificate holds for one file, bit for bit."""
    (repository / name).write_bytes(b"another")
    (problem,) = store.check_files(repository, store.read(repository))
    assert problem.startswith(f"{repository / name}: sha256 is ")


def test_a_config_without_the_hash_is_named(repository: Path) -> None:
    """Triton reports the loaded model by that hash."""
    (repository / "small" / "config.pbtxt").write_text('name: "small"')
    (problem,) = store.check_files(repository, store.read(repository))
    assert "sha256" in problem


def test_the_best_floor_is_the_largest_certified_one() -> None:
    """The default class asks for a little less than it."""
    catalog: Catalog = small_and_large()
    assert catalog.best_floor == 0.7
    assert replace(catalog, plans=catalog.plans[:1]).best_floor == 0.5


def test_a_catalog_without_strata_is_read(tmp_path: Path) -> None:
    """Catalogs published before certificates had strata are served as they are."""
    store.write(tmp_path, small_and_large())
    document = json.loads(store.read_bytes(tmp_path))
    for plan in document["plans"]:
        for optional in ("bounds", "strata", "checks"):
            del plan["certificate"][optional]
    catalog = store.parse(json.dumps(document).encode(), tmp_path / "catalog.json")
    assert catalog == small_and_large()


def test_a_catalog_without_ranks_and_dropped_tokens_is_read(tmp_path: Path) -> None:
    """Models published before there were such knobs have full words and see all tokens."""
    store.write(tmp_path, small_and_large())
    document = json.loads(store.read_bytes(tmp_path))
    for published in document["variants"]:
        for later in ("rank", "keep", "drop_after"):
            del published["shape"][later]
    catalog = store.parse(json.dumps(document).encode(), tmp_path / "catalog.json")
    assert catalog == small_and_large()


@pytest.mark.parametrize(
    ("f1", "f1_high", "verdict"),
    [(0.5, 0.6, "holds"), (0.45, 0.52, "within noise"), (0.4, 0.48, "fails")],
)
def test_a_floor_fails_only_beyond_doubt(f1: float, f1_high: float, verdict: str) -> None:
    """A mean below the floor over a few contexts is no proof against it."""
    assert Check("fresh", "all", 10, 50, f1, f1_high, floor=0.5).verdict == verdict


def _cascade_edit(**changes: Any) -> Callable[[Any], Any]:
    """Return an edit that adds a cascade of one variant's copy and itself, changed."""

    def edit(document: Any) -> None:
        other = {**document["variants"][0], "name": "other"}
        direct = {**document["plans"][0], "name": "other", "variants": ["other"]}
        first = document["variants"][0]["name"]
        certificate = {**direct["certificate"], "model_sha256": [other["sha256"]] * 2}
        cascade: dict[str, Any] = {
            "name": "both",
            "variants": [first, "other"],
            "thresholds": [0.5],
        }
        cascade |= {"certificate": certificate, "reach": [1.0, 0.4]}
        document["variants"].append(other)
        document["plans"] += [direct, cascade | changes]

    return edit


def _paired(**changes: Any) -> Callable[[Any], Any]:
    whole = {"to": "small", "loss": 0.02, "f1_loss": 0.01, "checks": []}
    return inside("plans", 0, "certificate", paired=whole | changes)


def test_a_catalog_with_cascades_and_losses_is_read(repository: Path) -> None:
    """Both are optional; the schema stays the same."""
    change(repository, _cascade_edit())
    change(repository, _paired(to="other"))
    catalog = store.read(repository)
    assert catalog.plans[-1].reach == (1.0, 0.4)
    assert catalog.plans[0].certified_loss == 0.02
    assert catalog.plans[-1].certified_loss is None
    assert catalog.direct("other").variants == ("other",)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_cascade_edit(reach=[]), "reach: one share per variant is needed"),
        (_cascade_edit(reach=[0.9, 0.4]), "reach: one share per variant is needed, the first 1"),
        (_cascade_edit(reach=[1.0, 1.5]), "reach.1: 1.5 is not from 0 to 1 (and 1 more)"),
        (_cascade_edit(thresholds=[]), "one threshold per escalation"),
        (_cascade_edit(thresholds=[1.2]), "thresholds.0: 1.2"),
        (_cascade_edit(variants=["other", "other"]), "a variant occurs twice"),
        (_paired(to="nobody"), "paired.to: names an unknown variant 'nobody'"),
        (_paired(loss=1.5), "paired.loss: 1.5 is not from -1 to 1"),
        (_paired(loss=0.005), "paired.loss: 0.005 is less than the sample's 0.01"),
    ],
)
def test_a_cascade_or_loss_that_cannot_be_is_refused(
    repository: Path, edit: Callable[[Any], Any], message: str
) -> None:
    """A gateway that guessed would route by the guess."""
    change(repository, edit)
    assert message in refusal(repository)
