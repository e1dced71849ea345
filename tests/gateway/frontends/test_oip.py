"""Stock Triton clients against the gateway's two frontends; only the model server is a fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from gateway.errors import BackendError, BackendUnavailable, Malformed
from gateway.frontends import oip_tensors
from tests import live
from tests.fakes import CONTEXT, QUESTION
from tests.live import Running

OTHER = "\u200b\u200bParis 🏛 is a city."  # no token begins before code point 2, byte 6


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with live.gateway() as running:
        yield running


class GrpcClient:
    """A stock client over gRPC."""

    module = triton_grpc

    def __init__(self, gateway: Running) -> None:
        self.client = triton_grpc.InferenceServerClient(gateway.grpc_url)

    def metadata(self) -> tuple[Any, Any]:
        server = self.client.get_server_metadata(as_json=True)
        return server, self.client.get_model_metadata("qa", as_json=True)

    def parameters(self, result: Any) -> dict[str, str]:
        return {k: v.string_param for k, v in result.get_response().parameters.items()}

    def inputs(self, questions: list[str], contexts: list[str]) -> list[Any]:
        return [self.input("question", questions), self.input("context", contexts)]

    def input(self, name: str, texts: list[str], **how: Any) -> Any:
        tensor = self.module.InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array([t.encode() for t in texts], dtype=object), **how)
        return tensor


class HttpClient(GrpcClient):
    """A stock client over HTTP, with the binary tensor extension."""

    module = triton_http

    def __init__(self, gateway: Running) -> None:
        self.client = triton_http.InferenceServerClient(gateway.http_url)

    def metadata(self) -> tuple[Any, Any]:
        return self.client.get_server_metadata(), self.client.get_model_metadata("qa")

    def parameters(self, result: Any) -> dict[str, str]:
        return dict(result.get_response()["parameters"])


class JsonClient(HttpClient):
    """A stock client over HTTP that wants everything as JSON."""

    def input(self, name: str, texts: list[str], **_: Any) -> Any:
        tensor = self.module.InferInput(name, [len(texts)], "BYTES")
        data = np.array([t.encode() for t in texts], dtype=object)
        tensor.set_data_from_numpy(data, binary_data=False)
        return tensor


CLIENTS = pytest.mark.parametrize("kind", [GrpcClient, HttpClient, JsonClient])


async def using(kind: type[GrpcClient], gateway: Running, work: Callable[[GrpcClient], Any]) -> Any:
    """Run a blocking client's work in a thread of its own, and close it there."""

    def run() -> Any:
        client = kind(gateway)
        try:
            return work(client)
        finally:
            client.client.close()

    return await asyncio.to_thread(run)


@CLIENTS
async def test_a_stock_client_sees_a_live_model(gateway: Running, kind: type[GrpcClient]) -> None:
    """Tools written for Triton ask these before anything else."""

    def look(own: GrpcClient) -> Any:
        client = own.client
        ready = client.is_server_live(), client.is_server_ready(), client.is_model_ready("qa")
        return (*ready, client.is_model_ready("qa", "1"), own.metadata())

    *ready, (server, model) = await using(kind, gateway, look)
    assert ready == [True, True, True, True]
    assert server["name"] == "bertier"
    assert [tensor["name"] for tensor in model["inputs"]] == ["question", "context"]
    assert {t["name"]: t["datatype"] for t in model["outputs"]} == {
        "answer": "BYTES",
        "score": "FP32",
        "start": "INT32",
        "end": "INT32",
        "variant": "BYTES",
    }


