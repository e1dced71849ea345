"""`bertier-loadtest drive`: requests on a schedule, to a gateway that runs or to a fresh one."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.errors import BertierError
from loadtest.drive import attainment, load_clients, open_loop, page, schedule
from loadtest.drive.attainment import Summary
from loadtest.drive.open_loop import MAX_LAG_MS, Run
from loadtest.drive.results import Folder
from loadtest.drive.schedule import Schedule
from loadtest.lab.arrivals import PROCESSES
from loadtest.lab.mixes import MIXES
from loadtest.sample import questions
from loadtest.stack import fresh_stack, hardware
from optimizer.data.question_sets import Example
from optimizer.study import provenance

Result = dict[str, Any]
SHOWN = (
    "in_time",
    "floor_met",
    "joint_feasible",
    "strict_met",
    "f1",
    "floor",
    "shed",
    "p50_ms",
    "p99_ms",
)


class NothingToDrive(BertierError):
    """Flags that make no run; the message says which."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "send requests with SLOs on a schedule (open loop); attainment, F1 and an HTML report"
    command = commands.add_parser("drive", help=text, description=text)
    add = command.add_argument
    add("--url", help="http://HOST:PORT or grpc://HOST:PORT; default: a fresh gateway with Triton")
    add("--grpc", action="store_true", help="use gRPC for the fresh gateway")
    add("--arrivals", choices=PROCESSES, default="poisson")
    add("--rate", type=float, help="mean requests/s; default: from --load")
    add(
        "--load",
        type=float,
        default=0.8,
        help="load as a share of the capacity of this host's cores",
    )
    add("--seconds", type=float, default=60.0)
    add("--mix", choices=MIXES, default="mixed", help="mix of SLOs")
    add(
        "--trace",
        type=Path,
        help="CSV trace (loadtest/lab/traces.py) instead of the four flags above",
    )
    add("--seed", type=int, default=1)
    add("--data", help="SQuAD-format file; default: the shipped sample")
    add("--questions", type=int, help="how many of them; default: all")
    add("--model-repository", type=Path, default=Path("model_repository"))
    add(
        "--folder",
        type=Path,
        default=Path("runs/drive"),
        help="folder of the results; its content is replaced",
    )
    add(
        "--min-attainment",
        type=float,
        default=0.0,
        help="exit with 1 below this joint attainment of feasible requests",
    )
    add(
        "--max-send-lag-ms",
        type=float,
        default=MAX_LAG_MS,
        help="limit on the p99 send lag of a valid run",
    )
    command.set_defaults(run=_drive)


def _drive(args: argparse.Namespace) -> tuple[bool, Result]:
    examples = questions(args.data, args.questions)
    planned = _schedule(args, examples)
    folder = Folder(args.folder)
    with _target(args) as url:
        run = asyncio.run(_play(url, planned, folder))
    summary, complaint = attainment.summarize(run), run.client.complaint(args.max_send_lag_ms)
    facts = _facts(args, run, planned)
    kept = summary.every.joint_feasible >= args.min_attainment
    result = summary.as_json() | {
        "valid": not complaint,
        "complaint": complaint,
        "min_attainment": args.min_attainment,
        "kept": kept,
        "facts": facts,
        "folder": str(folder.path),
    }
    folder.end(result, page.html(run, summary, facts, complaint))
    _show(summary, facts, complaint)
    print(f"report: {folder.path / 'report.html'}")
    return kept and not complaint, result


def _schedule(args: argparse.Namespace, examples: Sequence[Example]) -> Schedule:
    catalog = store.read_questions(args.model_repository)
    if not examples:
        raise NothingToDrive("--questions: no question is left; ask at least one")
    if args.trace is not None:
        return schedule.read(args.trace, examples, catalog.best_floor)
    rate = args.rate
    if rate is None:
        rate = args.load * schedule.capacity_per_s(args.model_repository, examples)
    if not (0 < rate < float("inf") and 0 < args.seconds < float("inf")):
        raise NothingToDrive("--rate, --load and --seconds must be above 0 and finite")
    mix = schedule.mix_of(catalog, args.mix)
    planned = schedule.make(args.arrivals, rate, args.seconds, mix, examples, args.seed)
    if not planned:
        raise NothingToDrive(
            f"no request falls into {args.seconds:g} s at {rate:.3g} a second; raise either"
        )
    return planned


@contextmanager
def _target(args: argparse.Namespace) -> Iterator[str]:
    if args.url is not None:
        yield args.url
        return
    with fresh_stack(args.model_repository) as stack:
        yield f"grpc://{stack.grpc_target}" if args.grpc else stack.http_url


async def _play(url: str, planned: Schedule, folder: Folder) -> Run:
    async with load_clients.of(url) as load_client:
        return await open_loop.play(planned, load_client, seen=folder.keep)


def _facts(args: argparse.Namespace, run: Run, planned: Schedule) -> dict[str, str]:
    found = schedule.facts(planned)
    source = str(args.trace) if args.trace else f"{args.arrivals}, mix {args.mix}, seed {args.seed}"
    client = run.client
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "gateway": f"{run.where} ({'given' if args.url else 'a fresh gateway with its own Triton'})",
        "requests": f"{found['requests']} in {found['seconds']:.1f} s, {found['rate_per_s']:.1f}/s",
        "schedule": source,
        "questions": args.data or "the shipped sample",
        "client": f"sent p99 {client.lag_p99_ms:.2f} ms late, {client.cpu_share:.0%} of a core",
        "host": hardware(),
        "commit": provenance.commit(),
    }


def _show(summary: Summary, facts: dict[str, str], complaint: str) -> None:
    for name, value in facts.items():
        print(f"{name}: {value}")
    columns = [(n, h, d) for n, h, d in page.COLUMNS if n in SHOWN]
    table = Table("class", "n", *(head for _, head, _ in columns))
    for name, found in [*summary.classes.items(), ("all", summary.every)]:
        cells = [page.shown(getattr(found, n), digits) for n, _, digits in columns]
        table.add_row(name, str(found.n), *cells)
    console = Console(width=130)
    console.print(table)
    plans = Table("plan", "answers")
    for plan, n in summary.plans.items():
        plans.add_row(plan, str(n))
    console.print(plans)
    for failure, n in list(summary.failures.items())[:5]:
        print(f"failed {n} times: {failure}")
    if complaint:
        print(f"NOT VALID: {complaint}")
