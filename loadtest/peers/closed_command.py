"""`bertier-loadtest closed`: callers in a closed loop, beside each variant pinned, rivals and other servers.

All get the same questions; repeats are interleaved, and medians are shown. With `--beside`, requests of class
`interactive` arrive at the same time at a fixed rate: what do the callers in the loop cost them?
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.host import usable_cores
from gateway.catalog.store import Catalog
from gateway.domain import Slo
from gateway.errors import BertierError
from loadtest.drive import closed_loop, load_clients, open_loop, schedule
from loadtest.drive.closed_loop import Loop
from loadtest.drive.load_clients import LoadClient
from loadtest.drive.open_loop import Run
from loadtest.drive.schedule import Request, Schedule
from loadtest.lab import mixes
from loadtest.lab.mixes import Kind
from loadtest.peers import targets
from loadtest.peers.targets import PEERS, PeerLoadClient
from loadtest.sample import questions
from loadtest.stack import fresh_stack, hardware
from optimizer.data.question_sets import Example

Result = dict[str, Any]
ROUTED = "routed"
CHARS = {"short": 0, "long": 3_000, "book": 100_000}  # of a context; 3,000 are some 700 tokens
RIVAL = ("loadtest.emulator.rival_gateway",)
BESIDE_SEED = 7
SHOWN: Sequence[tuple[str, str, int]] = (
    ("answered", "answered", 3),
    ("answered_per_s", "answered/s", 1),
    ("in_time", "in time", 3),
    ("f1", "F1", 3),
    ("met", "SLO-Met true", 3),
    ("p95_ms", "p95 ms", 0),
)
SHOWN_BESIDE: Sequence[tuple[str, str, int]] = (
    ("beside_in_time", "beside: in time", 3),
    ("beside_p95_ms", "p95 ms", 0),
)


class NothingToAsk(BertierError):
    """Flags that make no run; the message says which."""


@dataclass(frozen=True, slots=True)
class Place:
    """One cell of the table."""

    contexts: str
    callers: int
    way: str


@dataclass(frozen=True, slots=True)
class Way:
    """One way to get answers: where, with which SLO, and as what kind of server."""

    url: str
    slo: Slo
    peer: bool = False  # of another make: knows no SLO

    def client(self) -> LoadClient:
        """Return a client; made in the loop that uses it."""
        return PeerLoadClient(self.url) if self.peer else load_clients.of(self.url)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "measure with callers that send the next request after each answer (closed loop)"
    command = commands.add_parser("closed", help=text, description=text)
    add = command.add_argument
    add("--url", help="http://HOST:PORT or grpc://HOST:PORT; default: a fresh gateway with Triton")
    add(
        "--callers",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16, 32],
        help="in the loop; 0, with --beside, for the requests beside it alone",
    )
    add(
        "--contexts",
        nargs="+",
        choices=tuple(CHARS),
        default=["short", "long"],
        help="as they are, of 3,000 characters (some 700 tokens), of 100,000; default: short long",
    )
    add("--seconds", type=float, default=8.0, help="seconds of one run")
    add("--repeats", type=int, default=5, help="interleaved; the median is shown")
    add("--variants", nargs="*", help="variants to pin; default: all; no names: none")
    add(
        "--rivals",
        nargs="*",
        default=[],
        help="policies of the lab to compare with, each in its own gateway",
    )
    add(
        "--peers",
        nargs="*",
        help=f"other servers, each with one variant: {', '.join(p.name for p in PEERS)}; no names: all",
    )
    add("--peer-variant", help="the variant that the peers serve; default: the largest")
    add("--python", default=sys.executable, help="Python with the peers (make prove-peers)")
    add(
        "--beside",
        type=float,
        default=0.0,
        metavar="RATE",
        help="requests/s of class interactive with short contexts, at the same time",
    )
    add("--honour", action="store_true", help="callers wait for Retry-After when refused")
    add("--data", help="SQuAD-format file; default: the shipped sample")
    add("--questions", type=int, help="how many of them; default: all")
    add("--model-repository", type=Path, default=Path("model_repository"))
    add(
        "--folder",
        type=Path,
        default=Path("runs/closed"),
        help="folder of the rivals' inputs; default: runs/closed",
    )
    command.set_defaults(run=_closed)


def _closed(args: argparse.Namespace) -> tuple[bool, Result]:
    catalog = store.read_questions(args.model_repository)
    examples = questions(args.data, args.questions)
    _check(args, bool(examples))
    pinned = among("--variants", args.variants, [v.name for v in catalog.variants])
    texts = {name: lengthened(examples, CHARS[name]) for name in args.contexts}
    beside = _beside(catalog, args)
    found: dict[Place, list[Result]] = {}
    with ExitStack() as stacks:
        ways = _ways(args, catalog, pinned, stacks)
        for _ in range(args.repeats):
            for contexts, n in itertools.product(args.contexts, args.callers):
                for name, way in ways.items():
                    loop = Loop(n, args.seconds, args.honour)
                    requests = endless(texts[contexts], way.slo)
                    one = asyncio.run(_play(way, requests, loop, beside(examples)))
                    found.setdefault(Place(contexts, n, name), []).append(one)
    return True, _show(found, args)


def _check(args: argparse.Namespace, any_questions: bool) -> None:
    least = 0 if args.beside else 1  # 0: what the requests beside the loop get without it
    if not any_questions or min(args.callers) < least or args.seconds <= 0 or args.repeats < 1:
        raise NothingToAsk("give at least one question, caller, repeat and some --seconds")
    if not 0 <= args.beside < float("inf"):
        raise NothingToAsk(f"--beside: {args.beside:g} is not a rate; give requests/s, 0 for none")


def among(flag: str, given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the names, all by default. Raises: NothingToAsk."""
    if unknown := sorted(set(given or ()) - set(known)):
        raise NothingToAsk(f"{flag}: {unknown[0]} is none; there are {', '.join(known)}")
    return list(known if given is None else given)


