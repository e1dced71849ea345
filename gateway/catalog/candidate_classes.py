"""classes.toml: SLO classes in place of those of the settings; classes.candidate.toml: others, which are tried.

A candidate is the next classes.toml, with one more table, `rollout`: its terms. Promotion renames it; withdrawal puts it
aside under a name that carries its hash, with the reason. Knows no class: what is inside is the gateway's to check.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.catalog import candidate
from gateway.catalog.candidate import HASH_DIGITS, ROLLOUT, Terms, parse_terms
from gateway.errors import RepositoryError

CLASSES, CANDIDATE, PREVIOUS = "classes.toml", "classes.candidate.toml", "classes.previous.toml"
WITHDRAWN = "classes.withdrawn-{}.toml"  # first digits of the candidate's sha256


def read_bytes(repository: Path, name: str = CANDIDATE) -> bytes | None:
    """Return a file of the repository; None: there is none. Raises: RepositoryError."""
    return candidate.read_bytes(repository, name)


def parse(raw: bytes, path: Path) -> tuple[Mapping[str, Any], Terms]:
    """Return the tables of a file by class, and its terms. Raises: RepositoryError."""
    try:
        document = tomllib.loads(raw.decode())
        terms = json.dumps(document.get(ROLLOUT, {}), default=str)
        json.dumps(document.get("classes"), default=str)  # fails on a number of thousands of digits
    except (ValueError, RecursionError) as exc:  # of the text, of TOML, of numbers; nested too deep
        raise RepositoryError(f"{path}: cannot be read as TOML: {exc}") from exc
    unknown = document.keys() - {"classes", ROLLOUT}
    if unknown:
        raise RepositoryError(
            f"{path}: {min(unknown)}: only classes may be set here, as [classes.NAME], and [{ROLLOUT}]"
        )
    tables = document.get("classes")
    if not tables or not isinstance(tables, dict):
        raise RepositoryError(f"{path}: it has no [classes.NAME]")
    return tables, parse_terms(terms, path)


def promote(repository: Path, sha256: str | None = None) -> Path:
    """Make the candidate classes.toml by one rename; the one before stays as classes.previous.toml.

    `sha256`: only this candidate. Raises: RepositoryError.
    """
    with candidate.held(repository, CANDIDATE, sha256) as raw:
        parse(raw, repository / CANDIDATE)
        before = read_bytes(repository, CLASSES)
        if before is not None:
            candidate.put(repository / PREVIOUS, before)
        os.replace(repository / CANDIDATE, repository / CLASSES)
    return repository / CLASSES


def withdraw(repository: Path, reason: str, sha256: str | None = None) -> Path:
    """Put the candidate aside with the reason; return where. Raises: RepositoryError."""
    with candidate.held(repository, CANDIDATE, sha256) as raw:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        aside = _aside(repository, hashlib.sha256(raw).hexdigest())
        line = " ".join(f"# {date}: {reason}".split())
        candidate.put(aside, f"{line}\n".encode() + raw)
        (repository / CANDIDATE).unlink(missing_ok=True)
    return aside


def withdrawn(repository: Path, sha256: str) -> str | None:
    """Return why this very candidate was withdrawn earlier; None: it was not."""
    path = _aside(repository, sha256)
    try:
        first = path.read_text("utf-8").partition("\n")[0]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        first = "no reason can be read"
    return f"{first.removeprefix('# ')}; remove {path.name} to try it again"


def _aside(repository: Path, sha256: str) -> Path:
    return repository / WITHDRAWN.format(sha256[:HASH_DIGITS])