@CLIENTS
async def test_a_stock_client_reads_configuration_and_statistics(
    gateway: Running, kind: type[GrpcClient]
) -> None:
    """perf_analyzer and model browsers ask for both before they send anything."""

    def look(own: GrpcClient) -> Any:
        client, how = own.client, {"as_json": True} if kind is GrpcClient else {}
        inputs = own.inputs([QUESTION] * 3, [CONTEXT] * 3)
        client.infer("qa", inputs)
        with pytest.raises(InferenceServerException):
            client.infer("qa", own.inputs([""], [CONTEXT]))
        config = client.get_model_config("qa", "1", **how)
        stats = [client.get_inference_statistics(name, **how) for name in ("qa", "")]
        return config.get("config", config), stats

    config, (stats, of_all) = await using(kind, gateway, look)
    assert config["name"] == "qa"
    assert [(each["name"], each["data_type"]) for each in config["input"]] == [
        ("question", "TYPE_STRING"),
        ("context", "TYPE_STRING"),
    ]
    assert {each["name"]: each["data_type"] for each in config["output"]} == {
        "answer": "TYPE_STRING",
        "score": "TYPE_FP32",
        "start": "TYPE_INT32",
        "end": "TYPE_INT32",
        "variant": "TYPE_STRING",
    }
    assert of_all == stats
    (statistics,) = stats["model_stats"]
    assert (statistics["name"], int(statistics["inference_count"])) == ("qa", 3)
    spent = statistics["inference_stats"]
    assert [int(spent[name]["count"]) for name in ("success", "fail", "queue")] == [3, 1, 3]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert int(spent["success"]["ns"]) == sum(int(spent[name].get("ns", 0)) for name in parts) > 0


@CLIENTS
async def test_a_gateway_without_its_backend_is_not_ready(
    gateway: Running, kind: type[GrpcClient]
) -> None:
    """Live but not ready: restart nothing, send nothing."""
    gateway.backend.error = BackendUnavailable("gone")
    live, ready = await using(
        kind, gateway, lambda own: (own.client.is_server_live(), own.client.is_server_ready())
    )
    assert (live, ready) == (True, False)


@CLIENTS
async def test_a_stock_client_gets_answers(gateway: Running, kind: type[GrpcClient]) -> None:
    """Offsets are code points, whatever the text's encoding costs in bytes."""

    def infer(own: GrpcClient) -> Any:
        inputs = own.inputs([QUESTION, "What is it?"], [CONTEXT, OTHER])
        return own.client.infer("qa", inputs, request_id="r1")

    result = await using(kind, gateway, infer)
    assert [text.decode() for text in _bytes(result, "answer")] == ["The", "Paris"]
    assert result.as_numpy("start").tolist() == [0, 2]
    assert result.as_numpy("end").tolist() == [3, 7]
    assert result.as_numpy("start").dtype == np.int32
    assert result.as_numpy("score").dtype == np.float32
    assert [text.decode() for text in _bytes(result, "variant")] == ["large", "large"]


@CLIENTS
async def test_the_decision_on_each_item_is_a_parameter(
    gateway: Running, kind: type[GrpcClient]
) -> None:
    """The protocol has no other place for it; a stock client reads it as text."""

    def infer(own: GrpcClient) -> Any:
        inputs = own.inputs([QUESTION, "What is it?"], [CONTEXT, OTHER])
        asked = {"slo_explain": "1", "slo_min_f1": "0.6"}
        return own.parameters(own.client.infer("qa", inputs, parameters=asked))

    parameters = await using(kind, gateway, infer)
    for explained in json.loads(parameters["slo_explanation"]):
        assert explained["reason"] == "meets_slo"
        assert {o["plan"]: o["rejection_reasons"] for o in explained["options"]} == {
            "small": ["below-floor"],
            "large": [],
        }


def _bytes(result: Any, name: str) -> list[bytes]:
    found = result.as_numpy(name)
    return [item if isinstance(item, bytes) else str(item).encode() for item in found]


@CLIENTS
async def test_an_unanswerable_question_has_offsets_of_minus_one(
    gateway: Running, kind: type[GrpcClient]
) -> None:
    """A tensor has no way to leave a value out."""
    gateway.backend.answerable = False
    result = await using(
        kind, gateway, lambda own: own.client.infer("qa", own.inputs([QUESTION], [CONTEXT]))
    )
    assert _bytes(result, "answer") == [b""]
    assert (result.as_numpy("start")[0], result.as_numpy("end")[0]) == (-1, -1)


