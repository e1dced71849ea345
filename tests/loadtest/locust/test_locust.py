"""Real Locust runs against a gateway: its own statistics hold attainment and F1; a broken run holds none."""

from __future__ import annotations

import asyncio
import json
import sys

from loadtest.stack import free_ports
from tests import live
from tests.loadtest.driving import mortal


async def locust(*flags: str) -> tuple[int, str, str]:
    """Return the exit code and what was said."""
    command = ("-m", "loadtest.cli", "locust", "--users", "6", "--rate-per-user", "3", *flags)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_both_protocols_are_asked_and_judged_by_class() -> None:
    """The statistics hold both protocols, violations, and F1; the exit code is the verdict."""
    async with live.gateway() as running:
        code, out, err = await locust(
            *("--url", f"http://{running.http_url}", "--grpc-target", running.grpc_url),
            *("--seconds", "3", "--slo-weights", "standard=1,batch=1", "--min-attainment", "0.9"),
        )
    result = json.loads(out.splitlines()[-1])
    for entry in ("POST     batch", "gRPC     batch", "F1 x 1000  batch", "floor x 1000  batch"):
        assert entry in out + err
    assert {c["n"] > 0 for c in result["classes"].values()} == {True}
    assert result["classes"]["batch"]["floor"] == 0.68
    # The model server of this gateway answers with a context's first word.
    assert (result["attained"], code) == (0.0, 1)
    assert "attainment 0.0000 is below 0.9" in err


async def test_a_run_against_nothing_says_where_and_reports_nothing() -> None:
    """A port where nobody listens is no slow gateway."""
    (port,) = free_ports(1)
    code, out, err = await locust("--url", f"http://127.0.0.1:{port}", "--seconds", "30")
    assert code == 1
    assert f"http://127.0.0.1:{port}/readyz: [Errno 111] Connection refused" in err
    assert json.loads(out.splitlines()[-1])["classes"] == {}


async def test_a_gateway_that_dies_ends_the_run_without_a_figure() -> None:
    """What was measured before it died is no measurement of it."""
    async with mortal(answers=5) as url:
        code, out, err = await locust("--url", url, "--seconds", "60")
    assert code == 1
    assert "Connection refused, in the middle of the run; the run ends here" in err
    assert json.loads(out.splitlines()[-1])["attained"] is None
    assert "POST" not in out + err.partition("the run ends here")[2]
