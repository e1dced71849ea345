"""KServe's InferenceRESTClient and InferenceGRPCClient: health, readiness, inference, errors."""

from __future__ import annotations

import asyncio

from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, InferResponse
from kserve.inference_client import RESTConfig

from tests.clients.asked import CONTEXT, QUESTION, SLO, addresses, check_answer, say


def request() -> InferRequest:
    inputs = [
        InferInput("question", [1], "BYTES", [QUESTION]),
        InferInput("context", [1], "BYTES", [CONTEXT]),
    ]
    return InferRequest("qa", inputs)


def read(response: InferResponse) -> tuple[str, int, int]:
    # `as_numpy` reads tensors in either form; `data` is empty where they come raw, as Triton's do.
    found = {each.name: each.as_numpy()[0] for each in response.outputs}
    text = found["answer"].decode() if isinstance(found["answer"], bytes) else found["answer"]
    start, end = int(found["start"]), int(found["end"])
    check_answer(text, start, end)
    return text, start, end


async def over_rest(url: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    health = (
        await client.is_server_live(url),
        await client.is_server_ready(url),
        await client.is_model_ready(url, "qa"),
    )
    say("REST: live, ready, model ready", health)
    assert health == (True, True, True)
    headers: dict[str, str] = {}
    response = await client.infer(
        url, request(), model_name="qa", headers=SLO, response_headers=headers
    )
    say("REST: answer", read(response))
    say("REST: SLO-Met", headers.get("slo-met"))
    assert headers.get("slo-met")
    await client.close()


async def over_grpc(address: str) -> None:
    client = InferenceGRPCClient(address)
    health = (
        await client.is_server_live(),
        await client.is_server_ready(),
        await client.is_model_ready("qa"),
    )
    say("gRPC: live, ready, model ready", health)
    assert health == (True, True, True)
    metadata = [(name.lower(), value) for name, value in SLO.items()]
    say("gRPC: answer", read(await client.infer(request(), headers=metadata)))
    await client.close()


async def main() -> None:
    http_url, grpc_target = addresses()
    await over_rest(http_url)
    await over_grpc(grpc_target)


asyncio.run(main())
