"""`bertier-loadtest peers`: our gateway, Triton alone, and other servers with the same model, in turns."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.host import usable_cores
from gateway.catalog.store import Catalog
from loadtest.drive.open_loop import Run
from loadtest.drive.schedule import Schedule
from loadtest.lab import mixes
from loadtest.peers import contest, targets
from loadtest.peers.contest import Block, Ledger, Row, Terms
from loadtest.peers.targets import PEERS, Target
from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack, hardware
from optimizer.data.question_sets import Example
from optimizer.study import provenance

Result = dict[str, Any]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "compare with other servers: the highest rate within a p99 bound, and latency at equal rates"
    command = commands.add_parser("peers", help=text, description=text)
    add = command.add_argument
    add(
        "--python",
        default=sys.executable,
        help="Python with the peers installed (make prove-peers)",
    )
    add("--peers", nargs="*", help=f"of {', '.join(p.name for p in PEERS)}; default: all")
    add(
        "--variants", nargs="*", help="variants of ours and of Triton alone; default: all published"
    )
    add("--bound-ms", type=float, default=100.0, help="bound on p99")
    add("--seconds", type=float, default=10.0, help="seconds of a block")
    add("--equal-rates", nargs="*", type=float, default=[20.0, 40.0], help="requests/s")
    add("--rounds", type=int, default=3, help="rounds of blocks at equal rates")
    add("--questions", type=int, help="of the shipped sample; default: all")
    add("--model-repository", type=Path, default=Path("model_repository"))
    add(
        "--folder",
        type=Path,
        default=Path("runs/peers"),
        help="folder of the blocks; a rerun resumes there",
    )
    command.set_defaults(run=_peers)


def _peers(args: argparse.Namespace) -> tuple[bool, Result]:
    catalog, examples = store.read_questions(args.model_repository), questions(None, args.questions)
    names = _among(args.variants, [v.name for v in catalog.variants])
    dearest = mixes.dearest(catalog).name
    chosen = _among(args.peers, [p.name for p in PEERS])
    with ExitStack() as running:
        stack = running.enter_context(fresh_stack(args.model_repository))
        found = targets.of_stack(stack, catalog, names)
        for peer in (p for p in PEERS if p.name in chosen):
            _say(f"starting {peer.name}")
            started = targets.running(
                peer, args.python, usable_cores(), args.model_repository, dearest
            )
            found.append(running.enter_context(started))
        terms = Terms(
            args.bound_ms,
            args.seconds,
            tuple(args.equal_rates),
            args.rounds,
            tuple(t.name for t in found),
        )
        ledger = Ledger(args.folder, terms)
        asking = _Asking(args.model_repository, catalog, stack, found, examples, terms)
        contest.play(terms, ledger, asking.measure, _say)
    rows = contest.rows(terms, ledger)
    _show(terms, rows, dearest)
    return True, {"rows": contest.as_json(rows), "host": hardware(), "commit": provenance.commit()}


def _among(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the names, all by default. Raises: PeerError."""
    for name in names or ():
        if name not in known:
            raise targets.PeerError(f"{name}: not one of {', '.join(known)}")
    return list(known if names is None else names)


class _Asking:
    """Runs one block against one target."""

    def __init__(
        self,
        repository: Path,
        catalog: Catalog,
        stack: Stack,
        found: Sequence[Target],
        examples: Sequence[Example],
        terms: Terms,
    ) -> None:
        self._repository, self._catalog, self._stack = repository, catalog, stack
        self._targets = {t.name: t for t in found}
        self._examples, self._terms = examples, terms

    def measure(self, name: str, phase: str, rate: float, seed: int) -> Block:
        target = self._targets[name]
        planned = contest.requests(self._examples, rate, self._terms, target.floor, seed)
        return contest.block_of(name, phase, rate, asyncio.run(self._run(target, planned)))

    async def _run(self, target: Target, planned: Schedule) -> Run:
        load_client = target.load_client(self._repository, self._catalog, self._stack)
        try:
            return await contest.ask(load_client, planned)
        finally:
            await load_client.close()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(terms: Terms, rows: Sequence[Row], dearest: str) -> None:
    heads = [f"{what} at {rate:g}/s" for rate in terms.equal_rates for what in ("p50", "p99", "F1")]
    table = Table("server", f"requests/s, p99 <= {terms.bound_ms:g} ms", "F1 there", *heads)
    for row in rows:
        cells = [_cell(v, 1 if i < 2 else 3) for r in row.equal.values() for i, v in enumerate(r)]
        table.add_row(row.target, f"{row.rate:.1f}", _cell(row.f1_at_rate, 3), *cells)
    Console(width=150).print(table)
    print(f"peers serve {dearest}; ms from when a request was due; {hardware()}")


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
