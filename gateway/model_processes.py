"""The processes that a local Triton runs its model instances in: which there are, and which of them are lost.

Triton's Python backend never starts one again that has ended. It gives up one that is silent for a second,
and aborts as a whole when that one goes on later: so one that is stopped (SIGSTOP) is ended here before.
Reads /proc; loads no model (healing.py does).
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

LOOK_MS = 250.0
CERTAIN_MS = 400.0  # ended or stopped for so long: it is no unloading, and no pause
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
        self._found: list[Lost] = []

    def look(self, server: int | None) -> None:
        """Look once; `server`: the pid of Triton, None while there is none."""
        if server != self._server:
            self._server = server
            for known in (self._models, self._since, self._lost, self._found):
                known.clear()
        if server is None:
            return
        for pid in self._children(server):
            self._look_at(pid)

    def take_lost(self) -> list[Lost]:
        """Return what was lost since the last call."""
        found, self._found = self._found, []
        return found

    def of(self, model: str) -> set[int]:
        """Return the processes of a model that are not lost."""
        return {pid for pid, name in self._models.items() if name == model} - self._lost

    def end(self, pids: Collection[int]) -> None:
        """End what is left of instances that were replaced: Triton waits for ever for the lost one first."""
        for pid in pids:
            if pid in self._models:
                self._kill(pid)
                self._lost.add(pid)

    def _children(self, server: int) -> set[int]:
        found: set[int] = set()
        with suppress(OSError):  # it has just ended
            for task in (self._proc / str(server) / "task").iterdir():
                with suppress(OSError):
                    found |= {int(pid) for pid in (task / "children").read_text().split()}
        for pid in self._models.keys() - found:  # unloaded, in good order
            del self._models[pid]
            self._since.pop(pid, None)
            self._lost.discard(pid)
        return found

    def _look_at(self, pid: int) -> None:
        if pid not in self._models:
            model = self._model_of(pid)
            if model is None:
                return
            self._models[pid] = model
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
        return text.rpartition(")")[2].split()[0]
