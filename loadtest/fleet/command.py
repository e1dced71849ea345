"""`bertier-loadtest fleet`: fleets of one to thousands of hosts, in virtual time."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog.host import usable_cores
from loadtest.fleet import kinds, page, served, tables
from loadtest.fleet.study import BadFleet, Options, Study, say
from loadtest.lab import mixes
from loadtest.lab.commands import add_command, world_of
from loadtest.stack import hardware

PRICES = {kinds.CPU: 0.09, kinds.GPU: 0.80}  # USD an hour, assumed


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = (
        "simulate 1 to thousands of hosts: a day, choosing a Triton, stale views, a lost zone, cost"
    )
    command = add_command(commands, "fleet", text, _fleet)
    add = command.add_argument
    default = Options()
    add("--hosts", nargs="+", type=int, default=[*default.hosts])
    add("--kinds", nargs="+", default=[kinds.CPU, kinds.GPU], metavar="KIND", help="cpu, gpu")
    add(
        "--tritons-per-gateway",
        type=int,
        default=default.tritons_each,
        help="Tritons that a gateway asks; all, where there are fewer",
    )
    add("--mix", choices=mixes.MIXES, default="mixed")
    add(
        "--peak-load",
        type=float,
        default=default.peak_load,
        help="load of the peak hour; 1: the largest variant alone fills the hosts",
    )
    add(
        "--crowds",
        type=int,
        default=default.crowds,
        help="flash crowds a day, five minutes each",
    )
    add(
        "--requests",
        type=int,
        default=default.requests,
        help="of each simulated slice, at least; more is slower and less noisy",
    )
    add(
        "--requests-per-host",
        type=int,
        default=default.per_host,
        help="the same, for each host of a fleet",
    )
    add(
        "--poll-ms",
        type=float,
        default=default.poll_ms,
        help="between polls for the load of other gateways; 0: never",
    )
    add("--price", type=float, default=PRICES[kinds.CPU], help="USD an hour of a cpu host")
    add("--gpu-price", type=float, default=PRICES[kinds.GPU], help="USD an hour of a gpu host")
    add("--workers", type=int, default=usable_cores(), help="processes; default: number of cores")
    add("--seed", type=int, default=default.seed)
    add("--out", type=Path, default=Path("runs/fleet/fleet.html"), help="the page")
    add(
        "--served",
        action="store_true",
        help="run two gateways of two workers and two Tritons here instead, and compare",
    )
    add("--seconds", type=float, default=15.0, help="of each load with --served")
    add("--loads", nargs="+", type=float, default=[0.4, 0.8], help="with --served")
    add("--variants", type=int, default=4, help="the smallest so many, with --served")


def _fleet(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    if args.served:
        return served.run(args)
    options, prices = _options(args), _prices(args)
    if args.workers < 1:
        raise BadFleet("--workers: it must be at least 1")
    world = world_of(args)
    found_kinds = tuple(kinds.make(name, world, price) for name, price in prices.items())
    study = Study(options, found_kinds, mixes.MIXES[args.mix](world.catalog))
    study.play(say, args.workers)
    found = tables.all_of(study)
    for rows in found:
        _print(rows)
    facts = _facts(args, study)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page.html(study, facts))
    print(f"{study.n_requests:,} requests simulated; page: {args.out}")
    return True, _result(study, facts, args.out)


def _options(args: argparse.Namespace) -> Options:
    return Options(
        hosts=tuple(sorted(set(args.hosts))),
        tritons_each=args.tritons_per_gateway,
        peak_load=args.peak_load,
        crowds=args.crowds,
        requests=args.requests,
        per_host=args.requests_per_host,
        poll_ms=args.poll_ms,
        seed=args.seed,
    )


def _prices(args: argparse.Namespace) -> dict[str, float]:
    """Return what an hour of each chosen kind costs. Raises: UnknownKind, BadFleet."""
    known = {kinds.CPU: args.price, kinds.GPU: args.gpu_price}
    unknown = [name for name in args.kinds if name not in known]
    if unknown:
        raise kinds.UnknownKind(unknown[0])
    if not min(known.values()) >= 0:
        raise BadFleet("--price and --gpu-price: they must be 0 or more")
    return {name: known[name] for name in dict.fromkeys(args.kinds)}


def _facts(args: argparse.Namespace, study: Study) -> dict[str, str]:
    options = study.options
    facts = {
        f"host, {kind.name}": f"{kind.about}; load 1: {kind.capacity_per_s:.0f} requests/s"
        for kind in study.kinds
    }
    return facts | {
        "traffic": f"mix {args.mix}, load {options.peak_load:g} at the peak hour, {options.crowds} crowds a day",
        "gateways": f"one a host, each asks {options.tritons_each} Tritons at most",
        "answers and texts": f"recorded of {len(study.kinds[0].world.recording)} questions",
        "seed": str(options.seed),
        "simulated on": hardware(),
    }


def _print(rows: tables.Rows) -> None:
    shown = Table(*rows.heads, title=rows.title)
    for row in rows.rows:
        shown.add_row(*row)
    Console(width=170).print(shown)


def _result(study: Study, facts: Mapping[str, str], out: Path) -> dict[str, Any]:
    options = study.options
    costs = {
        kind.name: {
            str(hosts): {
                name: {k: _number(v) for k, v in asdict(cost).items()}
                for name, cost in study.costs(kind, hosts).items()
            }
            for hosts in options.hosts
        }
        for kind in study.kinds
    }
    return {
        "facts": dict(facts),
        "requests": study.n_requests,
        "runs": [_plain(r.as_json()) for r in study.results],
        "costs": costs,
        "page": str(out),
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _number(v) if isinstance(v, float) else v for k, v in values.items()}


def _number(value: float) -> float | None:
    return value if value == value else None
