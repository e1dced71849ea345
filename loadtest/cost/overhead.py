"""What the gateway adds to a direct call of Triton with the same tensors, at a fixed open-loop rate.

Direct and through the gateway alternate in short blocks of one run, so that a noisy host hits both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from gateway.backends.triton import TritonBackend
from gateway.catalog import store
from gateway.catalog.schema import Variant
from gateway.domain import Windows
from gateway.qa.codec import SpanEncoder
from loadtest.clients import GrpcAnswerClient, HttpAnswerClient
from loadtest.stack import Stack
from optimizer.data.question_sets import Example

BLOCK_S = 2.0
WARM_UP = 50
PARTS = ("tokenize", "route", "queue", "infer", "decode", "total")


@dataclass
class Sample:
    """Latencies of one way of asking, ms from the scheduled send time."""

    latencies_ms: list[float] = field(default_factory=list)
    cpu_ms: float = 0.0  # of the gateway's process

    def quantile(self, q: float) -> float:
        return float(np.quantile(self.latencies_ms, q))

    @property
    def cpu_per_request_ms(self) -> float:
        return self.cpu_ms / max(1, len(self.latencies_ms))


@dataclass(frozen=True)
class Overhead:
    """The three ways, interleaved, and the gateway's own account of its time."""

    variant: str
    rate: float
    direct: Sample
    http: Sample
    grpc: Sample
    parts_ms: dict[str, float]  # p50 of each stage in Server-Timing


async def measure(
    stack: Stack, repository: Path, examples: Sequence[Example], rate: float, seconds: float
) -> Overhead:
    """Ask the smallest variant `rate` times a second, direct and over both protocols, alternating."""
    catalog = store.read_questions(repository)
    variant = min(catalog.variants, key=lambda v: v.profile.cell(128).p50_ms)
    encoder = SpanEncoder.from_file(repository / store.TOKENIZER)
    tensors = [encoder.encode(e.as_question()) for e in examples]
    backend = TritonBackend(stack.triton_grpc)
    http = HttpAnswerClient(stack.http_url)
    grpc_client = GrpcAnswerClient(stack.grpc_target)
    parts: dict[str, list[float]] = {name: [] for name in PARTS}

    async def ask_direct(i: int) -> None:
        await _direct(backend, variant, tensors[i % len(tensors)])

    async def ask_http(i: int) -> None:
        _, timing = await http.timed(examples[i % len(examples)], variant.name)
        note_parts(timing, parts)

    async def ask_grpc(i: int) -> None:
        await grpc_client.ask(examples[i % len(examples)], variant.name)

    gateway = psutil.Process(stack.pid)
    ways = {"direct": (ask_direct, Sample()), "http": (ask_http, Sample())}
    ways["grpc"] = (ask_grpc, Sample())
    for ask, _ in ways.values():
        for i in range(WARM_UP):
            await ask(i)
    for block in range(max(1, round(seconds / BLOCK_S / len(ways)))):
        for ask, sample in ways.values():
            await run_block(ask, sample, gateway, rate, block)
    await backend.close()
    await http.close()
    await grpc_client.close()
    return Overhead(
        variant=variant.name,
        rate=rate,
        direct=ways["direct"][1],
        http=ways["http"][1],
        grpc=ways["grpc"][1],
        parts_ms={name: float(np.median(times)) for name, times in parts.items() if times},
    )


async def run_block(
    ask: Callable[[int], Awaitable[None]],
    sample: Sample,
    gateway: psutil.Process,
    rate: float,
    block: int,
    block_s: float = BLOCK_S,
) -> None:
    """Send on schedule for one block; lateness of the sender counts as latency."""
    n = round(block_s * rate)
    before = _cpu_ms(gateway)
    began = time.perf_counter()

    async def one(i: int) -> None:
        due = began + i / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await ask(block * n + i)
        sample.latencies_ms.append((time.perf_counter() - due) * 1e3)

    await asyncio.gather(*(one(i) for i in range(n)))
    sample.cpu_ms += _cpu_ms(gateway) - before


def _cpu_ms(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float((times.user + times.system) * 1e3)


async def _direct(backend: TritonBackend, variant: Variant, windows: Windows) -> None:
    await backend.infer(variant, windows, 10_000.0)


def note_parts(timing: str, parts: dict[str, list[float]]) -> None:
    """Add the stages of a Server-Timing value to theirs."""
    for entry in timing.split(","):
        name, _, ms = entry.strip().partition(";dur=")
        if name in parts:
            parts[name].append(float(ms))
