"""The supervisor, the guard and the installation, with the real Triton."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gateway.backends.retry import backoff_ms
from gateway.errors import BackendUnavailable, RepositoryError
from gateway.triton_server import guard
from gateway.triton_server.installation import TritonInstallation
from gateway.triton_server.process import TritonOptions, parse_log_line
from gateway.triton_server.supervisor import (
    FIRST_BACKOFF_MS,
    LONGEST_BACKOFF_MS,
    Supervisor,
    check_ports,
    check_shared_memory,
)
from tests import local_triton, tiny
from tests.fakes import ROOT
from tests.local_triton import START_TIMEOUT_MS, wait_until

PATIENCE_S = START_TIMEOUT_MS / 1e3


@pytest.fixture
def options(tmp_path: Path) -> TritonOptions:
    tiny.write_model(tmp_path, local_triton.FAST)
    return local_triton.options(tmp_path)


@pytest.fixture
async def supervisor(options: TritonOptions) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(local_triton.installation(), options)
    await supervisor.start(START_TIMEOUT_MS)
    yield supervisor
    await supervisor.stop()


async def start_as_a_child(options: TritonOptions) -> tuple[asyncio.subprocess.Process, list[int]]:
    """Return a process that supervises a Triton, and the pids of everything under it."""
    ports = [str(port) for port in options.ports().values()]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.local_triton", str(options.model_repository), *ports),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout
    triton_pid = int(await child.stdout.readline())
    assert local_triton.is_running(triton_pid)
    return child, local_triton.family(child.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
async def test_nothing_is_left_when_the_gateway_is_killed(
    options: TritonOptions, number: signal.Signals
) -> None:
    """Each model instance is a process of its own, and none may outlive its gateway."""
    child, pids = await start_as_a_child(options)
    name = local_triton.run_name(pids[2])
    assert len(pids) >= 4, "gateway, guard, Triton and one stub"
    child.send_signal(number)
    await child.wait()
    await wait_until(lambda: not any(map(local_triton.is_running, pids)), PATIENCE_S)
    await wait_until(lambda: not local_triton.leftovers(name), PATIENCE_S)


async def test_nothing_is_left_when_the_guard_is_killed_too(options: TritonOptions) -> None:
    """The out-of-memory killer asks nobody."""
    child, pids = await start_as_a_child(options)
    name = local_triton.run_name(pids[2])
    for pid in pids[:2]:
        os.kill(pid, signal.SIGKILL)
    await child.wait()
    await wait_until(lambda: not any(map(local_triton.is_running, pids)), PATIENCE_S)
    guard.sweep()
    assert not local_triton.leftovers(name)


async def test_triton_comes_back_after_a_kill(
    supervisor: Supervisor, options: TritonOptions
) -> None:
    """On-call people should not be woken for what a restart cures."""
    first = supervisor.pid
    assert first
    pids, name = local_triton.family(first), local_triton.run_name(first)
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: supervisor.restarts == 1, PATIENCE_S)
    assert supervisor.pid not in (None, first)
    assert not any(map(local_triton.is_running, pids))
    assert not local_triton.leftovers(name)


async def test_stop_leaves_nothing(options: TritonOptions) -> None:
    """The next start must find free ports and empty shared memory."""
    supervisor = Supervisor(local_triton.installation(), options)
    await supervisor.start(START_TIMEOUT_MS)
    running = supervisor.pid
    assert running
    pids, name = local_triton.family(running), local_triton.run_name(running)
    await supervisor.stop()
    assert supervisor.pid is None
    assert not any(map(local_triton.is_running, pids))
    assert not local_triton.leftovers(name)
    check_ports(options)


async def test_a_lost_model_process_does_not_hold_up_a_stop(
    options: TritonOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton would wait for it until its own limit, with nothing in flight."""
    supervisor = Supervisor(local_triton.installation(), options)
    await supervisor.start(START_TIMEOUT_MS)
    await wait_until(lambda: supervisor.models.of(local_triton.FAST))
    for pid in supervisor.models.of(local_triton.FAST):
        os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: not supervisor.models.of(local_triton.FAST))
    with caplog.at_level(logging.INFO):
        await supervisor.stop()
    assert "All models are stopped" in caplog.text
    assert "Exit timeout expired" not in caplog.text


async def test_a_condemned_triton_is_started_anew(supervisor: Supervisor) -> None:
    """Whoever finds that it cannot be healed says so."""
    first = supervisor.pid
    supervisor.restart("cannot load a model again")
    await wait_until(lambda: supervisor.restarts == 1, PATIENCE_S)
    assert supervisor.pid not in (None, first)


