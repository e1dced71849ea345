"""A worker that cannot start, as a real process."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gateway.settings import Settings
from gateway.shared_memory import SharedMemory
from gateway.workers.child import Child, WorkerFailed
from gateway.workers.messages import Start


class Opened:
    def __init__(self) -> None:
        self.http = socket.create_server(("127.0.0.1", 0))
        self.ops: socket.socket | None = None


async def test_a_worker_that_cannot_start_ends_the_whole_with_its_message(tmp_path: Path) -> None:
    """Nobody should search the logs of processes for a wrong file."""
    missing = tmp_path / "none.pem"
    settings = Settings(
        workers=2, backend="embedded", grpc_port=0, tls_certificate=missing, tls_key=missing
    )
    opened, memory = Opened(), SharedMemory(2)
    child = Child(memory.slot(0), memory, opened, Start(settings, None, "", b""), {})
    with opened.http, pytest.raises(WorkerFailed, match=r"none\.pem"):
        await child.run()
    assert child.state == "absent"
