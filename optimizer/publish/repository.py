"""Publishes variants as a Triton model repository: models first, the catalog last, each by one rename.

Never overwrites a published version: a new model under an old name becomes the next version.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.catalog import candidate, store
from gateway.catalog.candidate import CANDIDATE_CARD, CARD, PREVIOUS_CARD, Terms
from gateway.catalog.schema import GoldenLabelLogits, Precision, Variant
from gateway.catalog.store import Catalog
from gateway.errors import RepositoryError
from optimizer.certify.ledger import merged

MODEL_TEMPLATE = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input [
  {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "token_type_ids" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [
{outputs}
]
instance_group [ {{ count: {instances} kind: {kind} }} ]
version_policy: {{ specific: {{ versions: [ {versions} ] }} }}
dynamic_batching {{ }}
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "1" }} }}
{hashes}"""

SPAN_CONFIG = """\
  {{ name: "start_logits" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "end_logits" data_type: TYPE_FP32 dims: [ -1 ] }}"""
LABEL_CONFIG = '  {{ name: "logits" data_type: TYPE_FP32 dims: [ {n_labels} ] }}'
HASH = 'parameters {{ key: "sha256.{version}" value: {{ string_value: "{sha256}" }} }}\n'
INSTANCES = 2


@dataclass(frozen=True, slots=True)
class Publication:
    """A variant ready to go out: its entry, its model file, its model card."""

    variant: Variant
    model: Path
    card: str


def next_version(repository: Path, name: str, sha256: str) -> int:
    """Return the version this model file has or gets in the repository."""
    versions = _versions(repository / name)
    for version, known in versions.items():
        if known == sha256:
            return version
    return max(versions, default=0) + 1


def config_pbtxt(variant: Variant, hashes: dict[int, str]) -> str:
    """Return Triton's configuration of a variant; every version it lists is kept loaded.

    A batch-variant model takes one request at a time: its answers do not depend on who else asks.
    `dynamic_batching` stands there too: it makes Triton drop requests whose caller has gone. No
    queue policy: with one, Triton 24.10 lets requests lie for half a second. FP16 runs on a GPU where
    there is one (KIND_AUTO).
    """
    return MODEL_TEMPLATE.format(
        name=variant.name,
        max_batch_size=variant.max_batch,
        instances=variant.instances,
        kind="KIND_AUTO" if variant.precision is Precision.FP16 else "KIND_CPU",
        versions=", ".join(str(v) for v in sorted(hashes)),
        hashes="".join(HASH.format(version=v, sha256=hashes[v]) for v in sorted(hashes)),
        outputs=_outputs(variant),
    )


def _outputs(variant: Variant) -> str:
    of_labels = [len(g.logits) for g in variant.golden if isinstance(g, GoldenLabelLogits)]
    return LABEL_CONFIG.format(n_labels=of_labels[0]) if of_labels else SPAN_CONFIG.format()


