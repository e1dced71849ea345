"""One process of a fleet: killed as by a failing host, stopped as by an operator, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from loadtest.stack import StackError

PATIENCE_S = 240.0
STOP_S = 60.0
POLL_S = 0.05
# A killed measurement leaves no fleet. Not by code of ours between fork and exec: gRPC's threads run here.
END_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")


@dataclass
class Program:
    """One process that can be ended and started again on the same ports."""

    command: Sequence[str]
    log: Path
    settings: Mapping[str, str] = field(default_factory=dict)  # environment variables
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*END_WITH_US, *self.command],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.settings},
            )

    def check(self) -> bool:
        """Return True. Raises: StackError when it has ended by itself, with the end of its log."""
        if self.process.poll() is not None:
            said = self.log.read_text(errors="replace")[-2000:]
            raise StackError(f"{self.log.stem} ended; the end of its log:\n{said}")
        return True

    def kill(self) -> None:
        """End it and all it started as a failing host would: without a word, and with its ports free."""
        self.process.send_signal(signal.SIGSTOP)  # it does no more while its family is looked for
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(family, PATIENCE_S)

    def stop(self) -> None:
        """Ask it to end, as an operator does, and wait until it has; nothing where it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()


def until(fact: Callable[[], bool], what: str, poll_s: float = POLL_S) -> None:
    """Wait for a fact. Raises: StackError."""
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        if time.monotonic() > deadline:
            raise StackError(f"did not happen within {PATIENCE_S:g} s: {what}")
        time.sleep(poll_s)
