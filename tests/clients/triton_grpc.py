"""tritonclient over gRPC: sync, callbacks and aio, a batch, SLO as parameters and metadata, configuration, statistics."""

from __future__ import annotations

import asyncio
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from tests.clients.asked import CONTEXT, QUESTION, SLO, addresses, check_answer, say

METADATA = {name.lower(): value for name, value in SLO.items()}


def tensors(n: int) -> list[grpc.InferInput]:
    inputs = []
    for name, text in (("question", QUESTION), ("context", CONTEXT)):
        tensor = grpc.InferInput(name, [n], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode()] * n, dtype=object))
        inputs.append(tensor)
    return inputs


def read(result: Any) -> list[tuple[str, int, int]]:
    columns = (result.as_numpy(name).tolist() for name in ("answer", "start", "end"))
    found = [(text.decode(), start, end) for text, start, end in zip(*columns, strict=True)]
    for each in found:
        check_answer(*each)
    return found


async def in_a_loop(address: str) -> None:
    async with grpc_aio.InferenceServerClient(address) as client:
        say("aio", read(await client.infer("qa", tensors(1), headers=METADATA)))


def main() -> None:
    address = addresses()[1]
    with grpc.InferenceServerClient(address) as client:
        say(
            "live, ready, model ready",
            (client.is_server_live(), client.is_server_ready(), client.is_model_ready("qa")),
        )
        say("metadata", client.get_model_metadata("qa").platform)
        say("config", client.get_model_config("qa").config.name)
        say("batch of 3", read(client.infer("qa", tensors(3), headers=METADATA, client_timeout=30)))
        as_parameters = {"slo_latency_ms": "5000", "slo_min_f1": "0.3"}
        say("SLO as parameters", read(client.infer("qa", tensors(1), parameters=as_parameters)))
        answered: Queue[tuple[Any, Any]] = Queue()
        client.async_infer("qa", tensors(1), lambda result, error: answered.put((result, error)))
        result, error = answered.get(timeout=30)
        assert error is None, error
        say("callback", read(result))
        stats = client.get_inference_statistics("qa").model_stats[0]
        say("inferences counted", stats.inference_count)
        try:
            client.infer("no-such-model", tensors(1))
        except InferenceServerException as refused:
            say("another model", refused)
        else:
            raise AssertionError("it was not refused")
    asyncio.run(in_a_loop(address))


main()
