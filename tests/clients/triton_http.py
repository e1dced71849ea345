"""tritonclient over HTTP: sync and aio, binary and JSON tensors, a batch, configuration, statistics, errors."""

from __future__ import annotations

import asyncio

import numpy as np
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

from tests.clients.asked import CONTEXT, QUESTION, SLO, addresses, check_answer, say

OUTPUTS = ("answer", "score", "start", "end", "variant")


# `infer` writes the length of its own JSON into the headers it is given: each call gets a copy.


def tensors(
    n: int, *, binary: bool
) -> tuple[list[http.InferInput], list[http.InferRequestedOutput]]:
    inputs = []
    for name, text in (("question", QUESTION), ("context", CONTEXT)):
        tensor = http.InferInput(name, [n], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode()] * n, dtype=object), binary_data=binary)
        inputs.append(tensor)
    return inputs, [http.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]


def read(result: http.InferResult) -> list[tuple[str, int, int]]:
    columns = (result.as_numpy(name).tolist() for name in ("answer", "start", "end"))
    found = []
    for text, start, end in zip(*columns, strict=True):
        answer = text.decode() if isinstance(text, bytes) else text
        check_answer(answer, start, end)
        found.append((answer, start, end))
    return found


async def in_a_loop(address: str) -> None:
    async with http_aio.InferenceServerClient(address) as client:
        inputs, outputs = tensors(1, binary=True)
        result = await client.infer("qa", inputs, outputs=outputs, headers=dict(SLO))
        say("aio", read(result))


def main() -> None:
    address = addresses()[0].removeprefix("http://")
    with http.InferenceServerClient(address) as client:
        say(
            "live, ready, model ready",
            (client.is_server_live(), client.is_server_ready(), client.is_model_ready("qa")),
        )
        say("metadata", client.get_model_metadata("qa")["platform"])
        say("config", client.get_model_config("qa")["name"])
        for binary in (True, False):
            inputs, outputs = tensors(3, binary=binary)
            result = client.infer("qa", inputs, outputs=outputs, headers=dict(SLO), request_id="r1")
            assert result.get_response()["id"] == "r1"
            say(f"batch of 3, {'binary' if binary else 'JSON'}", read(result))
        inputs, outputs = tensors(1, binary=True)
        pending = client.async_infer("qa", inputs, outputs=outputs, headers=dict(SLO))
        say("async_infer", read(pending.get_result()))
        for coding in ("gzip", "deflate"):
            result = client.infer(
                "qa",
                inputs,
                outputs=outputs,
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            say(f"compressed with {coding}", read(result))
        stats = client.get_inference_statistics("qa")["model_stats"][0]
        say("inferences counted", stats["inference_count"])
        assert int(stats["inference_count"]) >= 8
        try:
            client.infer("qa", inputs, headers={"SLO-Latency-Ms": "never"})
        except InferenceServerException as refused:
            say("a header that is wrong", refused)
        else:
            raise AssertionError("it was not refused")
    asyncio.run(in_a_loop(address))


main()
