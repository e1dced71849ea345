"""The gRPC frontend against a real client on a real port; only the model server is a fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.clock import now_ms
from gateway.domain import Size, Trust
from gateway.errors import BackendError, BackendUnavailable, BertierError, EmptyText, InvalidLogits
from gateway.frontends.grpc import call as grpc_call
from gateway.frontends.grpc import oip, qa, server
from gateway.observability.metrics import Metrics
from gateway.proto import generate
from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc
from gateway.request.service import AnswerService
from gateway.settings import SettingsError
from tests import live
from tests.fakes import CONTEXT, QUESTION, patient, serving_set, small_and_large
from tests.watched import WatchedBackend


@dataclass
class Running:
    """A gateway on a free port, and a client of it."""

    service: AnswerService
    backend: WatchedBackend
    grpc_server: server.GrpcServer
    channel: grpc.aio.Channel

    @property
    def stub(self) -> qa_pb2_grpc.QuestionAnsweringStub:
        return qa_pb2_grpc.QuestionAnsweringStub(self.channel)  # type: ignore[no-untyped-call]

    def counted(self, outcome: str, slo_class: str = "standard") -> float | None:
        labels = {"frontend": "grpc", "slo_class": slo_class, "task": "qa", "outcome": outcome}
        registry = self.service.metrics.registry
        return registry.get_sample_value("bertier_requests_total", labels)


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    backend = WatchedBackend()
    service = AnswerService(backend, patient(grpc_port=0, max_concurrent_items=2), Metrics())
    service.serving = serving_set(small_and_large())
    grpc_server = await server.start(service, service.settings)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_server.port}") as channel:
        yield Running(service, backend, grpc_server, channel)
    await server.stop(grpc_server, 0)


def ask(**more: Any) -> qa_pb2.AnswerRequest:
    return qa_pb2.AnswerRequest(**{"question": QUESTION, "context": CONTEXT, **more})


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def trailing(error: grpc.aio.AioRpcError) -> dict[str, str]:
    return dict(error.trailing_metadata())


async def test_an_answer_comes_with_its_slo(gateway: Running) -> None:
    """The message and the initial metadata say which plan answered, and whether it met the SLO."""
    call = gateway.stub.Answer(
        ask(id="q1", top_k=3), metadata=(("slo-min-f1", "0.6"), ("x-request-id", "abc"))
    )
    response = await call
    metadata = dict(await call.initial_metadata())

    assert (response.id, response.answer, response.start, response.end) == ("q1", "The", 0, 3)
    assert (response.plan, response.variant, response.slo.met) == ("large", "large", "true")
    assert response.alternatives[0].answer == CONTEXT[: response.alternatives[0].end]
    assert metadata["slo-plan"] == metadata["slo-variant"] == "large"
    assert metadata["slo-f1"] == "0.7000"
    assert metadata["slo-met"] == "true"
    assert metadata["server-timing"].startswith("tokenize;dur=")
    assert metadata["x-request-id"] == "abc"
    assert gateway.counted("ok") == 1


async def test_an_unanswerable_question_has_no_offsets(gateway: Running) -> None:
    """Offset 0 is a place; the absence of a field is not."""
    gateway.backend.answerable = False
    response = await gateway.stub.Answer(ask())
    assert response.answer == ""
    assert not response.HasField("start")
    assert not response.HasField("end")


async def test_the_message_overrides_the_metadata(gateway: Running) -> None:
    """What a caller says of one question is meant for it."""
    slo = qa_pb2.SloRequest(min_f1=0.3, slo_class="batch", explain=True)
    response = await gateway.stub.Answer(ask(slo=slo), metadata=(("slo-min-f1", "0.6"),))
    assert (response.plan, response.slo.slo_class) == ("small", "batch")
    assert response.explain.reason == "meets_slo"
    assert [o.plan for o in response.explain.options if o.chosen] == ["small"]
    assert response.explain.quantile == 0.95
    for option in response.explain.options:
        assert 0 < option.p50_ms < option.p95_ms < option.p99_ms
        assert option.wait_ms >= 0


async def test_a_loss_can_be_asked_for_in_the_message(gateway: Running) -> None:
    """By the name of the header in snake case; a catalog without such certificates says so."""
    slo = qa_pb2.SloRequest(max_f1_loss=0.1, min_answerable_f1=0.3)
    response = await gateway.stub.Answer(ask(slo=slo))
    assert (response.slo.max_f1_loss, response.slo.met) == (0.1, "uncertified")
    assert not response.slo.HasField("certified_f1_loss")
    assert response.slo.min_answerable_f1 == 0.3
    assert not response.slo.HasField("certified_answerable_f1")


@pytest.mark.parametrize(
    ("metadata", "request_"),
    [
        ((("slo-min-f1", "nan"),), ask()),
        ((("slo-latency-ms", "-1"),), ask()),
        ((("slo-latency-ms", "50"), ("slo-latency-ms", "60")), ask()),
        ((("slo-class", "nobody"),), ask()),
        ((("slo-variant", "nobody"),), ask()),
        ((), ask(slo=qa_pb2.SloRequest(latency_ms=float("inf")))),
        ((), ask(slo=qa_pb2.SloRequest(min_f1=-0.1))),
        ((), ask(slo=qa_pb2.SloRequest(priority=8))),
        ((), ask(question=" ")),
        ((), ask(context="")),
        ((), ask(context="a" * 100_001)),
        ((), ask(top_k=0)),
        ((), ask(id="i" * 300)),
    ],
)
async def test_bad_input_is_an_invalid_argument(
    gateway: Running, metadata: tuple[tuple[str, str], ...], request_: qa_pb2.AnswerRequest
) -> None:
    """Nothing is clamped in silence, and the next request works."""
    error = await failure(gateway.stub.Answer(request_, metadata=metadata))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailing(error)["x-request-id"]
    assert (await gateway.stub.Answer(ask())).answer == "The"


async def test_text_that_is_not_utf8_is_an_invalid_argument(gateway: Running) -> None:
    """protobuf refuses it before a servicer sees it; the caller must not read INTERNAL."""
    raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = gateway.channel.unary_unary(
        f"/{qa.SERVICE.full_name}/Answer"
    )
    error = await failure(raw(b"\x0a\x02\xff\xfe"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in str(error.details())
    assert trailing(error)["error-type"] == "malformed"


async def test_an_unknown_class_is_counted_under_one_label(gateway: Running) -> None:
    """A caller must not be able to make metrics without end."""
    await failure(gateway.stub.Answer(ask(), metadata=(("slo-class", "nobody"),)))
    assert gateway.counted("unknown-class", "unknown") == 1


async def test_a_header_and_its_alias_are_one(gateway: Running) -> None:
    """Two values for one SLO field have no meaning, however they are spelled."""
    metadata = (("slo-latency-ms", "50"), ("x-slo-latency-ms", "500"))
    error = await failure(gateway.stub.Answer(ask(), metadata=metadata))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "sent twice" in str(error.details())


async def test_a_misspelt_slo_is_refused(gateway: Running) -> None:
    """Answered under a default, the caller would believe it was kept."""
    error = await failure(gateway.stub.Answer(ask(), metadata=(("slo-latency", "50"),)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "slo-latency-ms" in str(error.details())


async def test_only_answers_are_counted(gateway: Running) -> None:
    """Plans and health checks are fast, and would hide slow answers in the histogram."""
    await gateway.stub.Plan(qa_pb2.PlanRequest())
    assert gateway.counted("ok") is None
    await gateway.stub.Answer(ask())
    assert gateway.counted("ok") == 1


async def test_an_infeasible_slo_names_what_is_feasible(gateway: Running) -> None:
    """The caller learns which SLO is feasible."""
    metadata = (("slo-policy", "strict"), ("slo-min-f1", "0.99"))
    error = await failure(gateway.stub.Answer(ask(), metadata=metadata))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    nearest = json.loads(trailing(error)["slo-nearest"])
    assert {"small", "large"} == {point["plan"] for point in nearest}


async def test_a_shed_request_learns_when_to_retry(gateway: Running) -> None:
    """gRFC A6: clients with a retry policy wait as long as the metadata says."""
    metadata = (("slo-policy", "strict"), ("slo-latency-ms", "60"), ("slo-min-f1", "0.6"))
    assert gateway.service.serving is not None
    for _ in range(60):
        gateway.service.serving.latency.begin("large", Size(64, 1), now_ms())

    error = await failure(gateway.stub.Answer(ask(), metadata=metadata))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(trailing(error)["grpc-retry-pushback-ms"]) > 0


async def test_the_grpc_deadline_is_the_requests(gateway: Running) -> None:
    """The tightest deadline ends the request, and the work for it."""
    gateway.backend.gate = asyncio.Event()
    error = await failure(gateway.stub.Answer(ask(), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_envoys_deadline_is_the_requests(gateway: Running) -> None:
    """Behind Envoy the deadline comes as a header."""
    gateway.backend.gate = asyncio.Event()
    metadata = (("x-envoy-expected-rq-timeout-ms", "100"),)
    error = await failure(gateway.stub.Answer(ask(), metadata=metadata))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "100 ms" in str(error.details())


async def test_a_client_that_leaves_cancels_its_work(gateway: Running) -> None:
    """Nobody waits for the answer any more."""
    gateway.backend.gate = asyncio.Event()
    call = gateway.stub.Answer(ask())
    waiting = asyncio.ensure_future(call)
    await gateway.backend.until_asked(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await gateway.backend.until_cancelled(1)
    assert gateway.backend.cancelled == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackendUnavailable("nobody there"), grpc.StatusCode.UNAVAILABLE),
        (InvalidLogits("small", "not finite"), grpc.StatusCode.UNAVAILABLE),
        (BackendError("secret"), grpc.StatusCode.INTERNAL),
        (RuntimeError("secret"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_an_internal_cause_stays_in_the_log(
    gateway: Running, caplog: pytest.LogCaptureFixture, error: Exception, code: grpc.StatusCode
) -> None:
    """The caller gets a fixed text and the request id; whoever is on call gets the rest."""
    gateway.backend.error = error
    error = await failure(gateway.stub.Answer(ask(), metadata=(("x-request-id", "abc"),)))
    assert error.code() is code
    assert "secret" not in str(error.details())
    if code is grpc.StatusCode.INTERNAL:
        assert "abc" in str(error.details())
        assert "secret" in caplog.text


def test_every_error_has_a_status() -> None:
    """An error that nobody mapped would be reported as our fault."""
    for cls in _below(BertierError):
        assert any(base in grpc_call.STATUS for base in cls.__mro__), cls.__name__


def _below(cls: type[BertierError]) -> list[type[BertierError]]:
    own = [c for c in cls.__subclasses__() if c.__module__.startswith("gateway.")]
    return own + [d for c in own for d in _below(c)]


async def test_a_stream_answers_in_order_with_failures_as_items(gateway: Running) -> None:
    """One bad item must not cost the caller the others."""
    requests = [
        ask(id="a", slo=qa_pb2.SloRequest(min_f1=0.6)),
        ask(id="b", question=""),
        *(ask(id=f"c{i}", slo=qa_pb2.SloRequest(min_f1=0.3)) for i in range(5)),
    ]
    items = [item async for item in gateway.stub.AnswerStream(iter(requests))]

    assert [item.id for item in items] == ["a", "b", "c0", "c1", "c2", "c3", "c4"]
    assert [item.answer.plan for item in items] == ["large", "", *["small"] * 5]
    assert (items[1].failure.code, items[1].failure.type) == ("INVALID_ARGUMENT", "empty-text")
    assert gateway.counted("ok") == 6
    assert gateway.counted("empty-text") == 1


async def test_a_stream_begins_no_more_items_than_allowed(gateway: Running) -> None:
    """A caller who sends a thousand questions must not take every core."""
    gateway.backend.gate = asyncio.Event()
    slo = qa_pb2.SloRequest(slo_class="batch")
    call = gateway.stub.AnswerStream(ask(id=str(i), slo=slo) for i in range(10))
    reading = asyncio.ensure_future(_all(call))
    await gateway.backend.until_asked(2)
    await gateway.stub.Plan(qa_pb2.PlanRequest())  # a round trip: time enough to begin more
    assert len(gateway.backend.asked) == 2
    gateway.backend.gate.set()
    assert [item.id for item in await reading] == [str(i) for i in range(10)]


async def _all(call: AsyncIterable[qa_pb2.AnswerItem]) -> list[qa_pb2.AnswerItem]:
    return [item async for item in call]


async def test_items_of_a_stream_count_as_requests_in_flight() -> None:
    """One stream could otherwise ask for more than all callers together may."""
    async with live.gateway(max_in_flight=1, max_concurrent_items=2) as grpc_server:
        grpc_server.backend.gate = asyncio.Event()
        async with grpc.aio.insecure_channel(grpc_server.grpc_url) as channel:
            stub = qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]
            reading = asyncio.create_task(_all(stub.AnswerStream(iter([ask(), ask()]))))
            await grpc_server.backend.until_asked(1)
            refused = await failure(_all(stub.AnswerStream(iter([ask()]))))
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "max_in_flight is 1" in (refused.details() or "")
            grpc_server.backend.gate.set()
            first, second = await reading
        assert first.answer.answer
        assert (second.failure.type, second.failure.code) == ("overloaded", "RESOURCE_EXHAUSTED")


async def test_metadata_has_the_limit_of_headers() -> None:
    """Large metadata is read before any key is asked."""
    async with (
        live.gateway(max_head_bytes=10_000) as grpc_server,
        grpc.aio.insecure_channel(grpc_server.grpc_url) as channel,
    ):
        stub = qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]
        assert (await stub.Answer(ask(), metadata=(("x-note", "a" * 9_000),))).answer
        error = await failure(stub.Answer(ask(), metadata=(("x-note", "a" * 11_000),)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_grpc_connections_have_limits() -> None:
    """As over HTTP: who sends nothing is closed, and there are never more than so many."""
    async with (
        live.gateway(head_timeout_ms=200, max_connections=2) as grpc_server,
        asyncio.timeout(20),
    ):
        host, port = grpc_server.grpc_url.split(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        assert await held[2][0].read() == b""
        for reader, writer in held:
            await reader.read()
            writer.close()


async def test_a_stop_under_load_answers_every_call_that_was_accepted() -> None:
    """A server of gRPC that stops cancels what it has not begun, so callers are sent away first."""
    backend, settings = WatchedBackend(), patient(grpc_port=0, grpc_connection_age_ms=300)
    service = AnswerService(backend, settings, Metrics())
    service.serving = serving_set(small_and_large())
    grpc_server = await server.start(service, service.settings)
    refusals = set[str]()

    async def ask_until_refused() -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{grpc_server.port}", options=options
        ) as channel:
            stub = qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]
            try:
                while True:
                    await stub.Answer(ask(), metadata=(("slo-class", "batch"),))
            except grpc.aio.AioRpcError as exc:
                refusals.add(exc.details() or "")

    async with asyncio.timeout(60), asyncio.TaskGroup() as callers:
        for _ in range(30):
            callers.create_task(ask_until_refused())
        await backend.until_asked(60)
        await server.stop(grpc_server, 5_000)
    assert all("Connection refused" in each for each in refusals), refusals


async def test_a_stream_that_is_left_cancels_its_work(gateway: Running) -> None:
    """Items that nobody reads are not answered."""
    gateway.backend.gate = asyncio.Event()
    call = gateway.stub.AnswerStream(ask() for _ in range(2))
    await call.initial_metadata()
    await gateway.backend.until_asked(2)
    call.cancel()
    await gateway.backend.until_cancelled(2)
    assert gateway.backend.cancelled == 2


async def test_a_plan_is_made_without_inference(gateway: Running) -> None:
    """Asking what would happen costs no model's time."""
    metadata = (("slo-min-f1", "0.6"), ("slo-latency-ms", "15"))
    plan = await gateway.stub.Plan(qa_pb2.PlanRequest(n_tokens=100), metadata=metadata)
    assert (plan.feasible, plan.n_tokens, plan.n_windows) == (False, 128, 1)
    assert {o.plan: list(o.rejection_reasons) for o in plan.options} == {
        "small": ["below-floor"],
        "large": ["late"],
    }
    assert gateway.backend.asked == []