@CLIENTS
async def test_only_the_outputs_asked_for_are_sent(
    gateway: Running, kind: type[GrpcClient]
) -> None:
    """In the order they were asked for."""

    def infer(own: GrpcClient) -> Any:
        outputs = [own.module.InferRequestedOutput(name) for name in ("end", "answer")]
        return own.client.infer("qa", own.inputs([QUESTION], [CONTEXT]), outputs=outputs)

    result = await using(kind, gateway, infer)
    assert result.as_numpy("score") is None
    assert result.as_numpy("end").tolist() == [3]
    assert _bytes(result, "answer") == [b"The"]


@CLIENTS
@pytest.mark.parametrize("value", [0.3, "0.3"])
async def test_parameters_win_over_headers(
    gateway: Running, kind: type[GrpcClient], value: object
) -> None:
    """What the message says is meant for it; a header may be a proxy's default."""

    def infer(own: GrpcClient) -> Any:
        inputs = own.inputs([QUESTION], [CONTEXT])
        by_header = own.client.infer("qa", inputs, headers={"slo-min-f1": "0.2"})
        both = {"slo_min_f1": value, "slo_latency_ms": 60}
        by_both = own.client.infer(
            "qa", inputs, headers={"slo-min-f1": "0.6"}, parameters=both, priority=1
        )
        return _bytes(by_header, "variant"), _bytes(by_both, "variant"), own.parameters(by_both)

    by_header, by_both, parameters = await using(kind, gateway, infer)
    assert by_header == by_both == [b"small"]
    assert (parameters["slo_met"], parameters["slo_plan"]) == ("true", "small")


@CLIENTS
@pytest.mark.parametrize(
    ("more", "message", "status"),
    [
        ({"parameters": {"slo_min_f1": 7.0}}, "SLO-Min-F1", "INVALID_ARGUMENT 400"),
        (
            {"parameters": {"slo_min_answerable_f1": 2}},
            "SLO-Min-Answerable-F1",
            "INVALID_ARGUMENT 400",
        ),
        ({"parameters": {"slo_max_f1_loss": -1}}, "SLO-Max-F1-Loss", "INVALID_ARGUMENT 400"),
        ({"parameters": {"slo_minf1": 0.5}}, "slo-minf1", "INVALID_ARGUMENT 400"),
        ({"parameters": {"slo_class": "nobody"}}, "SLO-Class", "INVALID_ARGUMENT 400"),
        ({"priority": 9}, "u=0 to u=7", "INVALID_ARGUMENT 400"),
        ({"model": "bert"}, "'qa'", "NOT_FOUND 404"),
        ({"model_version": "2"}, "'1'", "NOT_FOUND 404"),
        ({"questions": ["a", "b"]}, "1 elements, question has 2", "INVALID_ARGUMENT 422"),
        (
            {"questions": ["a"] * 1025, "contexts": ["a"] * 1025},
            "1025 items, the limit is 1024",
            "INVALID_ARGUMENT 413",
        ),
        ({"parameters": {"slo_latency_ms": True}}, "slo_latency_ms", "INVALID_ARGUMENT 400"),
        ({"questions": ["a", " "], "contexts": ["a", "b"]}, "item 1", "INVALID_ARGUMENT 422"),
        (
            {"parameters": {"slo_policy": "strict", "slo_min_f1": 0.99}},
            "no plan",
            "FAILED_PRECONDITION 422",
        ),
    ],
)
async def test_a_stock_client_reads_what_is_wrong(
    gateway: Running, kind: type[GrpcClient], more: dict[str, Any], message: str, status: str
) -> None:
    """The client raises its own error, with our text and status in it."""
    questions, contexts = more.get("questions", [QUESTION]), more.get("contexts", [CONTEXT])
    rest = {k: v for k, v in more.items() if k not in ("questions", "contexts", "model")}

    def infer(own: GrpcClient) -> Any:
        inputs = own.inputs(questions, contexts)
        with pytest.raises(InferenceServerException) as caught:
            own.client.infer(more.get("model", "qa"), inputs, **rest)
        return caught.value

    error = await using(kind, gateway, infer)
    assert message in error.message()
    assert error.status().removeprefix("StatusCode.") in status.split()


