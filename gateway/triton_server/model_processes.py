"""The processes of a local Triton's model instances: finds them, and detects lost ones.

Triton's Python backend never starts one again that has ended. It gives up one that is silent for a second,
and aborts as a whole when that one goes on later: so one that is stopped (SIGSTOP) is ended here before.
Reads /proc; loads no model (healing.py does).
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

LOOK_MS = 250.0
FIND_MS = 1_000.0  # between two searches for new processes: Triton has many threads to look through
MOST_FOUND = 64  # losses that are kept until they are read
CERTAIN_MS = 400.0  # a process ended or stopped for so long is lost, not unloading or paused
STUB = "triton_python_backend_stub"

_ENDED, _STOPPED = "Z", "T"


@dataclass(frozen=True, slots=True)
class Lost:
    """A process that answers no more."""

    model: str
    pid: int
    why: str


class ModelProcesses:
    """The model processes of one Triton after the other."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = lambda: time.monotonic() * 1e3,
    ) -> None:
        self._proc = proc
        self._clock = clock
        self._server: int | None = None
        self._models: dict[int, str] = {}  # by pid
        self._since: dict[int, tuple[str, float]] = {}  # in which sick state, and since when
        self._lost: set[int] = set()
        self._found: deque[Lost] = deque(maxlen=MOST_FOUND)
        self._searched_ms = float("-inf")

    def look(self, server: int | None) -> None:
        """Look once; `server`: the pid of Triton, None while there is none."""
        if server != self._server:
            self._server = server
            for known in (self._models, self._since, self._lost, self._found):
                known.clear()
            self._searched_ms = float("-inf")
        if server is None:
            return
        if self._clock() - self._searched_ms >= FIND_MS:
            self._searched_ms = self._clock()
            self._search(server)
        for pid in self._models:
            self._look_at(pid)

    def take_lost(self) -> list[Lost]:
        """Return what was lost since the last call."""
        found = list(self._found)
        self._found.clear()
        return found

    def of(self, model: str) -> set[int]:
        """Return the processes of a model that are not lost."""
        return {pid for pid, name in self._models.items() if name == model} - self._lost

    def is_gone(self, model: str) -> bool:
        """Say whether all processes of a model are lost; one without any may only be unknown."""
        known = {pid for pid, name in self._models.items() if name == model}
        return bool(known) and known <= self._lost

    def end(self, pids: Collection[int]) -> None:
        """End what is left of instances that were replaced: Triton waits for ever for the lost one first."""
        for pid in pids:
            if pid in self._models:
                self._kill(pid)
                self._lost.add(pid)

    def _search(self, server: int) -> None:
        found: set[int] = set()
        with suppress(OSError):  # it has just ended
            for task in (self._proc / str(server) / "task").iterdir():
                with suppress(OSError):
                    found |= {int(pid) for pid in (task / "children").read_text().split()}
        for pid in self._models.keys() - found:  # unloaded, in good order
            del self._models[pid]
            self._since.pop(pid, None)
            self._lost.discard(pid)
        for pid in found - self._models.keys():
            if (model := self._model_of(pid)) is not None:
                self._models[pid] = model

    def _look_at(self, pid: int) -> None:
        state = self._state_of(pid)
        if pid in self._lost or state not in (_ENDED, _STOPPED):
            self._since.pop(pid, None)
            return
        now_ms = self._clock()
        before, since_ms = self._since.setdefault(pid, (state, now_ms))
        if before != state:
            self._since[pid] = state, now_ms
        elif now_ms - since_ms >= CERTAIN_MS:
            self._lose(pid, state)

    def _lose(self, pid: int, state: str) -> None:
        why = f"its process {pid} has ended"
        if state == _STOPPED:
            why = f"its process {pid} was stopped, and is ended for good"
            self._kill(pid)
        self._lost.add(pid)
        self._found.append(Lost(self._models[pid], pid, why))

    def _kill(self, pid: int) -> None:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)

    def _model_of(self, pid: int) -> str | None:
        """Return the model whose instance a process is; None: it is none."""
        try:
            command = (self._proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return None
        if len(command) < 2 or Path(os.fsdecode(command[0])).name != STUB:
            return None
        return Path(os.fsdecode(command[1])).parent.parent.name  # <model>/<version>/<file>

    def _state_of(self, pid: int) -> str:
        try:
            text = (self._proc / str(pid) / "stat").read_text()
        except OSError:
            return ""
        return text.rpartition(")")[2].strip()[:1]
