"""Decides when to reload files that changed, and whether a failure is new.

Files that could not be used are tried at every look, changed or not: the cause may have been permissions or the
time. Reads no file itself. Any thread may call it, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

LOOK_EVERY_MS = 1_000.0

Stamp = tuple[tuple[int, int, int], ...]


class Reloading:
    """The state of some files as they were read last."""

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float]) -> None:
        """`clock` is in ms. Make it before the files are read: an edit in between is then seen."""
        self._paths = paths
        self._clock = clock
        self._looked_ms = clock()
        self._stamp = _stamp_of(paths)
        self._trouble: str | None = None

    def is_due(self) -> bool:
        """Say whether to read them now; at most once in `LOOK_EVERY_MS`."""
        now_ms = self._clock()
        if not self._paths or now_ms - self._looked_ms < LOOK_EVERY_MS:
            return False
        self._looked_ms = now_ms
        before, self._stamp = self._stamp, _stamp_of(self._paths)
        return before != self._stamp or self._trouble is not None

    def worked(self) -> None:
        """Note that they were used."""
        self._trouble = None

    def failed(self, why: str) -> bool:
        """Note that they could not be used; return whether that was not known before."""
        known, self._trouble = self._trouble == why, why
        return not known


def _stamp_of(paths: Sequence[Path]) -> Stamp:
    """Return what changes when content, rights or place of a file do; 0: it is not there."""
    stamps = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((found.st_ctime_ns, found.st_ino, found.st_size))
    return tuple(stamps)
