"""catalog.candidate.json: a catalog that is tried on a share of the requests, beside the current one.

It is a catalog with one more key, `rollout`: its terms. Promotion makes it the current catalog; withdrawal puts it
aside under a name that carries its hash, with the reason. Each can be killed at any moment and run again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gateway.catalog import store
from gateway.catalog.schema import QA, Variant
from gateway.catalog.store import Catalog, Look
from gateway.errors import RepositoryError

CANDIDATE = "catalog.candidate.json"
WITHDRAWN = "catalog.withdrawn-{}.json"  # first digits of the candidate's sha256
ROLLOUT = "rollout"
CARD, CANDIDATE_CARD, PREVIOUS_CARD = "README.md", "README.candidate.md", "README.previous.md"
HASH_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Terms:
    """How a candidate is tried. What is None is the setting of the gateway that tries it."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    share: float | None = None  # of the requests, above 0 and at most 1
    shadow: bool = False  # it answers beside the current catalog, and no caller sees its answers
    promote_after: int | None = (
        None  # of its requests, if it is shown to be no worse; None: by hand
    )
    withdrawn: str = ""  # when and why it was


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate as it is on disk."""

    catalog: Catalog
    terms: Terms
    sha256: str  # of the file


_TERMS = TypeAdapter(Terms)


def read_bytes(repository: Path, name: str = CANDIDATE) -> bytes | None:
    """Return a file of the repository; None: there is none. Raises: RepositoryError."""
    path = repository / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise RepositoryError(f"{path}: {exc.strerror}") from exc


def parse(raw: bytes, repository: Path) -> Candidate:
    """Return a validated candidate. Raises: RepositoryError, naming the first thing that is wrong."""
    path = repository / CANDIDATE
    document = _document(raw, path)
    given = document.pop(ROLLOUT, {})
    catalog = store.parse(json.dumps(document).encode(), path)
    terms = parse_terms(json.dumps(given), path)
    return Candidate(catalog, terms, hashlib.sha256(raw).hexdigest())


def parse_terms(given: str, path: Path) -> Terms:
    """Return validated terms, which are given as JSON. Raises: RepositoryError."""
    try:
        terms = _TERMS.validate_json(given)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, (ROLLOUT, *first["loc"])))
        raise RepositoryError(f"{path}: {where}: {first['msg']}") from exc
    check_terms(terms, path)
    return terms


def read(repository: Path) -> Candidate:
    """Return the candidate of a repository. Raises: RepositoryError."""
    raw = read_bytes(repository)
    if raw is None:
        raise RepositoryError(
            f"{repository / CANDIDATE}: missing; 'bertier-optimize publish --candidate 0.05' makes one"
        )
    return parse(raw, repository)


def check_terms(terms: Terms, path: Path) -> None:
    """Raises: RepositoryError for terms that are out of range."""
    if terms.share is not None and not 0 < terms.share <= 1:
        raise RepositoryError(
            f"{path}: {ROLLOUT}.share: {terms.share:g} is not above 0 and up to 1"
        )
    if terms.promote_after is not None and terms.promote_after < 1:
        raise RepositoryError(f"{path}: {ROLLOUT}.promote_after: it must be at least 1")
    if terms.withdrawn:
        raise RepositoryError(
            f"{path}: it was withdrawn ({terms.withdrawn}); remove {ROLLOUT}.withdrawn to try it again"
        )


def same_models(one: Catalog, other: Catalog) -> bool:
    """Return whether two catalogs route alike: where they come from does not matter."""
    origins = {task.name: task.origin for task in other.tasks}
    tasks = tuple(replace(t, origin=origins.get(t.name, t.origin)) for t in one.tasks)
    return replace(one, origin=other.origin, looks=other.looks, tasks=tasks) == other


def check_classifications(found: Catalog, current: Catalog) -> None:
    """Refuse a candidate that would change a classification: only answers to questions are compared.

    Raises: RepositoryError.
    """
    for task in sorted({*found.task_names, *current.task_names} - {QA}):
        if not same_models(found.only(task), current.only(task)):
            raise RepositoryError(
                f"the candidate changes the classification {task}, and only answers to questions are compared;"
                " publish the classification without a trial, then the candidate again"
            )


def write(repository: Path, catalog: Catalog, terms: Terms) -> None:
    """Make a catalog the candidate by one rename; one that is there is replaced.

    Raises: RepositoryError when no gateway would try it.
    """
    document = json.loads(store.dump(catalog)) | {ROLLOUT: _terms_document(terms)}
    parse(json.dumps(document).encode(), repository)
    _put(repository / CANDIDATE, document)


def promote(repository: Path, sha256: str | None = None) -> Catalog:
    """Make the candidate the current catalog by one rename; the one before stays for a rollback.

    `sha256`: only this candidate. Raises: RepositoryError.
    """
    with _held(repository, sha256) as candidate:
        current = _current(repository)
        if current is None:
            store.write(repository, candidate.catalog)
        elif not same_models(candidate.catalog, current):  # else an earlier call was ended half-way
            check_classifications(candidate.catalog, current)
            looks = _all_looks(candidate.catalog, current)
            store.write(repository, replace(candidate.catalog, looks=looks))
        for variant in candidate.catalog.variants:
            _show_card(repository / variant.name)
        (repository / CANDIDATE).unlink(missing_ok=True)
    return candidate.catalog


def withdraw(repository: Path, reason: str, sha256: str | None = None) -> Path:
    """Put the candidate aside with the reason; return where. `sha256`: only this candidate.

    Raises: RepositoryError.
    """
    with _held(repository, sha256) as candidate:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        terms = replace(candidate.terms, withdrawn=f"{date}: {reason}")
        aside = _aside(repository, candidate.sha256)
        _put(aside, json.loads(store.dump(candidate.catalog)) | {ROLLOUT: _terms_document(terms)})
        for variant in candidate.catalog.variants:
            (repository / variant.name / CANDIDATE_CARD).unlink(missing_ok=True)
        (repository / CANDIDATE).unlink(missing_ok=True)
    return aside


def withdrawn(repository: Path, sha256: str) -> str | None:
    """Return why this very candidate was withdrawn earlier; None: it was not."""
    path = _aside(repository, sha256)
    try:
        reason = json.loads(path.read_bytes())[ROLLOUT]["withdrawn"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "no reason can be read"
    return f"{reason}; remove {path.name} to try it again"


def variants_of(repository: Path) -> tuple[Variant, ...]:
    """Return the variants that a candidate names, if there is one that can be read."""
    try:
        return read(repository).catalog.variants
    except RepositoryError:
        return ()


def _all_looks(found: Catalog, current: Catalog) -> tuple[Look, ...]:
    """Return the looks at the data of both catalogs: what was spent since the candidate was made counts."""
    known = {(look.data, look.claims) for look in found.looks}
    since = (look for look in current.looks if (look.data, look.claims) not in known)
    return (*found.looks, *since)


def _document(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError as exc:
        raise RepositoryError(f"{path}: not JSON: {exc}; publish it again") from exc
    if not isinstance(document, dict):
        raise RepositoryError(f"{path}: whole file: it must be an object")
    return document


def _current(repository: Path) -> Catalog | None:
    return store.read(repository) if (repository / store.CATALOG).exists() else None


def _terms_document(terms: Terms) -> dict[str, Any]:
    return {name: value for name, value in asdict(terms).items() if value not in (None, "")}


def _aside(repository: Path, sha256: str) -> Path:
    return repository / WITHDRAWN.format(sha256[:HASH_DIGITS])


def _put(path: Path, document: dict[str, Any]) -> None:
    put(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def put(path: Path, raw: bytes) -> None:
    """Write a file whole, by rename. Raises: RepositoryError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(raw)
        os.replace(part, path)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise RepositoryError(f"{path}: not written: {exc.strerror}") from exc


