"""The decision about each question as one JSON line, for `bertier-loadtest replay`; without any text.

Lines are queued in memory and written in chunks in a thread. A line that finds no room in memory or on disk
is lost and counted; no question waits for the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.catalog.schema import QA
from gateway.domain import Reason, Size, Slo
from gateway.observability.line_file import LineFile

log = logging.getLogger(__name__)

VERSION = 1  # of the line format; loadtest/lab/replay.py documents its fields
CAPACITY = 65_536  # lines that may wait
PERIOD_S = 1.0  # from one chunk to the next
MODE = 0o640  # of the file: no text of a caller is in it


@dataclass(slots=True)
class Entry:
    """What is known about a question; `size` None: refused or too late before its body was read."""

    slo: Slo
    arrived_ms: float
    size: Size | None = None
    plan: str | None = None
    reason: str = Reason.TOO_LATE
    predicted_ms: float | None = None
    took_ms: float = 0.0
    outcome: str = "answered"
    gone: bool = False
    instead_of: Entry | None = None  # what the candidate catalog had decided before it failed

    def line(self) -> bytes:
        slo, size = self.slo, self.size
        fields = {
            "v": VERSION,
            "arrival_ms": round(self.arrived_ms, 3),
            "bucket": size and size.bucket,
            "n_windows": size and size.n_windows,
            "latency_ms": slo.latency_ms,
            "min_f1": slo.min_f1,
            "max_f1_loss": slo.max_f1_loss,
            "min_answerable_f1": slo.min_answerable_f1,
            "policy": slo.policy,
            "timeout_ms": slo.timeout_ms,
            "slo_class": slo.slo_class,
            "priority": slo.priority,
            "variant": slo.variant,
            "plan": self.plan,
            "reason": self.reason,
            "predicted_ms": self.predicted_ms,
            "took_ms": round(self.took_ms, 3),
            "outcome": self.outcome,
            "gone": self.gone,
            "candidate": self.instead_of and self.instead_of.decided(),
            **({} if slo.task == QA else {"task": slo.task}),
        }
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    def decided(self) -> dict[str, str | float | None]:
        """Return what was decided, without the request."""
        return {
            "plan": self.plan,
            "reason": self.reason,
            "predicted_ms": self.predicted_ms,
            "outcome": self.outcome,
        }


class DecisionLog:
    """Records decisions if a file is configured; for one event loop."""

    def __init__(self, path: Path | None, on_lost: Callable[[int], None]) -> None:
        """`on_lost` is called with the number of lines that found no room."""
        self.on = path is not None
        self._path = path
        self._on_lost = on_lost
        self._waiting: deque[Entry] = deque()
        self._file: LineFile | None = None
        self._failing = False
        self._writing = threading.Lock()

    def __len__(self) -> int:
        """Return how many lines wait to be written."""
        return len(self._waiting)

    def add(self, entry: Entry) -> None:
        """Queue the line of a question that ended."""
        if len(self._waiting) < CAPACITY:
            self._waiting.append(entry)
        else:
            self._on_lost(1)

    async def run(self) -> None:
        """Write forever; return at once where no file is configured."""
        while self._path is not None:
            await asyncio.sleep(PERIOD_S)
            await asyncio.to_thread(self.write)

    def write(self) -> None:
        """Write the queued lines. Blocks on the disk."""
        with self._writing:
            self._write()

    def _write(self) -> None:
        entries = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not entries or self._path is None:
            return
        try:
            if self._file is None or self._file.moved:
                self._close()
                self._file = LineFile(self._path, MODE)
            self._file.append(b"".join(entry.line() for entry in entries))
            self._failing = False
        except OSError as exc:
            self._on_lost(len(entries))
            self._close()
            if not self._failing:
                log.warning("%s: decisions are lost: %s", self._path, exc.strerror)
            self._failing = True

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
