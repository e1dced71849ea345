"""The cost of observability: counters, disabled traces, and scrapes of /metrics under load."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.schema import Variant
from gateway.domain import Cost as AnswerCost
from gateway.domain import Decision, Reason, Size, Slo, SloPolicy, Timings
from gateway.observability import access_log, tracing
from gateway.observability.metrics import Metrics
from loadtest.clients import HttpAnswerClient
from loadtest.cost.overhead import Sample, run_block
from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack, hardware
from optimizer.data.question_sets import Example

ROUNDS, REQUESTS = 30, 500
MOST_US = 20.0  # what the metrics of one request may cost
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TIMINGS = Timings(0.3, 0.1, 0.1, 6.0, 0.4, 7.0)


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time of one request, us: the best round, and the median one."""

    name: str
    best_us: float
    p50_us: float


def costs() -> list[Cost]:
    """Count one request after the other, as the gateway does; no I/O, one thread."""
    metrics = Metrics()
    return [
        _cost("metrics", lambda: count(metrics, "")),
        _cost("metrics with an exemplar", lambda: count(metrics, TRACE_ID)),
        _cost("traces and access log, off", untraced),
    ]


def count(metrics: Metrics, trace_id: str) -> None:
    """Count one request that a plan of one variant answers, all that is counted of it."""
    with metrics.in_flight.track_inprogress():
        metrics.note_decision("standard", "a", Reason.MEETS_SLO)
        metrics.note_inference("a", 0.006, 1.0)
        metrics.note_tokens("a", 164, 192)
        metrics.note_prediction("a", in_p95=True, in_p99=True, ratio=0.7)
        metrics.note_answer("standard", (), TIMINGS, 1)
        metrics.note_cost("standard", AnswerCost(6.0, "a", 6.0))
    metrics.note_request("http", "standard", "ok", 0.007, trace_id)


def untraced() -> None:
    """Do for one request what traces and the access log do where both are off."""
    requested = Slo(250.0, 0.5, SloPolicy.PREFER_LATENCY, 1_000.0, "standard")
    entry = access_log.begin("http", "standard")
    tracing.receive(None, None)
    with tracing.request("http", "r-1"):
        for name in ("tokenize", "route", "infer", "decode"):
            with tracing.stage(name):
                pass
        tracing.queued(0.1)
        tracing.decided(requested, Decision(None, Reason.SHED), Size(192, 1))
        tracing.outgoing()
    access_log.end(entry, "ok", 0.007)


def _cost(name: str, one: Callable[[], None]) -> Cost:
    taken_us = []
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        for _ in range(REQUESTS):
            one()
        taken_us.append((time.thread_time_ns() - began) / 1e3 / REQUESTS)
    ordered = sorted(taken_us)
    return Cost(name, ordered[0], ordered[len(ordered) // 2])


@dataclass(frozen=True, slots=True)
class Scraped:
    """Latencies of questions while nobody scrapes, and while many do, in turns."""

    alone: Sample
    scraped: Sample
    scrapes: int
    bytes_each: int


async def scrape(
    stack: Stack,
    variant: Variant,
    examples: Sequence[Example],
    rate: float,
    scrapes_per_s: float,
    seconds: float,
) -> Scraped:
    """Ask one variant on schedule, with and without scrapes, in short blocks of one run."""
    gateway, client = psutil.Process(stack.pid), HttpAnswerClient(stack.http_url)
    alone, scraped, sizes = Sample(), Sample(), list[int]()

    async def ask(i: int) -> None:
        await client.ask(examples[i % len(examples)], variant.name)

    for i in range(50):
        await ask(i)
    async with aiohttp.ClientSession(stack.http_url) as http:
        for block in range(max(1, round(seconds / 4.0))):
            await run_block(ask, alone, gateway, rate, block)
            scraper = asyncio.create_task(_keep_scraping(http, scrapes_per_s, sizes))
            await run_block(ask, scraped, gateway, rate, block)
            scraper.cancel()
            with suppress(asyncio.CancelledError):
                await scraper
    await client.close()
    return Scraped(alone, scraped, len(sizes), sizes[-1])


async def _keep_scraping(http: aiohttp.ClientSession, per_s: float, sizes: list[int]) -> None:
    accept = {"accept": "application/openmetrics-text"}
    while True:
        began = time.perf_counter()
        async with http.get("/metrics", headers=accept) as reply:
            sizes.append(len(await reply.read()))
        await asyncio.sleep(max(0.0, 1 / per_s - (time.perf_counter() - began)))


def register(commands: Any) -> None:
    """Add the command `observing`."""
    text = "what metrics, traces that are off, and scrapes cost"
    command = commands.add_parser("observing", help=text, description=text)
    command.add_argument("--data", help="SQuAD-format file; default: the shipped sample")
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.add_argument("--rate", type=float, default=20.0, help="questions/s")
    command.add_argument("--scrapes", type=float, default=50.0, help="scrapes/s")
    command.add_argument("--seconds", type=float, default=60.0, help="of asking, in all; 0: none")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    found = costs()
    table = Table("CPU us of one request", "best round", "median round")
    for cost in found:
        table.add_row(cost.name, f"{cost.best_us:.1f}", f"{cost.p50_us:.1f}")
    Console().print(table)
    result: dict[str, Any] = {"cost_us": {c.name: [c.best_us, c.p50_us] for c in found}}
    if args.seconds:
        catalog = store.read(args.model_repository)
        with fresh_stack(args.model_repository) as stack:
            examples = questions(args.data, 200)
            smallest = min(catalog.variants, key=lambda v: v.profile.cell(128).p50_ms)
            ways = asyncio.run(
                scrape(stack, smallest, examples, args.rate, args.scrapes, args.seconds)
            )
        result["scraped"] = _show(ways, args.scrapes)
    print(f"on {hardware()}")
    return found[0].p50_us <= MOST_US, result


def _show(ways: Scraped, scrapes_per_s: float) -> dict[str, Any]:
    table = Table("scrapes/s", "questions", "p50 ms", "p99 ms", "gateway CPU ms a question")
    result: dict[str, Any] = {"scrapes": ways.scrapes, "bytes": ways.bytes_each}
    for name, sample in (("0", ways.alone), (f"{scrapes_per_s:g}", ways.scraped)):
        p50, p99, cpu = sample.quantile(0.5), sample.quantile(0.99), sample.cpu_per_request_ms
        table.add_row(name, str(len(sample.latencies_ms)), f"{p50:.2f}", f"{p99:.2f}", f"{cpu:.2f}")
        result[name] = {"p50_ms": p50, "p99_ms": p99, "cpu_ms": cpu}
    Console().print(table)
    print(f"{ways.scrapes} scrapes of {ways.bytes_each} bytes")
    return result