async def test_health_follows_readiness(gateway: Running) -> None:
    """A load balancer must not send requests where no model answers."""
    health = _health(gateway)
    status = health_pb2.HealthCheckResponse
    names = ("", qa.SERVICE.full_name, oip.SERVICE.full_name)
    for name in names:
        reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == status.SERVING
    gateway.backend.error = BackendUnavailable("gone")
    for name in names:
        reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == status.NOT_SERVING
    error = await failure(health.Check(health_pb2.HealthCheckRequest(service="other")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_health_watch_ends_when_the_server_drains(gateway: Running) -> None:
    """A watch would hold up the stop for the whole drain time."""
    health = _health(gateway)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=qa.SERVICE.full_name))
    first = await watch.read()
    gateway.grpc_server.health.stop()
    last = await watch.read()
    status = health_pb2.HealthCheckResponse
    assert (first.status, last.status) == (status.SERVING, status.NOT_SERVING)
    assert await watch.read() is grpc.aio.EOF


async def test_requests_in_flight_end_before_the_server_does(gateway: Running) -> None:
    """A deployment costs nobody an answer."""
    gateway.backend.gate = asyncio.Event()
    call = asyncio.ensure_future(gateway.stub.Answer(ask(), metadata=(("slo-class", "batch"),)))
    await gateway.backend.until_asked(1)
    stopping = asyncio.ensure_future(server.stop(gateway.grpc_server, 5_000))
    gateway.backend.gate.set()
    assert (await call).answer == "The"
    await stopping


