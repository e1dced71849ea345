"""One client for each protocol of the gateway: HTTP, gRPC, Open Inference Protocol."""

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

PATIENT_MS = 60_000  # deadline of requests whose latency does not matter


@dataclass(frozen=True, slots=True)
class VariantAnswer:
    """An answer, and the variant that gave it; offsets are None for "no answer"."""

    answer: str
    start: int | None
    end: int | None
    variant: str


Ask = Callable[[Example], Awaitable[VariantAnswer]]


class HttpAnswerClient:
    """POST /v1/answer. Create it in the event loop that uses it."""

    def __init__(self, url: str, concurrency: int = 64) -> None:
        self._client = aiohttp.ClientSession(
            url,
            connector=aiohttp.TCPConnector(limit=concurrency),
            timeout=aiohttp.ClientTimeout(PATIENT_MS / 1e3),
        )

    async def ask(self, example: Example, variant: str) -> VariantAnswer:
        return (await self.timed(example, variant))[0]

    async def timed(self, example: Example, variant: str) -> tuple[VariantAnswer, str]:
        """Return the answer and its Server-Timing header."""
        payload = {"question": example.question, "context": example.context}
        headers = {"SLO-Latency-Ms": str(PATIENT_MS), "SLO-Variant": variant}
        async with self._client.post("/v1/answer", json=payload, headers=headers) as reply:
            reply.raise_for_status()
            body = await reply.json()
            timing = reply.headers["Server-Timing"]
        return VariantAnswer(body["answer"], body["start"], body["end"], body["variant"]), timing

    async def close(self) -> None:
        await self._client.close()


class GrpcAnswerClient:
    """bertier.v1.QuestionAnswering/Answer."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        stub = qa_pb2_grpc.QuestionAnsweringStub(self._channel)  # type: ignore[no-untyped-call]
        self._stub = stub

    async def ask(self, example: Example, variant: str) -> VariantAnswer:
        request = qa_pb2.AnswerRequest(question=example.question, context=example.context)
        metadata = (("slo-latency-ms", str(PATIENT_MS)), ("slo-variant", variant))
        reply = await self._stub.Answer(request, metadata=metadata)
        start = reply.start if reply.HasField("start") else None
        end = reply.end if reply.HasField("end") else None
        return VariantAnswer(reply.answer, start, end, reply.variant)

    async def close(self) -> None:
        await self._channel.close()


class OipAnswerClient:
    """The stock tritonclient, calling the gateway as if it were Triton."""

    def __init__(self, target: str) -> None:
        self._client = triton_grpc.InferenceServerClient(target)

    async def ask(self, example: Example, variant: str) -> VariantAnswer:
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
            return VariantAnswer(answer.decode(), None, None, by.decode())
        return VariantAnswer(answer.decode(), start, end, by.decode())

    async def close(self) -> None:
        await self._client.close()


def _text(name: str, text: str) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=object))
    return tensor


async def ask_all(examples: Sequence[Example], ask: Ask, concurrency: int) -> list[VariantAnswer]:
    """Return the answers to all questions, in order, `concurrency` at a time."""
    gate = asyncio.Semaphore(concurrency)

    async def one(example: Example) -> VariantAnswer:
        async with gate:
            return await ask(example)

    return list(await asyncio.gather(*(one(example) for example in examples)))
