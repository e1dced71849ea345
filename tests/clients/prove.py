"""Starts a gateway, has every client ask it, prints what each got, and fails if one fails."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from loadtest.stack import Stack, fresh_stack

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
CLIENTS = (
    *("triton_http", "triton_grpc", "kserve_clients", "huggingface"),
    *("openapi_python", "typescript", "grpc_limits"),
)
TIMEOUT_S = 300.0


def ask(python: Path, client: str, stack: Stack) -> bool:
    """Run one client; return whether it worked."""
    began = time.monotonic()
    print(f"\n== {client}", flush=True)
    command = [
        str(python),
        "-W",
        "ignore",
        "-m",
        f"tests.clients.{client}",
        stack.http_url,
        stack.grpc_target,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    said = done.stdout.replace(stack.http_url, "http://gateway").strip()
    print(said)
    word = "ok" if done.returncode == 0 else f"FAILED ({done.returncode})"
    print(f"-- {client}: {word}, {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of the clients' environment")
    parser.add_argument("--only", choices=CLIENTS, action="append", help="some of them")
    given = parser.parse_args()
    with fresh_stack(REPOSITORY, "--backend", "embedded") as stack:
        failed = [
            client for client in given.only or CLIENTS if not ask(given.python, client, stack)
        ]
    print(f"\nfailed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
