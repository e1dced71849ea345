"""Workers that share a study: which are alive, and which may measure on this host.

Knows nothing of Optuna. A worker's pulse is a count that it raises; whoever watches decides by the
own clock whether it has stopped, so the clocks of hosts may differ.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from gateway.errors import BertierError

log = logging.getLogger(__name__)

HOST_LOCK = Path(tempfile.gettempdir()) / "bertier-measuring.lock"


class Busy(BertierError):
    """Another process is doing what only one process may do at a time."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """Interval of a worker's heartbeat, and how long it may be silent."""

    every_s: float = 15.0
    grace_s: float = 90.0


class Watch:
    """Finds trials whose worker stopped: their heartbeat did not change for longer than the grace."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._seen: dict[
            int, tuple[int, float]
        ] = {}  # by trial: the last heartbeat, and since when

    def stopped(self, heartbeats: Mapping[int, int], now_s: float) -> list[int]:
        """Return the silent trials; `heartbeats`: the counts of all running trials."""
        self._seen = {
            trial: before
            if (before := self._seen.get(trial)) and before[0] == heartbeat
            else (heartbeat, now_s)
            for trial, heartbeat in heartbeats.items()
        }
        return [t for t, (_, since) in self._seen.items() if now_s - since > self._grace_s]


@contextmanager
def sending_heartbeats(heartbeat: Callable[[int], None], pulse: Pulse) -> Iterator[None]:
    """Call `heartbeat` with 1, 2, ... at once and then from time to time, until the block ends."""
    over = Event()

    def work() -> None:
        count = 1
        while not over.wait(pulse.every_s):
            count += 1
            _try(heartbeat, count)

    _try(heartbeat, 1)
    thread = Thread(target=work, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _try(heartbeat: Callable[[int], None], count: int) -> None:
    try:
        heartbeat(count)
    except Exception as exc:  # noqa: BLE001 - heartbeats are best effort; the trial reports faults
        log.warning("no sign of life could be given: %s", exc)


@contextmanager
def measuring(lock: Path = HOST_LOCK) -> Iterator[None]:
    """Measure alone on this host: wait until no other process works or measures."""
    with _held(lock, fcntl.LOCK_EX):
        yield


@contextmanager
def working(lock: Path = HOST_LOCK) -> Iterator[None]:
    """Use this host's cores, together with others: no process measures meanwhile."""
    with _held(lock, fcntl.LOCK_SH):
        yield


@contextmanager
def alone(lock: Path, message: str) -> Iterator[None]:
    """Hold the lock exclusively. Raises: Busy with this message when another process holds it."""
    with _opened(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(message) from None
        yield


Claim = Callable[[str], AbstractContextManager[bool]]  # of a piece of work; False: another has it


def in_any_order(names: Sequence[str], claim: Claim, look_every_s: float = 5.0) -> Iterator[str]:
    """Yield the names, each while this worker has it: first what no other works on, then what is left.

    Also those that others finished, so that every worker comes to the whole result.
    """
    left = list(names)
    while left:
        before = len(left)
        for name in tuple(left):
            with claim(name) as mine:
                if mine:
                    yield name
                    left.remove(name)
        if len(left) == before:
            log.info("waiting: other workers have %s", ", ".join(left))
            time.sleep(look_every_s)


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Hold the lock if no other process has it; say whether. A killed process holds nothing."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _opened(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def in_turn(lock: Path, message: str) -> Iterator[None]:
    """Hold the lock; logs this message when it has to wait."""
    with _held(lock, fcntl.LOCK_EX, message):
        yield


@contextmanager
def _held(
    lock: Path,
    kind: int,
    message: str = "waiting: another process measures, trains or evaluates on this host",
) -> Iterator[None]:
    with _opened(lock) as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s", message)
            fcntl.flock(file, kind)
        yield


@contextmanager
def _opened(lock: Path) -> Iterator[int]:
    """Open the lock file; the system releases the lock when the process ends."""
    try:
        file = os.open(
            lock, os.O_RDONLY
        )  # a file of another user works too: a lock needs no write permission
    except FileNotFoundError:
        file = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        yield file
    finally:
        os.close(file)