def _beside(catalog: Catalog, args: argparse.Namespace) -> Callable[[Sequence[Example]], Schedule]:
    """Return what makes the requests that arrive beside the loop."""
    mix = (Kind(1.0, mixes.interactive(catalog)),)

    def make(examples: Sequence[Example]) -> Schedule:
        if not args.beside:
            return ()
        return schedule.make("poisson", args.beside, args.seconds, mix, examples, BESIDE_SEED)

    return make


def _ways(
    args: argparse.Namespace, catalog: Catalog, pinned: Sequence[str], stacks: ExitStack
) -> Mapping[str, Way]:
    """Return the ways to get answers by name; starts what they need."""
    known = [p.name for p in PEERS]
    peers = [] if args.peers is None else among("--peers", args.peers or None, known)
    names = [v.name for v in catalog.variants]
    served = among("--peer-variant", [args.peer_variant or mixes.dearest(catalog).name], names)[0]
    slo = mixes.standard(catalog)[0].slo
    url = args.url or stacks.enter_context(fresh_stack(args.model_repository)).http_url
    ways = {ROUTED: Way(url, slo)}
    ways |= {name: Way(url, replace(slo, variant=name)) for name in pinned}
    for rival in args.rivals:
        flags = ("--policy", rival, "--recorded", str(args.folder / "recorded"))
        stack = stacks.enter_context(fresh_stack(args.model_repository, *flags, program=RIVAL))
        ways[rival] = Way(stack.http_url, slo)
    for peer in (p for p in PEERS if p.name in peers):
        started = targets.running(peer, args.python, usable_cores(), args.model_repository, served)
        target = stacks.enter_context(started)
        ways[f"{peer.name}, {served}"] = Way(target.url, slo, peer=True)
    return ways


async def _play(way: Way, requests: Iterator[Request], loop: Loop, beside: Schedule) -> Result:
    looped, opened = way.client(), way.client()
    try:
        if not beside:
            return (await closed_loop.play(looped, requests, loop)).as_json()
        found, run = await asyncio.gather(
            closed_loop.play(looped, requests, loop), open_loop.play(beside, opened)
        )
    finally:
        await looped.close()
        await opened.close()
    return found.as_json() | of_beside(run)


def of_beside(run: Run) -> Result:
    """Return the share of the requests beside the loop that were in time, and their p95 in ms."""
    latencies = sorted(r.latency_ms for r in run.results)
    return {
        "beside_in_time": sum(r.in_time for r in run.results) / len(run.results),
        "beside_p95_ms": latencies[int(0.95 * (len(latencies) - 1))],
    }


def endless(examples: Sequence[Example], slo: Slo) -> Iterator[Request]:
    """Yield the questions endlessly, all with the same SLO."""
    for index, example in enumerate(itertools.cycle(examples)):
        yield Request(index, 0.0, slo, example)


def lengthened(examples: Sequence[Example], chars: int) -> list[Example]:
    """Return the questions with the contexts of those that follow after their own, to so many characters."""
    found = []
    for i, example in enumerate(examples):
        context, after = example.context, i
        while len(context) < chars and after - i < len(examples):
            after += 1
            other = examples[after % len(examples)].context
            if other not in context:
                context += "\n" + other
        found.append(
            replace(
                example,
                context=context[:chars] if len(example.context) < chars else context,
            )
        )
    return found


def medians(runs: Sequence[Result]) -> Result:
    """Return the median of each number over the repeats."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def _show(found: Mapping[Place, Sequence[Result]], args: argparse.Namespace) -> Result:
    refused = "waits for Retry-After" if args.honour else "comes back at once"
    print(
        f"{args.repeats} interleaved repeats of {args.seconds:g} s, medians; who is refused {refused}"
    )
    print(f"on {hardware()}")
    shown = [*SHOWN, *(SHOWN_BESIDE if args.beside else ())]
    if args.beside:
        print(f"beside: {args.beside:g} requests/s of class interactive, short contexts")
    table = Table("contexts", "callers", "answered by", *(head for _, head, _ in shown))
    rows = []
    for place, runs in found.items():
        row = medians(runs)
        numbers = [f"{row[name]:.{digits}f}" for name, _, digits in shown]
        table.add_row(place.contexts, str(place.callers), place.way, *numbers)
        rows.append({"contexts": place.contexts, "callers": place.callers, "by": place.way, **row})
    Console(width=140).print(table)
    return {"honour": args.honour, "repeats": args.repeats, "rows": rows}
