"""A repository is never half-written, never overwritten, and can go back."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog import candidate, store
from gateway.catalog.candidate import Terms
from gateway.catalog.schema import MAX_BATCH, Precision
from gateway.catalog.store import Catalog, Look
from gateway.errors import RepositoryError
from optimizer.publish import repository
from optimizer.publish.repository import Publication
from tests.fakes import TOKENIZER, make_catalog, make_variant


def published(
    folder: Path,
    content: bytes,
    *,
    floor: float = 0.5,
    terms: Terms | None = None,
    looks: tuple[Look, ...] = (),
) -> Catalog:
    """Publish a variant `small` whose model file has this content; with `terms` as a candidate."""
    model = folder.parent / "source.onnx"
    model.write_bytes(content)
    sha256 = store.sha256_of(model)
    version = repository.next_version(folder, "small", sha256)
    variant = replace(make_variant("small", 5, sha256=sha256), version=version)
    catalog = replace(make_catalog([variant], [floor]), looks=looks)
    card = f"card of {content.decode()}"
    repository.publish(folder, [Publication(variant, model, card)], catalog, TOKENIZER, terms)
    return catalog


def test_a_published_repository_validates(tmp_path: Path) -> None:
    """What is written is what the gateway checks."""
    catalog = published(tmp_path / "repo", b"one")
    assert store.read(tmp_path / "repo") == catalog
    assert store.check_files(tmp_path / "repo", catalog) == []


def test_a_new_model_under_an_old_name_is_a_new_version(tmp_path: Path) -> None:
    """What is being served is never overwritten."""
    folder = tmp_path / "repo"
    published(folder, b"one")
    catalog = published(folder, b"two")
    assert catalog.variant("small").version == 2
    assert (folder / "small" / "1" / "model.onnx").read_bytes() == b"one"
    config = (folder / "small" / "config.pbtxt").read_text()
    assert "versions: [ 1, 2 ]" in config
    assert catalog.variant("small").sha256 in config


def test_rollback_goes_back_and_forth(tmp_path: Path) -> None:
    """The catalog before the last publication is kept, and so are its models."""
    folder = tmp_path / "repo"
    published(folder, b"one")
    published(folder, b"two")
    assert repository.rollback(folder).variant("small").version == 1
    assert repository.rollback(folder).variant("small").version == 2


def test_rollback_restores_the_cards(tmp_path: Path) -> None:
    """A card tells of the floors of its catalog, and of what the model was trained on."""
    folder = tmp_path / "repo"
    published(folder, b"one")
    published(folder, b"two")
    card = folder / "small" / "README.md"
    repository.rollback(folder)
    assert card.read_text() == "card of one"
    repository.rollback(folder)
    assert card.read_text() == "card of two"
    repository.recertify(folder, store.read(folder), {"small": "certified anew"})
    assert card.read_text() == "certified anew"
    repository.rollback(folder)
    assert card.read_text() == "card of two"


def test_rollback_forgets_no_look(tmp_path: Path) -> None:
    """Going back to older floors does not undo that the questions were looked at."""
    folder = tmp_path / "repo"
    published(folder, b"one")
    look = Look(("data",), "claims", "study", "2026-01-01", 0.1, 0.05)
    repository.recertify(folder, replace(store.read(folder), looks=(look,)), {"small": "c"})
    assert repository.rollback(folder).looks == (look,)
    assert store.read(folder).looks == (look,)


def test_what_no_catalog_names_any_more_is_removed(tmp_path: Path) -> None:
    """A repository does not grow for ever."""
    folder = tmp_path / "repo"
    for content in (b"one", b"two", b"three"):
        published(folder, content)
    kept = sorted(p.name for p in (folder / "small").iterdir() if p.is_dir())
    assert kept == ["2", "3"]


def test_the_models_of_others_are_left_alone(tmp_path: Path) -> None:
    """A Triton repository may hold models that this project knows nothing of."""
    folder = tmp_path / "repo"
    theirs = folder / "theirs" / "config.pbtxt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text('name: "theirs"')
    for content in (b"one", b"two", b"three"):
        published(folder, content)
    assert theirs.exists()


def test_nothing_is_published_without_its_model(tmp_path: Path) -> None:
    """A catalog that names a file that is not there would stop the gateway."""
    folder = tmp_path / "repo"
    published(folder, b"one")
    before = (folder / store.CATALOG).read_bytes()
    variant = make_variant("absent", 5)
    with pytest.raises(RepositoryError, match="absent"):
        repository.publish(folder, [], make_catalog([variant], [0.5]), TOKENIZER)
    assert (folder / store.CATALOG).read_bytes() == before


def test_a_rollback_without_a_past_is_refused(tmp_path: Path) -> None:
    """There is nothing to go back to after the first publication."""
    published(tmp_path / "repo", b"one")
    with pytest.raises(RepositoryError, match="nothing was published before"):
        repository.rollback(tmp_path / "repo")


def test_batch_invariant_variants_are_batched(tmp_path: Path) -> None:
    """fp32 and fp16 gain from Triton's batcher and lose nothing."""
    config = repository.config_pbtxt(make_variant("big", 5, batch_invariant=True), {1: "0" * 64})
    assert f"max_batch_size: {MAX_BATCH}\n" in config