def publish(
    repository: Path,
    publications: list[Publication],
    catalog: Catalog,
    tokenizer: Path,
    terms: Terms | None = None,
) -> None:
    """Write models, configurations and cards, then switch the catalog; with `terms`, make it the candidate.

    Everything is written beside the repository first; then only renames are left, so a full disk
    changes nothing. What the new and the present catalog name stays; what the catalog before them
    named is removed after the switch; what a candidate names stays. Folders that no catalog ever named are somebody else's.
    Raises: RepositoryError when the result would not be a valid repository, or cannot be written.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        present = _present(repository)
        _check_tokenizer(tokenizer, repository, present)
        with tempfile.TemporaryDirectory(dir=repository.parent, prefix=".staged-") as folder:
            stage = Path(folder)
            shutil.copyfile(tokenizer, stage / store.TOKENIZER)
            for publication in publications:
                _stage_variant(stage, repository, publication, present)
            if terms is not None:
                _try_as_candidate(stage, repository, publications, catalog, terms)
                return
            store.prepare(repository, catalog)
            try:
                _place(stage, repository, publications)
                _check(repository, catalog)
            except BaseException:
                store.discard(repository)
                raise
        before = _previous(repository)
        store.switch(repository)
        _forget_cards(repository, catalog, present)
    except OSError as exc:
        raise RepositoryError(_unwritten(repository, publications, exc)) from exc
    kept = [v for c in (catalog, present) if c is not None for v in c.variants]
    _remove_unnamed(repository, before, [*kept, *candidate.variants_of(repository)])


def _try_as_candidate(
    stage: Path,
    repository: Path,
    publications: list[Publication],
    catalog: Catalog,
    terms: Terms,
) -> None:
    """Put models beside those of the current catalog, which stays; the candidate's file comes last.

    The looks at the data that made its floors count whatever becomes of it. Raises: RepositoryError.
    """
    if not (repository / store.CATALOG).exists():
        raise RepositoryError(
            f"{repository}: holds no catalog to try a candidate beside; publish one"
        )
    current = store.read(repository)
    if candidate.same_models(catalog, current):
        raise RepositoryError("not published: the current catalog has the same variants and plans")
    candidate.check_classifications(catalog, current)
    _place(stage, repository, publications, CANDIDATE_CARD)
    _check(repository, catalog)
    store.note_looks(repository, catalog.looks)
    candidate.write(repository, catalog, terms)


def recertify(repository: Path, catalog: Catalog, cards: Mapping[str, str]) -> None:
    """Switch to a catalog of the same models, with a new card each; the one before is kept.

    Raises: RepositoryError when the result would not be a valid repository, or cannot be written.
    """
    try:
        store.prepare(repository, catalog)
        try:
            _check(repository, catalog)
            parts = {name: repository / name / f"{CARD}.part" for name in cards}
            for name, part in parts.items():
                part.write_text(cards[name])
        except BaseException:
            store.discard(repository)
            raise
        store.switch(repository)
        for part in parts.values():
            _replace_card(part, part.parent)
    except OSError as exc:
        raise RepositoryError(
            f"not written: {exc.filename or repository}: {exc.strerror}; the catalog is as it was"
        ) from exc


def _unwritten(repository: Path, publications: list[Publication], exc: OSError) -> str:
    models = [p.model for p in publications if p.model.exists()]
    needed = sum(model.stat().st_size for model in models) / 1e6
    free = shutil.disk_usage(repository.parent).free / 1e6
    where = exc.filename2 or exc.filename or repository
    return (
        f"not published: {where}: {exc.strerror}; the catalog is as it was. The models take"
        f" {needed:.1f} MB beside {repository}, where {free:.1f} MB are free: make room there, or"
        " give another --model-repository, and run the same command again"
    )


def _check(repository: Path, catalog: Catalog) -> None:
    problems = store.check_files(repository, catalog)
    if problems:
        raise RepositoryError("not published: " + "; ".join(problems))


def rollback(repository: Path) -> Catalog:
    """Put the catalog before the last publication back, with its cards; the two change places.

    What has been looked at stays in the ledger. Raises: RepositoryError.
    """
    previous = repository / store.PREVIOUS
    if not previous.exists():
        raise RepositoryError(f"{previous}: missing; nothing was published before this catalog")
    catalog = store.parse(previous.read_bytes(), previous)
    problems = store.check_files(repository, catalog)
    if problems:
        raise RepositoryError("not rolled back: " + "; ".join(problems))
    present = _present(repository)
    looks = merged(catalog.looks, present.looks if present else ())
    catalog = replace(catalog, looks=looks)
    store.write(repository, catalog)
    for name in {v.name for c in (catalog, present) if c for v in c.variants}:
        _swap_cards(repository / name)
    return catalog


def _replace_card(card: Path, folder: Path) -> None:
    """Put a variant's card in place; the one before stays beside it for a rollback."""
    if (folder / CARD).exists():
        os.replace(folder / CARD, folder / PREVIOUS_CARD)
    os.replace(card, folder / CARD)


