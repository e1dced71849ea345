"""Coverage of predicted latencies on a real gateway with its own Triton: open loop, variants in turns."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import aiohttp

from gateway.catalog.schema import Variant
from gateway.qa.codec import TYPICAL_TOKENS
from loadtest.clients import PATIENT_MS
from loadtest.quality.coverage import AnsweredRequest
from loadtest.stack import Stack
from optimizer.data.question_sets import Example

AFTER_ROUTING = ("route", "queue", "infer", "decode")


async def ask(
    stack: Stack,
    variants: Sequence[Variant],
    cores: int,
    examples: Sequence[Example],
    share: float,
    seconds: float,
) -> list[AnsweredRequest]:
    """Return what was predicted and seen at this share of the capacity that profiles predict.

    A reply without a pinned policy predicts the P95; every fifth request asks for the P99, by `strict`.
    """
    mean_ms = sum(v.profile.cell(TYPICAL_TOKENS).p50_ms for v in variants) / len(variants)
    rng, began = random.Random(0), time.perf_counter()
    found: list[AnsweredRequest] = []
    timeout = aiohttp.ClientTimeout(PATIENT_MS / 1e3)
    async with aiohttp.ClientSession(stack.http_url, timeout=timeout) as client:

        async def one(due_s: float) -> None:
            variant = rng.choice(variants).name
            strict = rng.random() < 0.2
            outcome = await _one(client, rng.choice(examples), variant, due_s, strict=strict)
            if outcome is not None:
                found.append(outcome)

        async with asyncio.TaskGroup() as tasks:
            due_s = 0.0
            while due_s < seconds:
                await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))
                tasks.create_task(one(due_s))
                due_s += rng.expovariate(share * cores / mean_ms * 1e3)
    return found


async def _one(
    client: aiohttp.ClientSession, example: Example, variant: str, at_s: float, *, strict: bool
) -> AnsweredRequest | None:
    """Return what became of one request; None: it was refused."""
    body = {"question": example.question, "context": example.context}
    headers = {"SLO-Latency-Ms": str(PATIENT_MS), "SLO-Variant": variant, "SLO-Min-F1": "0"}
    headers["SLO-Policy"] = "strict" if strict else "prefer-latency"
    async with client.post("/v1/answer", json=body, headers=headers) as reply:
        await reply.read()
        if reply.status != 200:
            return None
        parts = dict(p.strip().split(";dur=") for p in reply.headers["Server-Timing"].split(","))
        predicted_ms = float(reply.headers["SLO-Predicted-Ms"])
    took_ms = sum(float(parts[name]) for name in AFTER_ROUTING)
    quantiles = (None, predicted_ms) if strict else (predicted_ms, None)
    return AnsweredRequest(at_s * 1e3, (variant, 0), took_ms, *quantiles)
