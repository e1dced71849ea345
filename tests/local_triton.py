"""The real Triton for tests: free ports, a repository of tiny models, processes and their files.

`python -m tests.local_triton REPOSITORY GRPC_PORT METRICS_PORT` is a gateway as far as its Triton is concerned: it
starts one, prints its pid, and waits to be killed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from gateway.triton_server import guard
from gateway.triton_server.installation import TritonInstallation, find_installation
from gateway.triton_server.process import TritonOptions
from gateway.triton_server.supervisor import Supervisor
from tests import tiny

FAST, SINGLE, SLOW, SLOW_SINGLE = "fast", "single", "slow", "slow-single"
COUNTED = "counted"  # as slow as SLOW, for the one test that counts all that a model is asked
WRONG_HASH, CORRUPT = "wrong-hash", "corrupt"
SLOW_ROUNDS = 4_000
START_TIMEOUT_MS = 280_000.0  # the machine of the tests may be busy with training


def installation() -> TritonInstallation:
    """Return the Triton of this environment; without one the tests fail, loudly."""
    found = find_installation()
    assert found, "no Triton here: pip install --no-deps nvidia-pytriton==0.7.0"
    return found


def free_ports(count: int = 3) -> list[int]:
    """Return ports that nothing listens on; held together, so that they differ."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def write_repository(folder: Path) -> dict[str, str]:
    """Write models that can be served and two that cannot; return the sha256 of each good one."""
    hashes = {
        FAST: tiny.write_model(folder, FAST),
        SINGLE: tiny.write_model(folder, SINGLE, max_batch_size=1),
        SLOW: tiny.write_model(folder, SLOW, slow_rounds=SLOW_ROUNDS),
        COUNTED: tiny.write_model(folder, COUNTED, slow_rounds=SLOW_ROUNDS),
        SLOW_SINGLE: tiny.write_model(
            folder, SLOW_SINGLE, max_batch_size=1, slow_rounds=SLOW_ROUNDS
        ),
    }
    tiny.write_model(folder, WRONG_HASH, sha256="0" * 64)
    tiny.write_corrupt_model(folder, CORRUPT)
    return hashes


def options(repository: Path) -> TritonOptions:
    grpc_port, metrics_port = free_ports(2)
    return TritonOptions(repository, grpc_port=grpc_port, metrics_port=metrics_port)


async def wait_until(
    predicate: Callable[[], object], timeout_s: float = 60.0, interval_s: float = 0.02
) -> None:
    """Return when the predicate holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s: {predicate}"
        await asyncio.sleep(interval_s)


def is_running(pid: int) -> bool:
    """Is it a process that could still do something? A zombie could not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid: int) -> list[int]:
    """Return the process and all its descendants."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def leftovers(name: str) -> list[Path]:
    """Return the files of a run of Triton, by the name its guard gave it."""
    work = guard.work_directory(name)
    return [*guard.SHARED_MEMORY.glob(f"{name}*"), *([work] if work.exists() else [])]


def run_name(triton_pid: int) -> str:
    """Return the name a Triton runs under, as its command line says."""
    command = " ".join(psutil.Process(triton_pid).cmdline())
    found = re.search(r"shm-region-prefix-name=(\S+)-", command)
    assert found, command
    return found[1]


def counter(metrics_port: int, metric: str, model: str) -> int:
    """Return one of Triton's own counters."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as reply:
        text = reply.read().decode()
    found = re.search(rf'^{metric}{{model="{model}",version="1"}} (\d+)', text, re.MULTILINE)
    assert found, text
    return int(found[1])


async def _serve(repository: Path, ports: list[int]) -> None:
    grpc_port, metrics_port = ports
    options = TritonOptions(repository, grpc_port=grpc_port, metrics_port=metrics_port)
    supervisor = Supervisor(installation(), options)
    await supervisor.start(START_TIMEOUT_MS)
    print(supervisor.pid, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