def _health(gateway: Running) -> Any:
    return health_pb2_grpc.HealthStub(gateway.channel)


def _replies(stub: Any, asked: list[Any]) -> AsyncIterable[Any]:
    """Return the replies; the stubs' types know the blocking client only."""
    replies: AsyncIterable[Any] = stub.ServerReflectionInfo(iter(asked))
    return replies


async def test_reflection_describes_every_service(gateway: Running) -> None:
    """grpcurl needs no .proto file; of Triton's protocol it sees the calls that are served."""
    stub = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)  # type: ignore[arg-type]
    request = reflection_pb2.ServerReflectionRequest
    asked = [
        request(list_services=""),
        request(file_containing_symbol=qa.SERVICE.full_name),
        request(file_containing_symbol=oip.SERVICE.full_name),
    ]
    listed, *found = [r async for r in _replies(stub, asked)]
    names = {service.name for service in listed.list_services_response.service}
    assert {qa.SERVICE.full_name, oip.SERVICE.full_name, "grpc.health.v1.Health"} <= names
    files = [
        FileDescriptorProto.FromString(reply.file_descriptor_response.file_descriptor_proto[0])
        for reply in found
    ]
    methods = [{m.name for m in file.service[0].method} for file in files]
    model = {"ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelInfer"}
    assert methods == [
        {"Answer", "AnswerMany", "AnswerStream", "Feedback", "Plan"},
        {"ServerLive", "ServerReady", "ServerMetadata", "ModelStreamInfer", *model},
    ]


