"""The program itself, with settings that cannot be: it says what and where, and serves nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.stack import free_ports
from tests.certificates import Authority

pytestmark = pytest.mark.end_to_end


def test_a_file_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    """The operator reads one line, and the supervisor sees an exit code."""
    authority = Authority()
    certificate, _ = authority.sign("gateway").write(tmp_path, "gateway")
    _, other = authority.sign("other").write(tmp_path, "other")
    http, grpc, metrics = free_ports(3)
    flags = {
        "--backend": "embedded",
        "--http-port": http,
        "--grpc-port": grpc,
        "--metrics-port": metrics,
        "--tls-certificate": certificate,
        "--tls-key": other,
    }
    arguments = [str(each) for pair in flags.items() for each in pair]
    command = [sys.executable, "-m", "gateway.cli.main", "serve", *arguments]
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.endswith(f"{other}: is not the key of {certificate}; name its own")