def _swap_cards(folder: Path) -> None:
    """Let a variant's card and the one before change places, where there are two."""
    present, before, aside = folder / CARD, folder / PREVIOUS_CARD, folder / f"{CARD}.part"
    if present.exists() and before.exists():
        os.replace(present, aside)
        os.replace(before, present)
        os.replace(aside, before)


def _forget_cards(repository: Path, catalog: Catalog, present: Catalog | None) -> None:
    """Remove the old cards of variants that kept theirs: a rollback must not bring one back."""
    named = {v.name for v in catalog.variants}
    for variant in present.variants if present else ():
        if variant.name not in named:
            (repository / variant.name / PREVIOUS_CARD).unlink(missing_ok=True)


def _present(repository: Path) -> Catalog | None:
    return store.read(repository) if (repository / store.CATALOG).exists() else None


def _previous(repository: Path) -> Catalog | None:
    path = repository / store.PREVIOUS
    return store.parse(path.read_bytes(), path) if path.exists() else None


def _stage_variant(
    stage: Path, repository: Path, publication: Publication, present: Catalog | None
) -> None:
    """Write a variant's whole folder beside the repository."""
    variant, staged = publication.variant, stage / publication.variant.name
    version = staged / str(variant.version)
    version.mkdir(parents=True)
    shutil.copyfile(publication.model, version / "model.onnx")
    tried = candidate.variants_of(repository)
    hashes = _kept_hashes(variant, (*tried, *(present.variants if present else ())))
    (staged / "config.pbtxt").write_text(config_pbtxt(variant, hashes))
    (staged / CARD).write_text(publication.card)


def _place(
    stage: Path, repository: Path, publications: list[Publication], card: str = CARD
) -> None:
    """Rename what was staged in: the whole folder of a new variant, or its new version.

    `card`: what the card of a variant that is there already is called.
    """
    os.replace(stage / store.TOKENIZER, repository / store.TOKENIZER)
    for variant in (p.variant for p in publications):
        staged, folder = stage / variant.name, repository / variant.name
        if not folder.exists():
            os.replace(staged, folder)
            continue
        if not (folder / str(variant.version)).exists():
            os.replace(staged / str(variant.version), folder / str(variant.version))
        os.replace(staged / "config.pbtxt", folder / "config.pbtxt")
        if card == CARD:
            _replace_card(staged / CARD, folder)
        else:
            os.replace(staged / CARD, folder / card)


def _kept_hashes(variant: Variant, others: Iterable[Variant]) -> dict[int, str]:
    """Return version -> sha256 of the new version and of those that are served or tried at present."""
    kept = {v.version: v.sha256 for v in others if v.name == variant.name}
    return kept | {variant.version: variant.sha256}


def _versions(folder: Path) -> dict[int, str]:
    files = {int(p.name): p / "model.onnx" for p in folder.glob("[0-9]*") if p.name.isdigit()}
    return {v: store.sha256_of(path) for v, path in files.items() if path.exists()}


def _check_tokenizer(source: Path, repository: Path, present: Catalog | None) -> None:
    """Raises: RepositoryError where present variants read other tokens: they must go on working."""
    if present and present.tokenizer_sha256 != store.sha256_of(source):
        raise RepositoryError(
            f"{repository}: holds models of another tokenizer; publish to a folder of its own"
        )


def _remove_unnamed(repository: Path, before: Catalog | None, kept: list[Variant]) -> None:
    """Remove the versions of an old catalog that are not kept, and variants left with none."""
    named = {(v.name, v.version) for v in kept}
    names = {name for name, _ in named}
    for variant in before.variants if before is not None else ():
        folder = repository / variant.name
        if variant.name not in names:
            shutil.rmtree(folder, ignore_errors=True)
        elif (variant.name, variant.version) not in named:
            shutil.rmtree(folder / str(variant.version), ignore_errors=True)
