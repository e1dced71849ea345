"""A teacher's answers, cached on disk by question: shared by all sets that contain the question.

A file is written whole, by one rename, and never changed: a killed process loses what it had not
written yet, and one damaged file costs the questions in it.
Legend: R questions, K kept places.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from optimizer.study import store
from optimizer.teachers.errors import TeacherError
from optimizer.teachers.mapping import Spread

log = logging.getLogger(__name__)

KEY_BYTES = 16
ARRAYS = ("keys", "places", "shares")


def key_of(question: str, context: str) -> bytes:
    """Return what a question goes by: its words and its context's."""
    text = f"{len(question)}:{question}{context}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


class AnswerStore:
    """The cached answers of one teacher."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spreads: dict[bytes, Spread] = {}
        if kept := store.of(folder):
            kept.fetch_missing(folder)
        for path in sorted(folder.glob("*.npz")):
            self._spreads |= _read(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._spreads

    def __getitem__(self, key: bytes) -> Spread:
        return self._spreads[key]

    def __len__(self) -> int:
        return len(self._spreads)

    def add(self, keys: Sequence[bytes], spreads: Sequence[Spread]) -> None:
        """Keep more answers. Raises: TeacherError when they cannot be written."""
        if not keys:
            return
        arrays = (
            np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
            np.stack([s.places for s in spreads]),  # (R, 2, K)
            np.stack([s.shares for s in spreads]),
        )
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:KEY_BYTES]
        self._write(name, arrays)
        self._spreads |= dict(zip(keys, spreads, strict=True))
        if kept := store.of(self.folder):
            kept.keep([self.folder / f"{name}.npz"])

    def _write(self, name: str, arrays: Sequence[np.ndarray]) -> None:
        part = self.folder / f"{name}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.savez(file, **dict(zip(ARRAYS, arrays, strict=True)))  # type: ignore[arg-type]
            part.replace(self.folder / f"{name}.npz")
        except OSError as exc:
            raise TeacherError(
                f"{self.folder}: cannot be written to ({exc.strerror}); the {len(self)} answers"
                " there are kept: make room and run the same command again"
            ) from exc
        finally:
            with suppress(OSError):
                part.unlink()  # where it was not renamed


def _read(path: Path) -> dict[bytes, Spread]:
    try:
        with path.open("rb") as file, np.load(file) as found:  # closed even where it is no archive
            keys, places, shares = (found[name] for name in ARRAYS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        log.warning("%s: damaged (%s): removed, its questions are asked again", path, exc)
        path.unlink(missing_ok=True)
        return {}
    return {
        key.tobytes(): Spread(place, share)
        for key, place, share in zip(keys, places, shares, strict=True)
    }