@pytest.mark.parametrize("precision", Precision)
def test_only_fp16_asks_for_a_gpu(precision: Precision) -> None:
    """Triton gives it one where there is one; INT8 would be slower there, and another's."""
    variant = replace(make_variant("any", 5), precision=precision)
    kind = "KIND_AUTO" if precision is Precision.FP16 else "KIND_CPU"
    assert f"kind: {kind} }}" in repository.config_pbtxt(variant, {1: "0" * 64})


def test_another_tokenizer_needs_another_repository(tmp_path: Path) -> None:
    """All variants of a repository read the same tokens; the present ones must go on working."""
    folder = tmp_path / "repo"
    catalog = published(folder, b"one")
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    with pytest.raises(RepositoryError, match="another tokenizer"):
        repository.publish(folder, [], catalog, other)
    assert store.check_files(folder, catalog) == []


@contextmanager
def no_file_over(size_bytes: int) -> Iterator[None]:
    """Make every write beyond this fail: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


TOKENIZER_BYTES = TOKENIZER.stat().st_size


@pytest.mark.parametrize(
    ("model_bytes", "limit_bytes"),
    [(0, TOKENIZER_BYTES // 2), (2 * TOKENIZER_BYTES, TOKENIZER_BYTES + 1)],
    ids=["at the tokenizer", "at the second model"],
)
def test_a_full_disk_publishes_nothing(tmp_path: Path, model_bytes: int, limit_bytes: int) -> None:
    """Neither a model nor half of one, and the message says how to go on."""
    parent = tmp_path / "disk"
    parent.mkdir()
    folder = parent / "repo"
    published(folder, b"one")
    (parent / "source.onnx").unlink()
    before = files(parent)
    models = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    models[0].write_bytes(b"two")
    models[1].write_bytes(bytes(model_bytes))
    variants = [
        replace(make_variant(name, 5, sha256=store.sha256_of(model)), version=version)
        for name, model, version in zip(("small", "other"), models, (2, 1), strict=True)
    ]
    out = [Publication(v, m, "card") for v, m in zip(variants, models, strict=True)]
    catalog = make_catalog(variants, [0.5, 0.6])
    with no_file_over(limit_bytes), pytest.raises(RepositoryError, match="make room there, or"):
        repository.publish(folder, out, catalog, TOKENIZER)
    assert files(parent) == before
    repository.publish(folder, out, catalog, TOKENIZER)
    assert store.read(folder) == catalog


def test_a_catalog_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    """The catalog is what makes models public; its room is taken before any model is moved in."""
    folder = tmp_path / "repo"
    catalog = published(folder, b"one")
    before = files(folder)
    with no_file_over(100), pytest.raises(OSError, match="too large"):
        store.write(folder, replace(catalog, schema_version=1))
    assert files(folder) == before


def test_a_candidate_stands_beside_what_is_served(tmp_path: Path) -> None:
    """Both catalogs' models are there and loadable; catalog, card and previous catalog stay as they are."""
    folder = tmp_path / "repo"
    current = published(folder, b"one")
    tried = published(folder, b"two", terms=Terms(share=0.1))
    assert store.read(folder) == current
    found = candidate.read(folder)
    assert (found.catalog, found.terms.share) == (tried, 0.1)
    assert store.check_files(folder, current) == store.check_files(folder, tried) == []
    assert "versions: [ 1, 2 ]" in (folder / "small" / "config.pbtxt").read_text()
    assert (folder / "small" / "README.md").read_text() == "card of one"
    assert not (folder / store.PREVIOUS).exists()


def test_a_promoted_candidate_can_be_rolled_back(tmp_path: Path) -> None:
    """With its card; nothing of the candidate's file is left."""
    folder = tmp_path / "repo"
    current = published(folder, b"one")
    tried = published(folder, b"two", terms=Terms(share=0.1))
    candidate.promote(folder)
    assert store.read(folder) == tried
    assert not (folder / candidate.CANDIDATE).exists()
    assert (folder / "small" / "README.md").read_text() == "card of two"
    assert repository.rollback(folder).variant("small") == current.variant("small")
    assert (folder / "small" / "README.md").read_text() == "card of one"


def test_a_publication_leaves_the_candidates_models(tmp_path: Path) -> None:
    """It is being tried: its files must not go, and Triton must go on loading them."""
    folder = tmp_path / "repo"
    published(folder, b"one")
    tried = published(folder, b"two", terms=Terms(share=0.1))
    for content in (b"three", b"four", b"five"):
        published(folder, content)
        assert store.check_files(folder, tried) == []
    assert "versions: [ 2, 4, 5 ]" in (folder / "small" / "config.pbtxt").read_text()


def test_looks_at_the_data_count_whatever_becomes_of_a_candidate(tmp_path: Path) -> None:
    """Or trying candidates would spend delta again and again."""
    folder = tmp_path / "repo"
    published(folder, b"one")
    look = Look(("data",), "claims", "study", "2026-01-01", 0.1, 0.05)
    published(folder, b"two", terms=Terms(share=0.1), looks=(look,))
    candidate.withdraw(folder, "by hand")
    assert store.read(folder).looks == (look,)


def test_a_candidate_needs_a_catalog_and_a_difference(tmp_path: Path) -> None:
    """There must be something to compare it with, and something to compare."""
    folder = tmp_path / "repo"
    with pytest.raises(RepositoryError, match="holds no catalog to try a candidate beside"):
        published(folder, b"one", terms=Terms(share=0.1))
    published(folder, b"one")
    with pytest.raises(RepositoryError, match="same variants and plans"):
        published(folder, b"one", terms=Terms(share=0.1))
    assert not (folder / candidate.CANDIDATE).exists()
