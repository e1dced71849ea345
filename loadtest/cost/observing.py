"""The cost of observability: what is recorded of a request, and scrapes of /metrics under load."""

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
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.schema import QA, Variant
from gateway.catalog.store import Catalog
from gateway.clock import now_ms
from gateway.domain import (
    Answer,
    Decision,
    Inference,
    Logits,
    Option,
    Question,
    Reason,
    Seen,
    Served,
    Size,
    Slo,
    SloPolicy,
    Timings,
    Trust,
    Windows,
)
from gateway.domain import Cost as AnswerCost
from gateway.observability.decision_log import DecisionLog
from gateway.observability.metrics import Metrics
from gateway.observability.observer import Observer, QuestionRecord, receive
from loadtest.clients import HttpAnswerClient
from loadtest.cost.overhead import Sample, run_block
from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack, hardware
from optimizer.data.question_sets import Example

ROUNDS, REQUESTS = 30, 500
MOST_US = 30.0  # what recording one request may cost: metrics, and traces and logs that are off
TIMINGS = Timings(0.3, 0.1, 0.1, 6.0, 0.4, 7.0)
QUESTION = QuestionRecord(
    Question("Who?", "us"), Slo(250.0, 0.5, SloPolicy.PREFER_LATENCY, 1_000.0, "standard"), 0.0
)
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time of one request, us: the best round, and the median one."""

    name: str
    best_us: float
    p50_us: float


def costs(catalog: Catalog) -> list[Cost]:
    """Record one request after the other, as the gateway does; no I/O, one thread."""
    return [
        _cost("recorded, traces off", Recording(Metrics(), catalog, "").record),
        _cost("the same with an exemplar", Recording(Metrics(), catalog, TRACEPARENT).record),
    ]


class Recording:
    """A request that a plan of one variant answers, and what is recorded of it; traces and logs are off."""

    def __init__(self, metrics: Metrics, catalog: Catalog, traceparent: str) -> None:
        self._observer = Observer(metrics, DecisionLog(None, metrics.decisions_lost.inc), now_ms)
        self._traceparent = traceparent
        self._variant = catalog.variants[0].name
        plan, slo = catalog.direct(self._variant), QUESTION.slo
        option = Option(plan, Trust.CERTIFIED, 1, cost_ms=6.0, idle_ms=6.0, predicted_ms=7.0)
        self._decision = Decision(option, Reason.MEETS_SLO)
        answer = Answer("us", 0, 2, 0.9, 0.1)
        cost = AnswerCost(6.0, self._variant, 6.0)
        self._answered = Served(
            answer, slo, self._decision, option, self._variant, (), TIMINGS, (), cost
        )
        tokens = np.zeros((1, 192), np.int64)
        inside = np.zeros((1, 192), np.bool_)
        self._windows = Windows(tokens, tokens, tokens, np.zeros((1, 192, 2), int), inside, 164)
        logits = np.zeros((1, 192), np.float32)
        self._inference = Inference(Logits(logits, logits), 0.1, 6.0)

    def record(self) -> None:
        """Record all that is recorded of it."""
        observer, variant = self._observer, self._variant
        receive("r-1", self._traceparent, None)
        with (
            observer.request("http", "standard", QA),
            observer.question(QUESTION.question, QUESTION.slo, 0.0, []) as question,
        ):
            with observer.stage("tokenize"):
                pass
            with observer.stage("route"):
                pass
            question.whole = question.size = Size(192, 1)
            question.decisions.append(self._decision)
            with observer.stage("infer", variant):
                observer.inferred(variant, self._windows, self._inference)
            with observer.stage("decode", variant):
                pass
            observer.predicted(Seen(variant, in_p95=True, in_p99=True, ratio=0.7))
            question.answered = self._answered


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
    text = "measure the cost of metrics, disabled traces and scrapes"
    command = commands.add_parser("observing", help=text, description=text)
    command.add_argument("--data", help="SQuAD-format file; default: the shipped sample")
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.add_argument("--rate", type=float, default=20.0, help="questions/s")
    command.add_argument("--scrapes", type=float, default=50.0, help="scrapes/s")
    command.add_argument("--seconds", type=float, default=60.0, help="of asking, in all; 0: none")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    catalog = store.read_questions(args.model_repository)
    found = costs(catalog)
    table = Table("CPU us of one request", "best round", "median round")
    for cost in found:
        table.add_row(cost.name, f"{cost.best_us:.1f}", f"{cost.p50_us:.1f}")
    Console().print(table)
    result: dict[str, Any] = {"cost_us": {c.name: [c.best_us, c.p50_us] for c in found}}
    if args.seconds:
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
