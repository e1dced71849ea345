"""One question over each of the gateway's doors: HTTP, gRPC, Open Inference Protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp
import grpc.aio
import numpy as np
import tritonclient.grpc.aio as triton_grpc

from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc
from optimizer.data.question_sets import Example

PATIENT_MS = 60_000  # no measurement of answers is about latency


@dataclass(frozen=True, slots=True)
class Told:
    """An answer as any door tells it; no offsets: unanswerable."""

    answer: str
    start: int | None
    end: int | None
    variant: str


Ask = Callable[[Example], Awaitable[Told]]


class HttpDoor:
    """POST /v1/answer; made in the event loop that uses it."""

    def __init__(self, url: str, concurrency: int = 64) -> None:
        self._client = aiohttp.ClientSession(
            url,
            connector=aiohttp.TCPConnector(limit=concurrency),
            timeout=aiohttp.ClientTimeout(PATIENT_MS / 1e3),
        )

    async def ask(self, example: Example, variant: str) -> Told:
        return (await self.timed(example, variant))[0]

    async def timed(self, example: Example, variant: str) -> tuple[Told, str]:
        """Return the answer and what Server-Timing says of it."""
        body = {"question": example.question, "context": example.context}
        headers = {"SLO-Latency-Ms": str(PATIENT_MS), "SLO-Variant": variant}
        async with self._client.post("/v1/answer", json=body, headers=headers) as reply:
            reply.raise_for_status()
            told = await reply.json()
            timing = reply.headers["Server-Timing"]
        return Told(told["answer"], told["start"], told["end"], told["variant"]), timing

    async def close(self) -> None:
        await self._client.close()


class GrpcDoor:
    """bertier.v1.QuestionAnswering/Answer."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        stub = qa_pb2_grpc.QuestionAnsweringStub(self._channel)  # type: ignore[no-untyped-call]
        self._stub = stub

    async def ask(self, example: Example, variant: str) -> Told:
        request = qa_pb2.AnswerRequest(question=example.question, context=example.context)
        metadata = (("slo-latency-ms", str(PATIENT_MS)), ("slo-variant", variant))
        reply = await self._stub.Answer(request, metadata=metadata)
        start = reply.start if reply.HasField("start") else None
        end = reply.end if reply.HasField("end") else None
        return Told(reply.answer, start, end, reply.variant)

    async def close(self) -> None:
        await self._channel.close()


class OipDoor:
    """The stock tritonclient, calling the gateway as if it were Triton."""

    def __init__(self, target: str) -> None:
        self._client = triton_grpc.InferenceServerClient(target)

    async def ask(self, example: Example, variant: str) -> Told:
        inputs = [_text("question", example.question), _text("context", example.context)]
        parameters = {"slo_latency_ms": str(PATIENT_MS), "slo_variant": variant}
        reply = await self._client.infer("qa", inputs, parameters=parameters)

        def first(name: str) -> object:
            return reply.as_numpy(name).reshape(-1)[0]

        start, end = int(str(first("start"))), int(str(first("end")))
        answer, by = first("answer"), first("variant")
        assert isinstance(answer, bytes)
        assert isinstance(by, bytes)
        if start < 0:
            return Told(answer.decode(), None, None, by.decode())
        return Told(answer.decode(), start, end, by.decode())

    async def close(self) -> None:
        await self._client.close()


def _text(name: str, text: str) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=object))
    return tensor


async def ask_all(examples: Sequence[Example], ask: Ask, concurrency: int) -> list[Told]:
    """Return the answers to all questions, in order, `concurrency` at a time."""
    gate = asyncio.Semaphore(concurrency)

    async def one(example: Example) -> Told:
        async with gate:
            return await ask(example)

    return list(await asyncio.gather(*(one(example) for example in examples)))
