"""`bertier-loadtest rollout`: how soon a worse candidate is withdrawn, an equal one promoted, and how often wrongly."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gateway.catalog import candidate, store
from gateway.catalog.candidate import Terms
from gateway.catalog.store import Catalog
from gateway.monitoring.rollout_tests import Chances, Verdict
from gateway.settings import Settings
from loadtest.quality import rollout, rollout_served
from loadtest.quality.rollout import Ended, Scenario
from loadtest.quality.rollout_served import Trial
from loadtest.sample import questions
from loadtest.stack import Stack, hardware
from optimizer.data.question_sets import Example

SERVED_SHARE, SERVED_S = 0.5, 120.0
SERVED_VARIABLES = {  # for a verdict in seconds
    "BERTIER_CANDIDATE_MARGIN": "0.5",
    "BERTIER_CANDIDATE_COMPARED": "1",
    "BERTIER_CATALOG_POLL_MS": "300",
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "measure when candidate catalogs are withdrawn or promoted, and how often wrongly"
    command = commands.add_parser("rollout", help=text, description=text)
    command.add_argument(
        "--streams",
        type=int,
        default=200,
        help="simulated streams of each kind of candidate",
    )
    command.add_argument("--share", type=float, default=0.1, help="of the candidate")
    command.add_argument(
        "--requests", type=int, default=2000, help="of the candidate, at most, in a stream"
    )
    command.add_argument("--promote-after", type=int, default=500, metavar="N")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument(
        "--served", action="store_true", help="try candidates in a real gateway in place of that"
    )
    command.add_argument(
        "--backend", choices=("triton", "embedded"), default="triton", help="with --served"
    )
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.set_defaults(run=_rollout)


def _rollout(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    if args.served:
        return _served(args.model_repository, args.backend)
    given = Settings.model_fields
    chances = Chances(
        given["candidate_delta"].default,
        given["candidate_margin"].default,
        given["shadow_tolerance"].default,
        args.promote_after,
    )
    compared = given["candidate_compared"].default
    rows = []
    for scenario in track(rollout.SCENARIOS, "candidates", console=Console(stderr=True)):
        seeds = range(args.seed, args.seed + args.streams)
        found = rollout.ended(scenario, args.share, args.requests, chances, seeds, compared)
        rows.append(_row(scenario, found))
    _show(rows, args)
    equal = [
        row
        for row, scenario in zip(rows, rollout.SCENARIOS, strict=True)
        if scenario.counts_false_alarms
    ]
    rarely_withdrawn = all(row["withdrawn"] <= row["streams"] * 0.1 for row in equal)
    return rarely_withdrawn, {"streams": args.streams, "share": args.share, "rows": rows}


def _row(scenario: Scenario, found: Sequence[Ended]) -> dict[str, Any]:
    row: dict[str, Any] = {"candidate": scenario.name, "streams": len(found)}
    for name, verdict in (("withdrawn", Verdict.WORSE), ("promoted", Verdict.NO_WORSE)):
        after = [each.n_candidate for each in found if each.verdict is verdict]
        row[name] = len(after)
        row[f"{name}_after"] = _quantiles(after)
    row["open"] = sum(each.verdict is Verdict.OPEN for each in found)
    return row


def _quantiles(after: Sequence[int]) -> tuple[int, int] | None:
    """Return median and 95 % quantile."""
    return None if not after else (int(np.median(after)), int(np.quantile(after, 0.95)))


def _show(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    title = f"share {args.share:g}, up to {args.requests} requests of the candidate in a stream"
    table = Table(
        "candidate", "streams", "withdrawn", "after", "promoted", "after", "open", title=title
    )
    for row in rows:
        after = [_in_words(row[f"{name}_after"]) for name in ("withdrawn", "promoted")]
        cells = (str(row["withdrawn"]), after[0], str(row["promoted"]), after[1], str(row["open"]))
        table.add_row(row["candidate"], str(row["streams"]), *cells)
    Console().print(table)
    print(f"after: requests of the candidate, median (95 % quantile); on {hardware()}")


def _in_words(quantiles: tuple[int, int] | None) -> str:
    return "" if quantiles is None else f"{quantiles[0]} ({quantiles[1]})"


def _served(source: Path, backend: str) -> tuple[bool, dict[str, Any]]:
    """Try an equal candidate, then one that claims a floor it does not keep, in a real gateway."""
    examples = questions(None, 200)
    catalog = store.read_questions(source)
    with tempfile.TemporaryDirectory(prefix="bertier-rollout-") as name:
        folder = Path(name)
        with rollout_served.gateway_on(
            source, folder, "--backend", backend, variables=SERVED_VARIABLES
        ) as stack:
            trials = asyncio.run(both(stack, folder, catalog, examples, SERVED_S))
    table = Table(*("candidate", "result", "requests", "of the candidate", "lost", "s", "reason"))
    for each in trials:
        cells = (each.result, each.requests, each.of_candidate, each.lost, f"{each.seconds:.0f}")
        table.add_row(each.name, *map(str, cells), each.reason)
    Console().print(table)
    print(hardware())
    good = [t.result for t in trials] == ["promoted", "withdrawn"] and not any(
        t.lost for t in trials
    )
    return good, {"trials": [asdict(each) for each in trials]}


async def both(
    stack: Stack,
    folder: Path,
    catalog: Catalog,
    examples: Sequence[Example],
    most_s: float,
) -> list[Trial]:
    """Return how an equal candidate ended, and one that is worse than it claims."""
    equal = rollout_served.only(catalog, ("minilm-6",))
    worse = rollout_served.boasting(catalog, "minilm-2", 0.45)
    # By a margin of 0.5 a candidate that differs in a third of its answers is "no worse": it may only be withdrawn.
    promotable, tried_only = Terms(share=SERVED_SHARE, promote_after=50), Terms(share=SERVED_SHARE)
    return [
        await rollout_served.tried(
            stack, name, partial(candidate.write, folder, each, terms), examples, most_s
        )
        for name, each, terms in (
            ("equal: minilm-6, which answers all of these", equal, promotable),
            ("worse: minilm-2 with a false floor", worse, tried_only),
        )
    ]
