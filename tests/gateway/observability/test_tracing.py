"""Traces, as a collector receives them over OTLP."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import aiohttp
import grpc
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from tritonclient.grpc import service_pb2 as triton_pb
from tritonclient.grpc import service_pb2_grpc as triton_service

from gateway.backends.triton import TritonBackend
from gateway.catalog.schema import Decoding
from gateway.domain import Question
from gateway.errors import BackendError
from gateway.frontends.grpc import call
from gateway.observability import tracing
from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc
from tests import collector, live
from tests.collector import Collector, attributes
from tests.fakes import (
    CONTEXT,
    QUESTION,
    encoder,
    make_cascade,
    make_catalog,
    make_variant,
    serving_set,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
QUESTION_BODY = {"question": QUESTION, "context": CONTEXT}


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Send traces to a collector, over the protocol that is the default."""
    with collector.over_http() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        assert tracing.start("1.2.3")
        yield running
        tracing.stop()


async def flush() -> None:
    """Have everything sent; the event loop is free meanwhile."""
    await asyncio.to_thread(tracing.stop)


async def ask(running: live.Running, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as http:
        url = f"http://{running.http_url}/v1/answer"
        async with http.post(url, json=QUESTION_BODY, headers=named) as response:
            await response.read()
            return response.status


async def test_a_request_is_a_span_with_one_of_each_stage_below_it(collected: Collector) -> None:
    """Where the time of a slow request went can be read off its trace."""
    async with live.gateway() as running:
        assert await ask(running, SLO_Min_F1="0.6", SLO_Class="batch") == 200
    await flush()
    (request,) = collected.spans("answer")
    stages = [span for span in collected.spans() if span is not request]
    assert [span.name for span in stages] == ["tokenize", "route", "infer", "queue", "decode"]
    infer = stages[2]
    for stage in stages:
        parent = infer if stage.name == "queue" else request
        assert (stage.trace_id, stage.parent_span_id) == (request.trace_id, parent.span_id)
        assert request.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.end_time_unix_nano <= request.end_time_unix_nano
    assert collected.resource()["service.name"] == "bertier"
    assert collected.resource()["service.version"] == "1.2.3"


async def test_the_request_span_has_the_slo_the_choice_and_the_outcome(
    collected: Collector,
) -> None:
    """Traces can be searched by SLO, plan and outcome."""
    async with live.gateway() as running:
        await ask(running, SLO_Min_F1="0.6", SLO_Class="batch", X_Request_Id="r-1")
    await flush()
    said = attributes(collected.spans("answer")[0])
    assert said.pop("bertier.predicted_ms") > 0
    assert said == {
        "bertier.frontend": "http",
        "bertier.request_id": "r-1",
        "bertier.slo.class": "batch",
        "bertier.slo.latency_ms": 5000.0,
        "bertier.slo.min_f1": 0.6,
        "bertier.slo.policy": "prefer-accuracy",
        "bertier.slo.met": "true",
        "bertier.bucket_tokens": 64,
        "bertier.windows": 1,
        "bertier.reason": "meets_slo",
        "bertier.plan": "large",
        "bertier.variant": "large",
        "bertier.certified_f1": 0.7,
        "bertier.outcome": "ok",
    }
    assert attributes(collected.spans("infer")[0]) == {"bertier.variant": "large"}


async def test_the_callers_context_comes_in_over_both_frontends(collected: Collector) -> None:
    """A trace continues from the caller into the gateway."""
    question = qa_pb2.AnswerRequest(question=QUESTION, context=CONTEXT)
    async with live.gateway() as running:
        await ask(running, traceparent=PARENT)
        async with grpc.aio.insecure_channel(running.grpc_url) as channel:
            stub = qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]
            await stub.Answer(question, metadata=(("traceparent", PARENT),))
    await flush()
    requests = collected.spans("answer")
    assert [attributes(span)["bertier.frontend"] for span in requests] == ["http", "grpc"]
    assert {(s.trace_id.hex(), s.parent_span_id.hex()) for s in requests} == {(TRACE, SPAN)}


async def test_each_item_of_a_list_is_a_request_of_its_own(collected: Collector) -> None:
    """One slow item can be distinguished from its neighbours."""
    async with live.gateway() as running, aiohttp.ClientSession() as http:
        url = f"http://{running.http_url}/v1/answers"
        async with http.post(
            url, json=[QUESTION_BODY] * 3, headers={"traceparent": PARENT}
        ) as response:
            await response.read()
    await flush()
    requests = collected.spans("answer")
    assert {span.parent_span_id.hex() for span in requests} == {SPAN}
    assert {s.parent_span_id for s in collected.spans("infer")} == {s.span_id for s in requests}


