"""`bertier-loadtest`: measures a fresh gateway with its own Triton; every number of the README."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.errors import BertierError
from loadtest.cost import auth, observing, overhead
from loadtest.cost.overhead import Overhead
from loadtest.drive import command as drive
from loadtest.emulator import command as emulator_command
from loadtest.emulator import rivals_command
from loadtest.faults import command as scale_out
from loadtest.faults import overload, soak_command
from loadtest.fleet import command as fleet_command
from loadtest.lab import commands as lab
from loadtest.locust import command as locust_command
from loadtest.peers import closed_command
from loadtest.peers import command as peers
from loadtest.quality import (
    agreement,
    coverage_command,
    drift_command,
    feedback_command,
    rollout_command,
    slo_table,
)
from loadtest.quality.agreement import Comparison
from loadtest.sample import questions
from loadtest.stack import fresh_stack, hardware

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement; return 0 if it ran and its objectives are met, else 1."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    run: Callable[[argparse.Namespace], tuple[bool, Result]] = args.run
    try:
        good, result = run(args)
    except BertierError as exc:
        print(f"bertier-loadtest: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(result, sort_keys=True))
    return 0 if good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bertier-loadtest", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, n_questions, text in (
        (
            "agreement",
            _agreement,
            200,
            "compare the answers over HTTP, gRPC and OIP with the offline evaluation",
        ),
        (
            "invariance",
            _invariance,
            1000,
            "compare answers at concurrency 1 and 16 with the offline evaluation",
        ),
        ("overhead", _overhead, 200, "measure what the gateway adds to a direct call of Triton"),
        ("slo-table", _slo_table, 0, "show which plan answers which SLO"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--data", help="SQuAD-format file; default: the shipped sample")
        command.add_argument(
            "--questions", type=int, default=n_questions, help="number of questions"
        )
        command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
        command.add_argument("--rate", type=float, default=50.0, help="requests/s (overhead)")
        command.add_argument(
            "--seconds", type=float, default=90.0, help="duration in all (overhead)"
        )
        command.set_defaults(run=run)
    drive.register(commands)
    closed_command.register(commands)
    locust_command.register(commands)
    emulator_command.register(commands)
    rivals_command.register(commands)
    peers.register(commands)
    coverage_command.register(commands)
    observing.register(commands)
    drift_command.register(commands)
    feedback_command.register(commands)
    rollout_command.register(commands)
    lab.register(commands)
    overload.register(commands)
    soak_command.register(commands)
    auth.register(commands)
    scale_out.register(commands)
    fleet_command.register(commands)
    return parser


def _agreement(args: argparse.Namespace) -> tuple[bool, Result]:
    examples = questions(args.data, args.questions)
    with fresh_stack(args.model_repository) as stack:
        found = asyncio.run(agreement.agreement(stack, args.model_repository, examples))
    return _show_comparisons(found)


def _invariance(args: argparse.Namespace) -> tuple[bool, Result]:
    examples = questions(args.data, args.questions)
    with fresh_stack(args.model_repository) as stack:
        found = asyncio.run(agreement.invariance(stack, args.model_repository, examples))
    return _show_comparisons(found)


def _show_comparisons(found: list[Comparison]) -> tuple[bool, Result]:
    table = Table("variant", "client", "questions", "different from offline evaluation")
    for c in found:
        table.add_row(c.variant, c.way, str(c.questions), str(c.different))
    Console().print(table)
    for c in found:
        if c.different:
            print(f"first difference of {c.variant}, {c.way}: {c.first_difference}")
    result = {
        "different": sum(c.different for c in found),
        "questions": sum(c.questions for c in found),
    }
    return result["different"] == 0, result


def _overhead(args: argparse.Namespace) -> tuple[bool, Result]:
    examples = questions(args.data, args.questions)
    with fresh_stack(args.model_repository) as stack:
        found = asyncio.run(
            overhead.measure(stack, args.model_repository, examples, args.rate, args.seconds)
        )
    return True, _show_overhead(found)


def _show_overhead(found: Overhead) -> Result:
    print(f"{found.variant} at {found.rate:g} requests/s on {hardware()}")
    table = Table("client", "n", "p50 ms", "p99 ms", "added p50", "added p99", "gateway CPU ms")
    result: Result = {"variant": found.variant, "parts_ms": found.parts_ms}
    ways = {"Triton directly": found.direct, "HTTP": found.http, "gRPC": found.grpc}
    for way, sample in ways.items():
        p50, p99 = sample.quantile(0.5), sample.quantile(0.99)
        added50, added99 = p50 - found.direct.quantile(0.5), p99 - found.direct.quantile(0.99)
        cpu = sample.cpu_per_request_ms
        numbers = (p50, p99, added50, added99, cpu)
        table.add_row(way, str(len(sample.latencies_ms)), *(f"{x:.2f}" for x in numbers))
        result[way] = {"added_p50_ms": added50, "added_p99_ms": added99, "cpu_ms": cpu}
    Console().print(table)
    parts = found.parts_ms | {
        "protocol and client": found.http.quantile(0.5) - found.parts_ms["total"]
    }
    parts_text = ", ".join(f"{name} {ms:.2f}" for name, ms in parts.items())
    print(f"HTTP, p50 ms of each part: {parts_text}")
    return result


def _slo_table(args: argparse.Namespace) -> tuple[bool, Result]:
    catalog = store.read_questions(args.model_repository)
    with fresh_stack(args.model_repository) as stack:
        rows = [slo_table.ask(stack, slo) for slo in slo_table.slos(catalog)]
    table = Table("SLO", "status", "plan", "variant", "F1 >=", "predicted ms", "SLO-Met", "answer")
    for row in rows:
        slo = ", ".join(f"{k}: {v}" for k, v in row.headers.items()) or "(none)"
        table.add_row(
            slo,
            str(row.status),
            row.plan,
            row.variant,
            row.certified_f1,
            row.predicted_ms,
            row.met,
            row.answer,
        )
    Console(width=160).print(table)
    return True, {"rows": [asdict(row) for row in rows]}


if __name__ == "__main__":
    sys.exit(main())
