"""`bertier-loadtest closed`: callers in a closed loop, beside each variant pinned and beside rivals.

Every way to choose gets the same questions; repeats are interleaved, and medians are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.domain import Slo
from gateway.errors import BertierError
from loadtest.drive import closed_loop, load_clients
from loadtest.drive.closed_loop import Found, Loop
from loadtest.drive.schedule import Request
from loadtest.lab import mixes
from loadtest.sample import questions
from loadtest.stack import fresh_stack, hardware
from optimizer.data.question_sets import Example

Result = dict[str, Any]
ROUTED = "routed"
LONG_CHARS = 3_000  # of a context of some 700 tokens
RIVAL = ("loadtest.emulator.rival_gateway",)
SHOWN: Sequence[tuple[str, str, int]] = (
    ("answered", "answered", 3),
    ("answered_per_s", "answered/s", 1),
    ("in_time", "in time", 3),
    ("f1", "F1", 3),
    ("met", "SLO-Met true", 3),
    ("p95_ms", "p95 ms", 0),
)


class NothingToAsk(BertierError):
    """Flags that make no run; the message says which."""


@dataclass(frozen=True, slots=True)
class Place:
    """One cell of the table."""

    contexts: str
    callers: int
    way: str


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "measure with callers that send the next request after each answer (closed loop)"
    command = commands.add_parser("closed", help=text, description=text)
    add = command.add_argument
    add("--url", help="http://HOST:PORT or grpc://HOST:PORT; default: a fresh gateway with Triton")
    add("--callers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    add("--contexts", nargs="+", choices=("short", "long"), default=["short", "long"])
    add("--seconds", type=float, default=8.0, help="seconds of one run")
    add("--repeats", type=int, default=5, help="interleaved; the median is shown")
    add("--variants", nargs="*", help="variants to pin; default: all; no names: none")
    add(
        "--rivals",
        nargs="*",
        default=[],
        help="policies of the lab to compare with, each in its own gateway",
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
    catalog = store.read(args.model_repository)
    examples = questions(args.data, args.questions)
    if not examples or min(args.callers) < 1 or args.seconds <= 0 or args.repeats < 1:
        raise NothingToAsk("give at least one question, caller, repeat and some --seconds")
    texts = {"short": examples, "long": lengthened(examples)}
    slo = mixes.standard(catalog)[0].slo
    pinned = _variants(args.variants, catalog)
    found: dict[Place, list[Found]] = {}
    with ExitStack() as stacks:
        ways = _ways(args, slo, pinned, stacks)
        for _ in range(args.repeats):
            for contexts, n in itertools.product(args.contexts, args.callers):
                for way, (url, promise) in ways.items():
                    loop = Loop(n, args.seconds, args.honour)
                    requests = endless(texts[contexts], promise)
                    one = asyncio.run(_play(url, requests, loop))
                    found.setdefault(Place(contexts, n, way), []).append(one)
    return True, _show(found, args)


def _variants(asked: Sequence[str] | None, catalog: Catalog) -> list[str]:
    known = [v.name for v in catalog.variants]
    if unknown := sorted(set(asked or ()) - set(known)):
        raise NothingToAsk(f"--variants: {unknown[0]} is none; there are {', '.join(known)}")
    return known if asked is None else list(asked)


def _ways(
    args: argparse.Namespace, slo: Slo, pinned: Sequence[str], stacks: ExitStack
) -> Mapping[str, tuple[str, Slo]]:
    """Return URL and SLO by name."""
    url = args.url or stacks.enter_context(fresh_stack(args.model_repository)).http_url
    ways = {ROUTED: (url, slo)}
    ways |= {name: (url, replace(slo, variant=name)) for name in pinned}
    for rival in args.rivals:
        flags = ("--policy", rival, "--recorded", str(args.folder / "recorded"))
        stack = stacks.enter_context(fresh_stack(args.model_repository, *flags, program=RIVAL))
        ways[rival] = (stack.http_url, slo)
    return ways


async def _play(url: str, requests: Iterator[Request], loop: Loop) -> Found:
    async with load_clients.of(url) as load_client:
        return await closed_loop.play(load_client, requests, loop)


def endless(examples: Sequence[Example], slo: Slo) -> Iterator[Request]:
    """Yield the questions endlessly, all with the same SLO."""
    for index, example in enumerate(itertools.cycle(examples)):
        yield Request(index, 0.0, slo, example)


def lengthened(examples: Sequence[Example]) -> list[Example]:
    """Return the questions with the contexts of those that follow after their own, to some 700 tokens."""
    found = []
    for i, example in enumerate(examples):
        context, after = example.context, i
        while len(context) < LONG_CHARS and after - i < len(examples):
            after += 1
            other = examples[after % len(examples)].context
            if other not in context:
                context += "\n" + other
        found.append(
            replace(
                example,
                context=context[:LONG_CHARS] if len(example.context) < LONG_CHARS else context,
            )
        )
    return found


def medians(runs: Sequence[Found]) -> Result:
    """Return the median of each number over the repeats."""
    every = [run.as_json() for run in runs]
    return {name: median(run[name] for run in every) for name in every[0]}


def _show(found: Mapping[Place, Sequence[Found]], args: argparse.Namespace) -> Result:
    refused = "waits for Retry-After" if args.honour else "comes back at once"
    print(
        f"{args.repeats} interleaved repeats of {args.seconds:g} s, medians; who is refused {refused}"
    )
    print(f"on {hardware()}")
    table = Table("contexts", "callers", "answered by", *(head for _, head, _ in SHOWN))
    rows = []
    for place, runs in found.items():
        row = medians(runs)
        numbers = [f"{row[name]:.{digits}f}" for name, _, digits in SHOWN]
        table.add_row(place.contexts, str(place.callers), place.way, *numbers)
        rows.append({"contexts": place.contexts, "callers": place.callers, "by": place.way, **row})
    Console(width=140).print(table)
    return {"honour": args.honour, "repeats": args.repeats, "rows": rows}