async def test_an_escalation_adds_the_stages_of_the_next_variant(collected: Collector) -> None:
    """What a second opinion cost can be seen apart from the first."""
    doubting = replace(
        make_variant("small", 5),
        decoding=Decoding(null_threshold=100.0, score_weights=((-2.0, 0.0, 0.0),) * 2),
    )
    large = make_variant("large", 20)
    cascade = make_cascade((doubting, large), 0.9, threshold=0.5, reach=(1.0, 0.2))
    catalog = make_catalog([doubting, large], [0.5, 0.7])
    async with live.gateway() as running:
        running.service.serving = serving_set(replace(catalog, plans=(*catalog.plans, cascade)))
        assert await ask(running, SLO_Min_F1="0.85", SLO_Class="batch") == 200
    await flush()
    asked = [attributes(span)["bertier.variant"] for span in collected.spans("infer")]
    decoded = [attributes(span)["bertier.variant"] for span in collected.spans("decode")]
    assert asked == decoded == ["small", "large"]


class Recorder(triton_service.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A model server that keeps the metadata of what it is asked."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str]] = []

    async def ModelInfer(  # noqa: N802
        self, request: triton_pb.ModelInferRequest, context: call.Context
    ) -> triton_pb.ModelInferResponse:
        self.metadata.append(
            {key: str(value) for key, value in context.invocation_metadata() or ()}
        )
        shape = request.inputs[0].shape
        reply = triton_pb.ModelInferResponse(model_name=request.model_name)
        for name in ("start_logits", "end_logits"):
            reply.outputs.add(name=name, datatype="FP32", shape=shape)
            reply.raw_output_contents.append(np.zeros(shape, np.float32).tobytes())
        return reply


async def test_triton_gets_the_span_of_the_inference(collected: Collector) -> None:
    """Triton's own trace of the request then hangs below ours."""
    recorder, server = Recorder(), grpc.aio.server()
    triton_service.add_GRPCInferenceServiceServicer_to_server(recorder, server)
    backend = TritonBackend(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    tracing.receive(PARENT, "vendor=1")
    windows = encoder().encode(Question(QUESTION, CONTEXT))
    with tracing.request("http", "r-1"), tracing.stage("infer", "small"):
        await backend.infer(make_variant("small", 5), windows, 10_000)
    await backend.close()
    await server.stop(None)
    await flush()
    (infer,) = collected.spans("infer")
    (metadata,) = recorder.metadata
    assert metadata["traceparent"] == f"00-{TRACE}-{infer.span_id.hex()}-01"
    assert metadata["tracestate"] == "vendor=1"


async def test_a_failure_marks_its_spans_and_tells_no_text(collected: Collector) -> None:
    """Errors are found by their kind; what was asked is nobody's business."""
    async with live.gateway() as running:
        running.backend.error = BackendError(f"broke on {CONTEXT}")
        assert await ask(running) == 500
    await flush()
    (request,) = collected.spans("answer")
    assert attributes(request)["bertier.outcome"] == "backend-error"
    assert request.status.code == Status.STATUS_CODE_ERROR
    assert attributes(collected.spans("infer")[0])["error.type"] == "BackendError"
    sent = b"".join(each.SerializeToString() for each in collected.requests)
    assert b"Normans" not in sent
    assert b"Normandy" not in sent


async def test_what_the_caller_got_wrong_is_no_error_of_ours(collected: Collector) -> None:
    """A dashboard of failed traces must not fill with bad requests."""
    async with live.gateway() as running:
        assert await ask(running, SLO_Min_F1="much") == 400
    await flush()
    (request,) = collected.spans("answer")
    assert attributes(request)["bertier.outcome"] == "invalid-header"
    assert request.status.code == Status.STATUS_CODE_UNSET


async def test_without_a_caller_the_exemplar_is_our_own_trace(collected: Collector) -> None:
    """From a slow bucket one click leads to the trace."""
    async with live.gateway() as running, aiohttp.ClientSession() as http:
        await ask(running)
        headers = {"accept": "application/openmetrics-text"}
        async with http.get(f"http://{running.http_url}/metrics", headers=headers) as response:
            text = await response.text()
    await flush()
    assert f'# {{trace_id="{collected.spans("answer")[0].trace_id.hex()}"}}' in text


async def test_spans_go_over_grpc_when_that_is_the_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both protocols of the standard are common."""
    with collector.over_grpc() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "qa-eu")
        assert tracing.start("1.2.3")
        with tracing.request("http", "r-1"):
            pass
        await flush()
        assert len(running.spans("answer")) == 1
        assert running.resource()["service.name"] == "qa-eu"


async def test_a_collector_that_is_away_costs_spans_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Questions are answered, memory stays bounded, the log stays readable, and the end is prompt."""
    with collector.over_http() as gone:
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", gone.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    assert tracing.start("1.2.3")
    async with live.gateway() as running:
        assert {await ask(running) for _ in range(20)} == {200}
    await flush()
    description = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(description) == 1
    assert "trace collector" in description[0]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "carrier-pigeon"),
    ],
)
def test_what_cannot_be_used_is_logged_and_questions_are_answered_without(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
    says: str,
) -> None:
    """A typing error in a variable of traces must not stop the service."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    assert not tracing.start("1.2.3")
    assert says in caplog.text


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_the_standard_variables_switch_traces_off(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """An operator who knows OpenTelemetry knows these."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    assert not tracing.start("1.2.3")
    assert tracing.outgoing() is None


def test_serving_without_traces_never_imports_the_sdk() -> None:
    """The extra is optional, and what is off costs nothing."""
    code = "import sys, gateway.app; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
