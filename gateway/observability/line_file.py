"""A file of whole lines that several processes append to; what stands in the lines is not its business."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BLOCK_BYTES = 65_536  # read at a time, to find the last whole line


class LineFile:
    """A file of whole lines: a partial line, left by a full disk or a killed process, is removed."""

    def __init__(self, path: Path, mode: int) -> None:
        """`mode`: of a file that is made. Raises: OSError."""
        self._path = path
        self._number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
        found = os.fstat(self._number)
        self._is = (found.st_dev, found.st_ino)
        self._regular = stat.S_ISREG(found.st_mode)
        if self._regular:
            with self._locked():
                self._mend(os.fstat(self._number).st_size)

    @property
    def moved(self) -> bool:
        """Whether the path now names another file, or none."""
        try:
            found = self._path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._is

    def append(self, chunk: bytes) -> None:
        """Write the whole chunk or nothing. Raises: OSError."""
        with self._locked():
            self._append(chunk)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let no other worker of this gateway write to the file in the block."""
        if not self._regular:
            yield
            return
        fcntl.flock(self._number, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._number, fcntl.LOCK_UN)

    def _append(self, chunk: bytes) -> None:
        before, left = os.fstat(self._number).st_size, memoryview(chunk)
        try:
            while left:
                left = left[os.write(self._number, left) :]
        except OSError:
            if self._regular:
                os.ftruncate(self._number, before)
            raise

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._number)

    def _mend(self, size: int) -> None:
        """Cut off what follows the last whole line."""
        end = size
        while end:
            start = max(0, end - BLOCK_BYTES)
            block = os.pread(self._number, end - start, start)
            if (found := block.rfind(b"\n")) >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._number, end)
