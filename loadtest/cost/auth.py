"""The cost of wrong keys: requests with a right key, alone and during a flood of wrong ones, in turns."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import psutil
from rich.console import Console
from rich.table import Table

from gateway import api_keys
from gateway.api_keys import ApiKey
from gateway.catalog import store
from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc
from loadtest.clients import PATIENT_MS
from loadtest.cost.overhead import BLOCK_S, WARM_UP, Sample, run_block
from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack, hardware
from optimizer.data.question_sets import Example

CALLERS = 4  # who send wrong keys, each one after the other

Ask = Callable[[str, Example], Awaitable[bool]]  # with a key; was it answered?


@dataclass
class FrontendCost:
    """Questions over one frontend, alone and during the flood, and how many wrong keys were denied meanwhile."""

    name: str
    ask: Ask
    alone: Sample = field(default_factory=Sample)
    beside: Sample = field(default_factory=Sample)
    denied: int = 0

    @property
    def answer_us(self) -> float:
        """The gateway's CPU time of an answer."""
        return self.alone.cpu_per_request_ms * 1e3

    @property
    def denial_us(self) -> float:
        """The gateway's CPU time of a denial: what came on top of as many answers."""
        more_ms = self.beside.cpu_ms - self.alone.cpu_ms
        return more_ms / max(1, self.denied) * 1e3


async def measure(
    stack: Stack,
    key: str,
    variant: str,
    examples: Sequence[Example],
    rate: float,
    wrong_per_s: float,
    seconds: float,
    block_s: float = BLOCK_S,
) -> list[FrontendCost]:
    """Ask `rate` questions a second over each frontend, every second block beside wrong keys."""
    gateway, wrong = psutil.Process(stack.pid), api_keys.new_key()
    channel = grpc.aio.insecure_channel(stack.grpc_target)
    stub = qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]
    async with aiohttp.ClientSession(stack.http_url) as http:
        frontends = [
            FrontendCost("HTTP", partial(_ask_http, http, variant)),
            FrontendCost("gRPC", partial(_ask_grpc, stub, variant)),
        ]
        for frontend in frontends:
            for example in examples[:WARM_UP]:
                assert await frontend.ask(key, example)
        for block in range(max(1, round(seconds / block_s / 4))):
            for frontend in frontends:
                right = _asking(frontend, key, examples)
                await run_block(right, frontend.alone, gateway, rate, block, block_s)
                pace_s = CALLERS / wrong_per_s
                flood = [
                    asyncio.create_task(_keep_trying(frontend, wrong, examples[0], pace_s))
                    for _ in range(CALLERS)
                ]
                await run_block(right, frontend.beside, gateway, rate, block, block_s)
                for caller in flood:
                    caller.cancel()
                await asyncio.wait(flood)
    await channel.close()
    return frontends


def _asking(
    frontend: FrontendCost, key: str, examples: Sequence[Example]
) -> Callable[[int], Awaitable[None]]:
    async def ask(i: int) -> None:
        assert await frontend.ask(key, examples[i % len(examples)])

    return ask


async def _keep_trying(frontend: FrontendCost, wrong: str, example: Example, pace_s: float) -> None:
    with suppress(asyncio.CancelledError):
        due = time.perf_counter()
        while True:
            assert not await frontend.ask(wrong, example)
            frontend.denied += 1
            due += pace_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _ask_http(http: aiohttp.ClientSession, variant: str, key: str, example: Example) -> bool:
    body = {"question": example.question, "context": example.context}
    headers = {
        "Authorization": f"Bearer {key}",
        "SLO-Latency-Ms": str(PATIENT_MS),
        "SLO-Variant": variant,
    }
    async with http.post("/v1/answer", json=body, headers=headers) as reply:
        await reply.read()
        if reply.status not in (200, 401):
            reply.raise_for_status()
        return reply.status == 200


async def _ask_grpc(stub: Any, variant: str, key: str, example: Example) -> bool:
    request = qa_pb2.AnswerRequest(question=example.question, context=example.context)
    metadata = (
        ("authorization", f"Bearer {key}"),
        ("slo-latency-ms", str(PATIENT_MS)),
        ("slo-variant", variant),
    )
    try:
        await stub.Answer(request, metadata=metadata)
    except grpc.aio.AioRpcError as exc:
        if exc.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


def register(commands: Any) -> None:
    """Add the command `wrong-keys`."""
    text = "measure what wrong API keys cost the gateway and callers with a right one"
    command = commands.add_parser("wrong-keys", help=text, description=text)
    command.add_argument("--data", help="SQuAD-format file; default: the shipped sample")
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.add_argument("--rate", type=float, default=20.0, help="questions/s with a right key")
    command.add_argument("--wrong", type=float, default=100.0, help="wrong keys/s")
    command.add_argument("--seconds", type=float, default=64.0, help="of asking, in all")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    catalog = store.read_questions(args.model_repository)
    smallest = min(catalog.variants, key=lambda v: v.profile.cell(128).p50_ms).name
    key = api_keys.new_key()
    with tempfile.TemporaryDirectory(prefix="bertier-") as folder:
        file = Path(folder) / "keys.toml"
        file.write_text(api_keys.entry("driver", ApiKey(sha256=api_keys.digest(key))))
        with fresh_stack(args.model_repository, "--api-keys-file", str(file)) as stack:
            examples = questions(args.data, 200)
            frontends = asyncio.run(
                measure(stack, key, smallest, examples, args.rate, args.wrong, args.seconds)
            )
    print(f"on {hardware()}")
    return True, _show(frontends)


def _show(frontends: Sequence[FrontendCost]) -> dict[str, Any]:
    table = Table("frontend", "wrong keys", "questions", "p50 ms", "p99 ms", "gateway CPU ms")
    result: dict[str, Any] = {}
    for frontend in frontends:
        costs = {"answer_us": frontend.answer_us, "denial_us": frontend.denial_us}
        result[frontend.name] = {"denied": frontend.denied, **costs}
        for way, denied, sample in (
            ("alone", 0, frontend.alone),
            ("beside", frontend.denied, frontend.beside),
        ):
            p50, p99, n = sample.quantile(0.5), sample.quantile(0.99), len(sample.latencies_ms)
            cpu = sample.cpu_ms
            table.add_row(
                frontend.name, str(denied), str(n), f"{p50:.2f}", f"{p99:.2f}", f"{cpu:.0f}"
            )
            result[frontend.name][way] = {"n": n, "p50_ms": p50, "p99_ms": p99, "cpu_ms": cpu}
    Console().print(table)
    for frontend in frontends:
        share = frontend.denial_us / frontend.answer_us
        print(
            f"{frontend.name}: an answer takes {frontend.answer_us:.0f} us of the gateway's CPU, a denial"
            f" {frontend.denial_us:.0f} us, {share:.0%} of it"
        )
    return result