async def test_a_call_of_triton_that_is_not_served_is_unimplemented(gateway: Running) -> None:
    """Its definition has calls that change a model server; the gateway offers none of them."""
    unload: Any = gateway.channel.unary_unary(f"/{oip.SERVICE.full_name}/RepositoryModelUnload")
    assert (await failure(unload(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_in_use_is_named_with_its_setting(gateway: Running) -> None:
    """Two gateways sharing a port unnoticed would answer from two catalogs."""
    settings = patient(grpc_port=gateway.grpc_server.port)
    with pytest.raises(SettingsError, match=rf"grpc_port: .*:{gateway.grpc_server.port}"):
        await server.start(gateway.service, settings)


async def test_a_gateway_without_models_is_unavailable(gateway: Running) -> None:
    """No catalog yet is no reason to fail in another way."""
    gateway.service.serving = None
    error = await failure(gateway.stub.Answer(ask()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_uncertified_answer_says_so(gateway: Running) -> None:
    """The floor was never shown to hold on this host."""
    gateway.service.serving = serving_set(small_and_large(), Trust.UNCERTIFIED)
    response = await gateway.stub.Answer(ask())
    assert response.slo.met == "uncertified"


def test_the_committed_code_is_what_the_protocols_generate(tmp_path: Path) -> None:
    """Code that is not regenerated speaks another protocol than the .proto files say."""
    for path in generate.generate(tmp_path):
        assert (generate.ROOT / path).read_bytes() == (tmp_path / path).read_bytes(), path


def test_an_error_keeps_its_own_text_when_it_is_the_callers() -> None:
    """Only what is our fault is hidden behind the fixed text."""
    assert grpc_call.detail_of(EmptyText("question"), "abc") == str(EmptyText("question"))
