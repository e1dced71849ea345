"""A fresh gateway with its own Triton, on free ports, for the length of a measurement."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import BertierError
from gateway.triton_server.guard import end_with_parent

READY_TIMEOUT_S = 280.0  # most of it for measuring latencies, on a host that is full
STOP_TIMEOUT_S = 30.0
POLL_S = 0.1
SERVE = ("gateway.cli.main", "serve")


class StackError(BertierError):
    """The system to measure did not come up; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Where a running system listens."""

    http_url: str
    grpc_target: str
    triton_grpc: str
    triton_metrics_url: str
    pid: int
    log: Path

    def readiness(self) -> dict[str, Any]:
        """Return what /readyz says, ready or not."""
        try:
            with urllib.request.urlopen(f"{self.http_url}/readyz", timeout=5) as reply:
                found: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as exc:
            found = json.load(exc)
        return found


@contextmanager
def fresh_stack(
    repository: Path,
    *flags: str,
    program: Sequence[str] = SERVE,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """Start `bertier serve` on free ports, wait until it can answer, and stop it at the end.

    `program`: another that takes its flags; `variables`: settings without a flag. Raises: StackError.
    """
    http, grpc, triton_grpc, triton_metrics = free_ports(4)
    command = [
        *(sys.executable, "-m", *program),
        *("--model-repository", str(repository)),
        *("--http-port", str(http), "--grpc-port", str(grpc)),
        *("--triton-grpc-port", str(triton_grpc), "--triton-metrics-port", str(triton_metrics)),
        *flags,
    ]
    with tempfile.TemporaryDirectory(prefix="bertier-") as folder:
        log = Path(folder) / "gateway.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(variables or {})},
                preexec_fn=end_with_parent,  # noqa: PLW1509 - a killed measurement leaves no stack
            )
        stack = Stack(
            http_url=f"http://127.0.0.1:{http}",
            grpc_target=f"127.0.0.1:{grpc}",
            triton_grpc=f"127.0.0.1:{triton_grpc}",
            triton_metrics_url=f"http://127.0.0.1:{triton_metrics}/metrics",
            pid=process.pid,
            log=log,
        )
        try:
            wait_ready(stack, process)
            yield stack
        finally:
            stop(process)


def wait_ready(stack: Stack, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if _is_ready(stack):
            return
        time.sleep(POLL_S)
    said = stack.log.read_text(errors="replace")[-2000:]
    raise StackError(f"the gateway did not get ready; the end of its log:\n{said}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on; held together, so that they differ."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _is_ready(stack: Stack) -> bool:
    try:
        with urllib.request.urlopen(f"{stack.http_url}/readyz", timeout=2):
            return True
    except OSError:
        return False


def hardware() -> str:
    """Return the host in a few words, for the head of a table."""
    from gateway.catalog.host import describe

    here = describe("")
    return f"{os.cpu_count()} cores of {here.cpu} ({here.flags})"
