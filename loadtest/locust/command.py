"""`bertier-loadtest locust`: loadtest/locust/locustfile.py without its web UI, against a fresh gateway."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gateway.errors import BertierError
from gateway.triton_server.guard import end_with_parent
from loadtest.locust import swarm
from loadtest.stack import fresh_stack, hardware

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
Result = dict[str, Any]


class LocustError(BertierError):
    """Locust is missing, or ended without a word on the run."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "Locust users over HTTP and gRPC, against a fresh gateway or one that runs"
    command = commands.add_parser("locust", help=text, description=text)
    add = command.add_argument
    add("--url", help="http://HOST:PORT of a gateway; default: a fresh one with Triton")
    add("--grpc-target", default="", help="its HOST:PORT for gRPC; empty: HTTP alone (with --url)")
    add("--users", type=int, default=20, help="at most; each asks --rate-per-user a second")
    add("--rate-per-user", type=float, default=1.0, help="questions a second")
    add("--seconds", type=int, default=120)
    add("--shape", choices=swarm.SHAPES, default="steady")
    add("--arrivals", choices=("open", "constant"), default="open")
    add("--slo-weights", default="interactive=2,standard=3,batch=1")
    add("--min-attainment", type=float, default=0.0, help="joint; below it the exit code is 1")
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--html", type=Path, help="Locust's own report")
    command.set_defaults(run=_locust)


def _locust(args: argparse.Namespace) -> tuple[bool, Result]:
    if find_spec("locust") is None:
        raise LocustError("Locust is not installed: pip install 'bertier[loadtest]'")
    swarm.weights(args.slo_weights)
    with _target(args) as (url, grpc_target):
        done = subprocess.run(
            _command_line(args, url, grpc_target),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=end_with_parent,
        )
    *table, last = done.stdout.rstrip().splitlines() or [""]
    print("\n".join(table))
    print(f"on {hardware()}")
    try:
        result: Result = json.loads(last)
    except ValueError as exc:
        raise LocustError(f"Locust ended with {done.returncode} and said no result") from exc
    return done.returncode == 0, result


def _command_line(args: argparse.Namespace, url: str, grpc_target: str) -> list[str]:
    html = ["--html", str(args.html)] if args.html else []
    return [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
        *("--host", url, "--grpc-target", grpc_target),
        *("--users", str(args.users), "--spawn-rate", str(args.users)),
        *("--run-time", f"{args.seconds}s", "--stop-timeout", "10"),
        *("--rate-per-user", str(args.rate_per_user), "--shape", args.shape),
        *("--arrivals", args.arrivals, "--slo-weights", args.slo_weights),
        *("--min-attainment", str(args.min_attainment)),
        *html,
    ]


@contextmanager
def _target(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    if args.url is not None:
        yield args.url, args.grpc_target
        return
    with fresh_stack(args.model_repository) as stack:
        yield stack.http_url, stack.grpc_target