@contextmanager
def _held(repository: Path, sha256: str | None) -> Iterator[Candidate]:
    with held(repository, CANDIDATE, sha256) as raw:
        yield parse(raw, repository)


@contextmanager
def held(repository: Path, name: str, sha256: str | None) -> Iterator[bytes]:
    """Hold a candidate's file for the length of the block: of several gateways, one acts at a time.

    The lock is on the file itself, and is gone with the process. `sha256`: only of this candidate.
    Raises: RepositoryError, also where it is another candidate by now, or gone.
    """
    path = repository / name
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            raw = read_bytes(repository, name)  # by name: another process may have acted meanwhile
            if raw is None:
                raise FileNotFoundError(None, "it is gone")
            if sha256 not in (None, hashlib.sha256(raw).hexdigest()):
                raise RepositoryError(f"{path}: it has been replaced by another candidate")
            yield raw
    except OSError as exc:
        raise RepositoryError(f"{path}: {exc.strerror}") from exc


def _show_card(folder: Path) -> None:
    """Put the card of a candidate's version in place; the one before stays for a rollback."""
    if (folder / CANDIDATE_CARD).exists():
        if (folder / CARD).exists():
            os.replace(folder / CARD, folder / PREVIOUS_CARD)
        os.replace(folder / CANDIDATE_CARD, folder / CARD)
