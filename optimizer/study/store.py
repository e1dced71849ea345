"""A run folder and question sets kept in an object store; only this module knows fsspec.

Every command works on a local copy. What is finished goes to the store, a stage's manifest last, and what
another machine finished is fetched once, before it is needed. The store holds no unfinished work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import BertierError

log = logging.getLogger(__name__)

_attached: dict[Path, Store] = {}  # the run folders of this process that are copies


class StoreError(BertierError):
    """The store cannot be reached, read or written."""


def is_url(name: str) -> bool:
    return "://" in name


def name_of(url: str) -> str:
    """Return the last part of a URL. Raises: StoreError when it has none: a bucket is no folder."""
    kind, _, path = url.partition("://")
    name = path.rstrip("/").rpartition("/")[2]
    if not name or (kind != "file" and "/" not in path.rstrip("/")):
        raise StoreError(f"{url}: names no folder; write for example {url.rstrip('/')}/my-study")
    return name


def attach(url: str, folder: Path) -> Store:
    """Keep a run folder in a store from now on. Raises: StoreError."""
    store = _attached[folder.absolute()] = Store.at(url, folder.absolute())
    return store


def of(path: Path) -> Store | None:
    """Return the store that the run folder of this path is kept in, if any."""
    path = path.absolute()
    return next((store for root, store in _attached.items() if path.is_relative_to(root)), None)


@dataclass(frozen=True)
class Store:
    """A folder here and the same folder in a store."""

    url: str
    folder: Path
    files: Any  # an fsspec file system
    root: str  # of this folder in it

    @classmethod
    def at(cls, url: str, folder: Path) -> Store:
        """Raises: StoreError when the kind of store is unknown or its driver is missing."""
        try:
            import fsspec

            files, root = fsspec.url_to_fs(url)
        except ImportError as exc:
            raise StoreError(
                f"{url}: {exc}; install the driver: pip install 'bertier[store]', for gs://"
                " pip install 'bertier[gs]'"
            ) from exc
        except ValueError as exc:
            raise StoreError(f"{url}: {exc}; use file://, s3:// or gs://") from exc
        return cls(url.rstrip("/"), folder, files, root.rstrip("/"))

    def read(self, path: Path) -> bytes | None:
        """Return what the store has of a file; None: nothing."""
        with self._mapped("read"):
            try:
                found: bytes = self.files.cat_file(self._name(path))
            except FileNotFoundError:
                return None
            return found

    def fetch(self, folder: Path, last: str) -> None:
        """Copy a folder's files from the store, over those here, the one named `last` last.

        Not those of folders in it that have such a file themselves.
        """
        with self._mapped("read"):
            names = self._names(folder)
            inner = tuple(n.removesuffix(last) for n in names if n.endswith(f"/{last}"))
            wanted = [n for n in names if not n.startswith(inner)] if inner else names
            for name in sorted(wanted, key=lambda n: n == last):
                self._fetch_file(folder / name)

    def fetch_missing(self, folder: Path) -> None:
        """Copy the files of a folder from the store that are not here."""
        with self._mapped("read"):
            for name in self._names(folder):
                if not (folder / name).exists():
                    self._fetch_file(folder / name)

    def fetch_file(self, path: Path) -> None:
        """Copy a file from the store, over the one here, if it is there."""
        with self._mapped("read"), suppress(FileNotFoundError):
            self._fetch_file(path)

    def keep(self, paths: Collection[Path]) -> None:
        """Copy files to the store, in this order."""
        with self._mapped("written"):
            for path in paths:
                self._make_room(path)
                self.files.put_file(str(path), self._name(path))

    def _names(self, folder: Path) -> list[str]:
        """Return the files below a folder in the store, relative to it."""
        prefix = self._name(folder)
        self.files.invalidate_cache()  # others write there
        return [name.removeprefix(prefix).lstrip("/") for name in self.files.find(prefix)]

    def _fetch_file(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self.files.get_file(self._name(path), str(part))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, path: Path) -> None:
        if "file" in self.files.protocol:  # a store of objects has no folders
            self.files.makedirs(self._name(path.parent), exist_ok=True)

    def _name(self, path: Path) -> str:
        inside = path.absolute().relative_to(self.folder).as_posix()
        return self.root if inside == "." else f"{self.root}/{inside}"

    @contextmanager
    def _mapped(self, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as exc:  # each driver has errors of its own; none is ours
            said = " ".join(str(exc).split()) or type(exc).__name__
            raise StoreError(
                f"{self.url}: cannot be {done} ({said}); what is finished is kept in {self.folder}: make sure"
                " that the store can be reached, has room and gives you access, then run the same command again"
            ) from exc
