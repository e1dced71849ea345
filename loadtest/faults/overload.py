"""`bertier-loadtest overload`: goodput of a gateway at loads above its capacity.

Open loop: requests are sent when they are due, also when nothing comes back. Capacity is measured first,
by raising the rate until no more is answered; then the rate goes from half of it to
twice as much. Goodput: requests per second that met their SLO, in time and with their floor.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from loadtest.drive import attainment, load_clients, open_loop, schedule
from loadtest.drive.attainment import Summary
from loadtest.drive.load_clients import LoadClient
from loadtest.drive.schedule import Request
from loadtest.lab.mixes import MIXES
from loadtest.sample import questions
from loadtest.stack import fresh_stack, hardware

Result = dict[str, Any]
Plan = Callable[[float, float], list[Request]]  # rate per second, seconds

LOADS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
FIRST_LOAD, GROWTH, MOST_STEPS = 0.5, 1.4, 10  # of the search for capacity
GAIN = 1.1  # a step that answers less than so much more was in vain
KEPT = 0.85  # of the peak's goodput that is left at twice the capacity


@dataclass(frozen=True, slots=True)
class Step:
    """What a gateway did at one rate; rates are per second."""

    load: float  # of capacity
    rate: float
    goodput: float
    answered: float
    shed: float  # shares of the requests
    expired: float
    failed: float
    p95_ms: float
    complaint: str  # of the client, when it could not keep to the schedule


def step_of(load: float, rate: float, summary: Summary, complaint: str) -> Step:
    found = summary.every
    return Step(
        load=load,
        rate=rate,
        goodput=summary.goodput_per_s,
        answered=found.answered * rate,
        shed=found.shed,
        expired=found.expired,
        failed=found.failed,
        p95_ms=found.p95_ms,
        complaint=complaint,
    )


def verdict(steps: Sequence[Step]) -> Result:
    """Return the peak, and how much of it is left at the highest load."""
    last, peak = max(steps, key=lambda s: s.load), max(s.goodput for s in steps)
    most = max(s.answered for s in steps)
    ratio = last.goodput / peak if peak else 0.0
    return {
        "peak_goodput_per_s": peak,
        "goodput_per_s": last.goodput,
        "load": last.load,
        "ratio": ratio,
        "answered_ratio": last.answered / most if most else 0.0,
        "kept": ratio >= KEPT,
        "valid": not any(s.complaint for s in steps),
    }


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "measure goodput from half to twice the measured capacity (open loop)"
    command = commands.add_parser("overload", help=text, description=text)
    add = command.add_argument
    add("--url", help="http://HOST:PORT or grpc://HOST:PORT; default: a fresh gateway with Triton")
    add("--mix", choices=MIXES, default="mixed", help="mix of SLOs")
    add(
        "--seconds",
        type=float,
        default=20.0,
        help="seconds at each load; steps of the capacity search take half",
    )
    add("--capacity", type=float, help="requests/s; default: measured")
    add("--seed", type=int, default=1)
    add("--data", help="SQuAD-format file; default: the shipped sample")
    add("--model-repository", type=Path, default=Path("model_repository"))
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> tuple[bool, Result]:
    examples = questions(args.data)
    mix = schedule.mix_of(store.read_questions(args.model_repository), args.mix)
    guess = args.capacity or schedule.capacity_per_s(args.model_repository, examples)

    def plan(rate: float, seconds: float) -> list[Request]:
        return schedule.make("poisson", rate, seconds, mix, examples, args.seed)

    if args.url is not None:
        capacity, steps = asyncio.run(_measure(args, args.url, plan, guess))
    else:
        with fresh_stack(args.model_repository) as stack:
            capacity, steps = asyncio.run(_measure(args, stack.http_url, plan, guess))
    _show(capacity, steps)
    found = verdict(steps) | {"capacity_per_s": capacity, "mix": args.mix, "host": hardware()}
    return bool(found["kept"] and found["valid"]), found | {"steps": [_as_json(s) for s in steps]}


async def _measure(
    args: argparse.Namespace, url: str, plan: Plan, guess: float
) -> tuple[float, list[Step]]:
    async with load_clients.of(url) as load_client:
        capacity = args.capacity or await _capacity(load_client, plan, guess, args.seconds / 2)
        steps = [
            await _step(load_client, plan, load, load * capacity, args.seconds) for load in LOADS
        ]
    return capacity, steps


async def _capacity(load_client: LoadClient, plan: Plan, guess: float, seconds: float) -> float:
    """Return the most that is answered per second: the rate rises until twice no more is answered."""
    rate, best, in_vain = FIRST_LOAD * guess, 0.0, 0
    for _ in range(MOST_STEPS):
        found = await _step(load_client, plan, rate / guess, rate, seconds)
        in_vain = in_vain + 1 if found.answered < GAIN * best else 0
        best = max(best, found.answered)
        if in_vain == 2:
            break
        rate *= GROWTH
    return best


async def _step(
    load_client: LoadClient, plan: Plan, load: float, rate: float, seconds: float
) -> Step:
    run = await open_loop.play(plan(rate, seconds), load_client)
    step = step_of(load, rate, attainment.summarize(run), run.client.complaint())
    print(
        f"{rate:.1f}/s: goodput {step.goodput:.1f}/s, answered {step.answered:.1f}/s,"
        f" shed {step.shed:.0%}, expired {step.expired:.1%}",
        flush=True,
    )
    return step


def _as_json(step: Step) -> Result:
    return {name: getattr(step, name) for name in Step.__slots__}


def _show(capacity: float, steps: Sequence[Step]) -> None:
    table = Table(
        "load", "asked /s", "goodput /s", "answered /s", "shed", "expired", "failed", "p95 ms"
    )
    for s in steps:
        numbers = (f"{x:.1f}" for x in (s.rate, s.goodput, s.answered))
        shares = (f"{100 * x:.1f} %" for x in (s.shed, s.expired, s.failed))
        table.add_row(f"{s.load:g}", *numbers, *shares, f"{s.p95_ms:.0f}")
    Console(width=120).print(table)
    print(f"capacity {capacity:.1f} requests/s on {hardware()}")
    for s in steps:
        if s.complaint:
            print(f"NOT VALID at {s.load:g}: {s.complaint}")