async def test_tritons_timeout_is_the_deadline(gateway: Running) -> None:
    """A stock client says it in microseconds."""
    gateway.backend.gate = asyncio.Event()

    def infer(own: GrpcClient) -> Any:
        with pytest.raises(InferenceServerException) as caught:
            own.client.infer("qa", own.inputs([QUESTION], [CONTEXT]), timeout=100_000)
        return caught.value

    error = await using(GrpcClient, gateway, infer)
    assert "DEADLINE_EXCEEDED" in error.status()
    assert "100 ms" in error.message()


async def test_a_failing_item_cancels_the_others(gateway: Running) -> None:
    """Nobody will read their answers."""
    gateway.backend.gate = asyncio.Event()

    def infer(own: GrpcClient) -> Any:
        inputs = own.inputs([QUESTION, " "], [CONTEXT, CONTEXT])
        with pytest.raises(InferenceServerException):
            own.client.infer("qa", inputs)

    await using(GrpcClient, gateway, infer)
    await gateway.backend.until_cancelled(1)
    assert gateway.backend.cancelled == 1


async def test_a_stock_stream_gets_answers_in_order(gateway: Running) -> None:
    """Failures come as responses, as Triton sends them."""

    def stream(own: GrpcClient) -> list[tuple[Any, Any]]:
        replies: list[tuple[Any, Any]] = []
        own.client.start_stream(lambda result, error: replies.append((result, error)))
        for question in (QUESTION, " ", QUESTION):
            own.client.async_stream_infer("qa", own.inputs([question], [CONTEXT]))
        own.client.stop_stream()
        return replies

    first, second, third = await using(GrpcClient, gateway, stream)
    assert _bytes(first[0], "answer") == _bytes(third[0], "answer") == [b"The"]
    assert "question" in second[1].message()


async def test_an_internal_cause_is_hidden(gateway: Running) -> None:
    """The same fixed text as on every other way in."""
    gateway.backend.error = BackendError("secret")

    def infer(own: GrpcClient) -> Any:
        with pytest.raises(InferenceServerException) as caught:
            own.client.infer("qa", own.inputs([QUESTION], [CONTEXT]))
        return caught.value

    for kind in (GrpcClient, HttpClient):
        error = await using(kind, gateway, infer)
        assert "secret" not in error.message()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"inputs": []}, 422),
        ({"inputs": "many"}, 422),
        ({"unknown": 1}, 422),
        ({"inputs": [{"name": "question", "datatype": "FP32", "shape": [1], "data": [1]}]}, 422),
        ({"inputs": [{"name": "question", "datatype": "BYTES", "shape": [2], "data": ["a"]}]}, 422),
        ({"inputs": [{"name": "question", "datatype": "BYTES", "shape": [1], "data": [1]}]}, 422),
        ({"outputs": [{"name": "logits"}]}, 422),
        ({"parameters": {"timeout": -1}}, 422),
        ({"parameters": {"slo_latency_ms": None}}, 400),
    ],
)
async def test_a_bad_body_is_refused(gateway: Running, change: dict[str, Any], status: int) -> None:
    """Each with the status of its cause, and with Triton's word for the text."""
    async with httpx2.AsyncClient(base_url=f"http://{gateway.http_url}") as client:
        reply = await client.post("/v2/models/qa/infer", json=_body() | change)
        assert reply.status_code == status, reply.text
        assert reply.json()["error"] == reply.json()["detail"]
        patient = {"SLO-Latency-Ms": "10000"}
        good = await client.post("/v2/models/qa/infer", json=_body(), headers=patient)
        assert good.json()["outputs"][0]["data"] == ["The"]
        assert good.headers["slo-met"] == "true"


