"""`bertier keys`: a new API key, shown once; only its hash is kept."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway import api_keys
from gateway.api_keys import ApiKey, KeyFileError, Scope
from gateway.errors import InvalidField
from gateway.settings import Settings, read

Add = Callable[..., argparse.ArgumentParser]


def add(commands: Any, register: Add) -> None:
    """Register the command."""
    command = register(commands, "keys", run, "make an API key; it is shown once, its hash is kept")
    command.add_argument("name", help="name of the caller")
    command.add_argument("--file", type=Path, help="append it to this key file")
    command.add_argument("--requests-per-s", type=float, metavar="N", help="quota; none: unlimited")
    command.add_argument(
        "--tightest-class", metavar="CLASS", help="tightest SLO class that the key may use"
    )
    command.add_argument("--scope", action="append", choices=tuple(Scope), dest="scopes")


def run(flags: argparse.Namespace) -> int:
    """Print a new key and its table, or put the table into the file. Raises: KeyFileError."""
    key, settings = api_keys.new_key(), read()
    given = {
        "sha256": api_keys.digest(key),
        "scopes": flags.scopes or [Scope.ANSWER],
        "requests_per_s": flags.requests_per_s,
        "tightest_class": flags.tightest_class,
    }
    made = api_keys.check({flags.name: given}, settings.classes, "bertier keys")[flags.name]
    if flags.file is not None:
        _put(flags.name, made, flags.file, settings)
    print(key)
    if flags.file is None:
        print(f"\n{api_keys.entry(flags.name, made)}", end="")
    return 0


def _put(name: str, key: ApiKey, path: Path, settings: Settings) -> None:
    """Append a key to a file that stays whole whatever happens."""
    try:
        before = path.read_text("utf-8") if path.exists() else ""
        if before and name in api_keys.read(path, settings.classes):
            raise InvalidField(
                f"{path}: {name} is there already; take it out first, or choose a name"
            )
        gap = "\n" if before else ""
        part = path.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_text(before + gap + api_keys.entry(name, key), "utf-8")
        part.replace(path)
    except OSError as exc:
        raise KeyFileError(f"{path}: cannot be written ({exc.strerror})") from exc
