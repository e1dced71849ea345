"""The folder that fetched encoders stay in: `$BERTIER_CACHE_DIR`, else `$XDG_CACHE_HOME/bertier`.

A folder in it appears whole, by one rename, or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from optimizer.backbones.errors import BackboneError

VARIABLE = "BERTIER_CACHE_DIR"
WORK = ".part"  # ends the name of a folder in which something is being fetched


def root(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the cache folder; it may not be there yet."""
    if named := environment.get(VARIABLE):
        return Path(named).expanduser()
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "bertier"


def free_bytes(folder: Path) -> int:
    """Return the room on the disk of a folder that exists."""
    return shutil.disk_usage(folder).free


def made(
    name: str,
    make: Callable[[Path], Path],
    needed_bytes: int,
    cache: Path,
    free: Callable[[Path], int] = free_bytes,
) -> Path:
    """Return the folder `name` of the cache; `make` it in a work folder if it is not there.

    `make` is given the work folder, which stays after a kill so that the next call goes on, and
    returns the finished folder inside it. A disk that cannot be written to leaves nothing behind.
    Raises: BackboneError.
    """
    final, work = cache / name, cache / f"{name}{WORK}"
    if final.is_dir():
        return final
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f"{name}.lock"):
            if not final.is_dir():
                _check_room(work, needed_bytes, free)
                make(work).rename(final)
                shutil.rmtree(work, ignore_errors=True)
    except OSError as exc:
        shutil.rmtree(work, ignore_errors=True)
        raise BackboneError(
            f"{cache}: cannot be written to ({exc.strerror}), nothing was left there; {name} needs"
            f" {needed_bytes / 1e6:.0f} MB: make room, or name another folder with {VARIABLE}"
        ) from exc
    return final


def _check_room(work: Path, needed_bytes: int, free: Callable[[Path], int]) -> None:
    have = sum(p.stat().st_size for p in work.rglob("*") if p.is_file())
    room = free(work)
    if have + room < needed_bytes:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {room / 1e6:.0f} MB free")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time fetch; the lock ends with the process."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