@pytest.mark.parametrize("length", ["-1", "x", "9999", "3", "9" * 5_000])
async def test_a_bad_header_length_is_refused(gateway: Running, length: str) -> None:
    """It says where the binary data begins, and may say anything."""
    async with httpx2.AsyncClient(base_url=f"http://{gateway.http_url}") as client:
        headers = {"Inference-Header-Content-Length": length}
        reply = await client.post("/v2/models/qa/infer", json=_body(), headers=headers)
        assert reply.status_code == 400


def _body() -> dict[str, Any]:
    pairs = (("question", QUESTION), ("context", CONTEXT))
    return {
        "inputs": [
            {"name": name, "datatype": "BYTES", "shape": [1], "data": [text]}
            for name, text in pairs
        ]
    }


async def test_typed_contents_are_read_like_raw_ones(gateway: Running) -> None:
    """Clients generated from the .proto fill `contents`; stock ones send raw bytes."""
    request = triton_grpc.service_pb2.ModelInferRequest(model_name="qa")
    for name, text in (("question", QUESTION), ("context", CONTEXT)):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(text.encode())
    async with grpc.aio.insecure_channel(gateway.grpc_url) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            triton_grpc.service_pb2.ModelInferRequest.SerializeToString,
            triton_grpc.service_pb2.ModelInferResponse.FromString,
        )
        response = await infer(request)
        assert oip_tensors.unpack_texts("answer", response.raw_output_contents[0]) == [b"The"]

        request.inputs[0].contents.bytes_contents[0] = b"\xff"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "question[0]" in str(caught.value.details())


async def test_every_way_in_counts_its_requests(gateway: Running) -> None:
    """The protocol's requests are requests like any other."""
    for kind in (GrpcClient, HttpClient):
        await using(
            kind, gateway, lambda own: own.client.infer("qa", own.inputs([QUESTION], [CONTEXT]))
        )
    for frontend in ("grpc", "http"):
        labels = {"frontend": frontend, "slo_class": "standard", "task": "qa", "outcome": "ok"}
        registry = gateway.service.metrics.registry
        assert registry.get_sample_value("bertier_requests_total", labels) == 1


@pytest.mark.parametrize("raw", [b"\x01", b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xff"])
def test_raw_data_that_ends_too_soon_is_malformed(raw: bytes) -> None:
    """A length in the data is the caller's word, not the data's size."""
    with pytest.raises(Malformed):
        oip_tensors.unpack_texts("question", raw)


async def test_kserves_client_reads_the_health_it_looks_for(gateway: Running) -> None:
    """It takes an empty body for a failure."""
    async with httpx2.AsyncClient(base_url=f"http://{gateway.http_url}") as http:
        assert (await http.get("/v2/health/live")).json() == {"live": True}
        assert (await http.get("/v2/health/ready")).json() == {"ready": True}
        assert (await http.get("/v2/models/qa/ready")).json() == {"name": "qa", "ready": True}
        gateway.backend.error = BackendUnavailable("gone")
        ready = await http.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False})


@pytest.mark.parametrize(
    ("own", "status"), [({"model_name": "qa"}, 200), ({"model_name": "x"}, 422)]
)
async def test_the_model_may_be_named_in_the_body_too(
    gateway: Running, own: dict[str, str], status: int
) -> None:
    """KServe's client repeats it there; another one than the path's would be a mistake."""
    texts = {"question": QUESTION, "context": CONTEXT}
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [text]}
        for name, text in texts.items()
    ]
    async with httpx2.AsyncClient(base_url=f"http://{gateway.http_url}") as http:
        reply = await http.post("/v2/models/qa/infer", json={"inputs": inputs, **own})
    assert reply.status_code == status
