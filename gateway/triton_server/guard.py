"""The guard: a process between gateway and Triton that leaves nothing behind, however either ends.

    python guard.py NAME COMMAND...

It starts COMMAND in a process group of its own and prints its pid. It ends when COMMAND ends, when
standard input closes (the gateway is gone: kill -9 closes it too), or on SIGTERM; then it sends COMMAND a
SIGTERM, waits for its end at most GRACE_S or until a second SIGTERM, kills the whole group, and removes
NAME's working folder and shared memory. It exits with the code of COMMAND (128 + n after signal n). Standard library only: it is started by its path, without site-packages,
so that it is there in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_SUFFIX = ".lock"
PREFIX = "bertier-"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
NICENESS = 5  # of Triton: on full cores the gateway's one thread weighs three of its processes
GRACE_S = 12.0  # more than Triton's own --exit-timeout-secs

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    name, *command = arguments
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # stubs that outlive Triton become ours to reap
    with _locked(name), _signals() as wakeup:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            process_group=0,
            preexec_fn=_start_as_ours,  # noqa: PLW1509 - no threads here
        )
        try:
            print(child.pid, flush=True)
            _wait_for_an_end(child.pid, wakeup)
        finally:
            code = _end(child.pid, wakeup)
            clean(name)
    return code


def new_name() -> str:
    """Return a name for one run of Triton; its files in shared memory begin with it."""
    return f"{PREFIX}{secrets.token_hex(6)}"


def work_directory(name: str) -> Path:
    """Return the folder for the files of one run; it must allow programs (not `noexec`)."""
    return Path(tempfile.gettempdir()) / name


def clean(name: str) -> None:
    """Remove every file of a run that has ended."""
    shutil.rmtree(work_directory(name), ignore_errors=True)
    for path in SHARED_MEMORY.glob(f"{name}*"):
        path.unlink(missing_ok=True)


def sweep() -> None:
    """Clean up after guards that were themselves killed: their locks are free."""
    for path in SHARED_MEMORY.glob(f"{PREFIX}*{LOCK_SUFFIX}"):
        with contextlib.suppress(OSError), path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clean(path.name.removesuffix(LOCK_SUFFIX))


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    with (SHARED_MEMORY / f"{name}{LOCK_SUFFIX}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Yield a descriptor that is readable once SIGTERM or SIGCHLD has come."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to handle
    yield reading


def _wait_for_an_end(pid: int, wakeup: int) -> None:
    """Return when the child has ended, or should."""
    while not _has_ended(pid):
        ready, _, _ = select.select([wakeup, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        if signal.SIGTERM in os.read(wakeup, 64):
            return


def _has_ended(pid: int) -> bool:
    # WNOWAIT: unreaped, the pid cannot be another's, and its group can be killed safely.
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, pid, options) is not None


def _end(pid: int, wakeup: int) -> int:
    """End the child, politely until the second signal, then its whole group; return its exit code."""
    if not _has_ended(pid):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while not _has_ended(pid) and (left_s := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([wakeup], [], [], left_s)
        if ready and signal.SIGTERM in os.read(wakeup, 64):
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _start_as_ours() -> None:
    """Kill Triton when even this guard is killed (the stubs watch Triton themselves); run it behind us.

    Every request needs the gateway's thread first: starved by models at work, it could refuse nobody.
    """
    end_with_parent(signal.SIGKILL)
    os.nice(NICENESS)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when the thread that started it ends."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
