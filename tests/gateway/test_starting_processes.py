"""Processes that the gateway starts begin, whatever gRPC is doing meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STARTS = """
import asyncio, os, threading
from collections import Counter

import gateway.app
import grpc

def ask_for_ever(port):
    ask = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/no/such")
    while True:
        try:
            ask(b"", timeout=5)
        except grpc.RpcError:
            pass

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    for _ in range(4):
        threading.Thread(target=ask_for_ever, args=(port,), daemon=True).start()
    await asyncio.sleep(0.5)
    ends = Counter()
    for _ in range(100):
        process = await asyncio.create_subprocess_exec("true", start_new_session=True)
        ends[await process.wait()] += 1
    print(dict(ends), flush=True)
    os._exit(0)

with asyncio.Runner(loop_factory=gateway.app.new_loop) as runner:
    runner.run(main())
"""


def test_no_process_crashes_before_it_begins() -> None:
    """A lost worker is replaced while the parent talks to Triton over gRPC."""
    done = subprocess.run(
        [sys.executable, "-c", STARTS],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "{0: 100}"
