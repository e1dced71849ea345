"""API keys: named, kept as hashes, each with its scopes, its quota and the tightest class it may use.

A leaf: reads a file, decides nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import tomllib
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.errors import BertierError

PREFIX = "bt-"  # marks a secret as a key, also for scanners of leaked secrets
KEY_BYTES = 32
MAX_KEY_CHARS = 256
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class KeyFileError(BertierError):
    """A file or setting of keys that cannot be used; the message says where and why."""


class Scope(StrEnum):
    """What a key may do."""

    ANSWER = "answer"  # questions, plans, the list of variants
    METRICS = "metrics"


class ApiKey(BaseModel):
    """One caller; only the `sha256` of its key is stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Scope] = Field(frozenset({Scope.ANSWER}), min_length=1)
    requests_per_s: float | None = Field(None, gt=0, allow_inf_nan=False)  # None: no quota
    tightest_class: str | None = None  # the key may not use a lower latency than this class


Keys = Mapping[str, ApiKey]
_KEYS: TypeAdapter[dict[str, ApiKey]] = TypeAdapter(dict[str, ApiKey])


def new_key() -> str:
    """Return a new random key."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(key: str) -> str:
    """Return what is kept of a key: it has 256 random bits, so no salt or slow hash is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def read(path: Path, classes: Collection[str]) -> Keys:
    """Return the keys of a TOML file with a table for each name. Raises: KeyFileError."""
    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text)
    except OSError as exc:
        raise KeyFileError(f"{path}: cannot be read ({exc.strerror}); see `bertier keys`") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise KeyFileError(f"{path}: not TOML: {exc}") from exc
    if not text.strip():  # a truncated file must not lock out every caller
        raise KeyFileError(
            f"{path}: is empty; make a key with `bertier keys NAME --file {path}`,"
            " or lock out every caller with a comment line: # no keys"
        )
    return check(document, classes, str(path))


def check(document: Mapping[str, Any], classes: Collection[str], where: str) -> Keys:
    """Return the keys of a document. Raises: KeyFileError naming `where`; it never quotes a hash."""
    try:
        keys = _KEYS.validate_python(document)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise KeyFileError(f"{where}: {at}: {first['msg']}") from exc
    owners: dict[str, str] = {}
    for name, key in keys.items():
        _check_one(name, key, classes, where)
        other = owners.setdefault(key.sha256, name)
        if other != name:
            raise KeyFileError(f"{where}: {other} and {name} are the same key; replace one of them")
    return keys


def _check_one(name: str, key: ApiKey, classes: Collection[str], where: str) -> None:
    if not NAME.fullmatch(name):
        raise KeyFileError(f"{where}: {name!r} is not a valid name; use 1 to 64 of a-z 0-9 _ . -")
    if key.tightest_class is not None and key.tightest_class not in classes:
        known = ", ".join(sorted(classes))
        raise KeyFileError(
            f"{where}: {name}.tightest_class: {key.tightest_class!r} is none of {known}"
        )


def entry(name: str, key: ApiKey) -> str:
    """Return a key as a table of the file."""
    lines = [f"[{name}]" if "." not in name else f'["{name}"]', f'sha256 = "{key.sha256}"']
    if key.scopes != {Scope.ANSWER}:
        lines.append("scopes = [" + ", ".join(f'"{s}"' for s in sorted(key.scopes)) + "]")
    if key.requests_per_s is not None:
        lines.append(f"requests_per_s = {key.requests_per_s:g}")
    if key.tightest_class is not None:
        lines.append(f'tightest_class = "{key.tightest_class}"')
    return "\n".join(lines) + "\n"