def listening(supervisor: Supervisor) -> set[int]:
    """Return the TCP ports that its Triton listens on."""
    assert supervisor.pid
    return {
        c.laddr.port
        for c in psutil.Process(supervisor.pid).net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }


async def test_triton_listens_to_http_only_where_it_is_asked_to(options: TritonOptions) -> None:
    """The gateway needs gRPC alone, and a port less is a way in less."""
    (port,) = local_triton.free_ports(1)
    for http_port in (None, port):
        supervisor = Supervisor(local_triton.installation(), replace(options, http_port=http_port))
        await supervisor.start(START_TIMEOUT_MS)
        asked_for = {options.grpc_port, options.metrics_port, http_port} - {None}
        # Triton is ready as soon as gRPC answers; the port of the metrics is the last to be opened.
        await wait_until(lambda: listening(supervisor) >= asked_for)  # noqa: B023 - awaited here
        assert listening(supervisor) == asked_for
        await supervisor.stop()


def test_shared_memory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A container with a read-only file system has no other word of it."""
    with pytest.raises(BackendUnavailable, match=r"shm cannot be written \(.+\).*--shm-size"):
        check_shared_memory(tmp_path / "shm")


async def test_a_port_in_use_is_named_with_its_flag(options: TritonOptions) -> None:
    """The message is all the reader has."""
    with socket.create_server(("127.0.0.1", options.grpc_port)):
        supervisor = Supervisor(local_triton.installation(), options)
        with pytest.raises(
            BackendUnavailable, match=rf"port {options.grpc_port} .*--triton-grpc-port"
        ):
            await supervisor.start()


async def test_an_absent_repository_is_named(options: TritonOptions) -> None:
    """Triton itself would start without one, and never be ready."""
    absent = replace(options, model_repository=options.model_repository / "absent")
    supervisor = Supervisor(local_triton.installation(), absent)
    with pytest.raises(RepositoryError, match="absent: no such folder"):
        await supervisor.start()


async def test_a_triton_that_cannot_start_says_why(options: TritonOptions) -> None:
    """Whoever starts it should not have to look for another log."""
    failing = stand_in(options, """echo 'E1121 09:45:44.1 6 a.cc:1] "no such thing"' >&2; exit 3""")
    supervisor = Supervisor(failing, options)
    with pytest.raises(BackendUnavailable, match=r"ended with code 3 .*no such thing"):
        await supervisor.start(START_TIMEOUT_MS)
    assert not supervisor.pid


async def test_a_triton_that_is_never_ready_is_given_up(options: TritonOptions) -> None:
    """A start that hangs must end, with all it has begun."""
    supervisor = Supervisor(stand_in(options, "exec sleep 600"), options)
    with pytest.raises(BackendUnavailable, match="not ready after"):
        await supervisor.start(ready_timeout_ms=1_000)
    assert not supervisor.pid


def stand_in(options: TritonOptions, script: str) -> TritonInstallation:
    """Return an installation whose tritonserver is a shell script."""
    path = options.model_repository / "tritonserver"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return TritonInstallation(path, engine="", backends=options.model_repository)


def test_the_wait_between_starts_doubles_up_to_a_limit() -> None:
    """A Triton that dies at once must not take the machine with it."""
    limits = FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS
    assert [backoff_ms(n, *limits) for n in (0, 1, 2)] == [500, 1_000, 2_000]
    assert backoff_ms(10_000, *limits) == LONGEST_BACKOFF_MS


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        (
            'E1121 09:45:44.681496 6107 backend_model.cc:692] "no such model"',
            logging.ERROR,
            "no such model (backend_model.cc:692)",
        ),
        (
            'W1121 09:45:44.681496 6107 server.cc:1] "careful"',
            logging.WARNING,
            "careful (server.cc:1)",
        ),
        (
            'E1121 09:45:18.768143 5915 server.cc:241] "CudaDriverHelper has not been initialized."',
            logging.DEBUG,
            '"CudaDriverHelper has not been initialized."',
        ),
        ("| fast | 1 | READY |", logging.DEBUG, "| fast | 1 | READY |"),
        ("printed by a model", logging.INFO, "printed by a model"),
    ],
)
def test_log_lines_keep_their_level(line: str, level: int, message: str) -> None:
    """An error of Triton's must look like one in our log."""
    assert parse_log_line(line) == (level, message)
