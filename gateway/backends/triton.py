"""The Triton backend: the only module that speaks Triton's protocol, its units and its errors.

It never chooses a model and never starts a server (supervisor.py does). Requests are built as
protobufs by hand: tritonclient's InferInput and InferResult would copy every tensor once more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from gateway.backends.external_load import Counted, IdleTimer
from gateway.backends.protocol import SPAN_OUTPUTS, Check, checked_logits, joined, outputs_of
from gateway.backends.silent_calls import Inquiry, SilentCalls
from gateway.backends.triton_config import with_instances
from gateway.backends.triton_errors import (
    NO_EXPLICIT_LOAD,
    inference_error,
    lost_instance,
    map_triton_error,
)
from gateway.catalog.host import affinity_cores
from gateway.catalog.schema import Variant
from gateway.domain import Floats, Inference, Trust, Windows
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    BertierError,
    DeadlineExceeded,
    InvalidLogits,
    VariantUnavailable,
)
from gateway.observability import tracing

log = logging.getLogger(__name__)

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MAX_CONCURRENT = 8  # requests of one long context under way at once
CONTROL_TIMEOUT_MS = 5_000.0  # calls that answer at once: ready, index, config
LOAD_TIMEOUT_MS = 120_000.0
READY_POLL_MS = 50.0
RELOADED = (
    "bertier_reloaded"  # parameter of a model's configuration: only a changed one is loaded again
)

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Without it, channels to one address share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A server allows pings while calls are in flight; more often it would end the connection.
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own back-off reaches two minutes; a restarted Triton should be found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class TritonBackend:
    """Asks a Triton over a few gRPC channels; one event loop, the one it is made in."""

    name = "triton"

    def __init__(
        self,
        url: str,
        *,
        engine: str = "",
        channels: int = 2,
        unload_after_ms: float = 0.0,
        repository: Path | None = None,
        cores: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        clock: Callable[[], float] = lambda: time.perf_counter() * 1e3,
    ) -> None:
        """`url` is host:port of gRPC; `engine` names what runs inside, if the caller knows.

        `unload_after_ms`: a variant on a shared server is unloaded once it has been idle for so long.
        `credentials`: of TLS; None: it speaks none. `cores`: its CPU, if that is known; None: as many as this process may run on.
        `repository`: of a server that loads only what it is asked to, with as many instances as variants have.
        """
        self._url = url
        self._engine = engine
        self._channels = [_channel(url, credentials) for _ in range(channels)]
        stubs = [GRPCInferenceServiceStub(channel) for channel in self._channels]
        self._control = stubs[0]
        self._stubs = itertools.cycle(stubs)
        self._counted: Counted | None = None
        self.others_answered: Counter[str] = Counter()  # requests of other workers of this gateway
        self._unload_after_ms = unload_after_ms
        self._repository = repository
        self._cores = float(affinity_cores()) if cores is None else cores
        self._idle = IdleTimer(clock)
        self._calls = SilentCalls(lost_instance)

    @property
    def engine(self) -> str:
        """What the caller said, else Triton and its version, known after the first `is_ready`."""
        return self._engine or "triton"

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        """Return the logits of all windows; the whole call takes no longer than `budget_ms`.

        Raises: DeadlineExceeded, BackendUnavailable, BackendError.
        """
        began = time.perf_counter()
        if not budget_ms > 0:
            raise DeadlineExceeded(f"{variant.name}: no time was left to ask the model server")
        size = variant.max_batch
        requests = [
            infer_request(variant, windows, slice(first, first + size), budget_ms)
            for first in range(0, windows.n_windows, size)
        ]
        sent = time.perf_counter()
        parts = await self._infer_all(variant, requests, budget_ms - (sent - began) * 1e3)
        logits = checked_logits(variant, windows, joined(parts))
        done = time.perf_counter()
        return Inference(logits, (sent - began) * 1e3, (done - sent) * 1e3, len(requests))

    async def hashes(self) -> Mapping[str, str]:
        """Return sha256 by `name/version` of what is ready, as its config.pbtxt says."""
        index = await self._call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
        ready = [(model.name, model.version) for model in index.models]
        found = await asyncio.gather(*(self._hash(name, version) for name, version in ready))
        return {f"{n}/{v}": sha for (n, v), sha in zip(ready, found, strict=True) if sha}

    async def load(self, variant: Variant) -> None:
        """Have the server load the version; where it loads by itself, wait until it has.

        Raises: BackendUnavailable when it does not get ready, with the server's reason.
        """
        if await self._is_loaded(variant):
            return
        request = pb.RepositoryModelLoadRequest(model_name=variant.name)
        if self._repository is not None:
            config = with_instances(self._repository / variant.name, variant.instances)
            if config is not None:
                request.parameters["config"].string_param = config
        try:
            await self._call("RepositoryModelLoad", request, LOAD_TIMEOUT_MS)
        except BackendError as exc:
            if NO_EXPLICIT_LOAD not in str(exc):
                raise BackendUnavailable(f"{variant.name}: could not be loaded: {exc}") from exc
            await self._wait_loaded(variant)
        if not await self._is_loaded(variant):
            raise BackendUnavailable(
                f"{variant.name}: loaded, but without version {variant.version};"
                " check version_policy in its config.pbtxt"
            )

    async def unload(self, variant: Variant, kept: Collection[Variant]) -> bool:
        """Have an explicit server unload the model, all of its versions, unless `kept` names it.

        Of a model that is named on, the versions that go are its config.pbtxt's to leave out.
        Raises: BackendError.
        """
        if any(other.name == variant.name for other in kept):
            return True
        if self._unload_after_ms and await self._idle_ms(variant.name) < self._unload_after_ms:
            return False
        request = pb.RepositoryModelUnloadRequest(model_name=variant.name)
        try:
            await self._call("RepositoryModelUnload", request)
        except BackendError as exc:
            if NO_EXPLICIT_LOAD not in str(exc):
                raise
        return True

    @property
    def lost(self) -> Mapping[str, str]:
        """The models that seem to have lost an instance, and why; until they are loaded again."""
        return self._calls.lost

    @property
    def answered(self) -> Counter[str]:
        """How many requests the server answered, by model."""
        return self._calls.answered

    def note_lost(self, lost: Mapping[str, str]) -> None:
        """Count models as having lost an instance that another worker found."""
        self._calls.lost.update(lost)

    def forget_lost(self, model: str) -> None:
        """Count all instances of the model as healthy: another process had it loaded again."""
        self._calls.forget(model)

    @property
    def repeated(self) -> Mapping[str, int]:
        """How many requests an instance left unanswered and another was asked, by model."""
        return self._calls.repeated

    @property
    def repeats_left(self) -> tuple[float, float]:
        """How many requests may be repeated now, and at most."""
        return self._calls.left

    async def reload(self, variant: Variant) -> None:
        """Have an explicit server restart all instances of the model; the old ones answer until then.

        Triton reloads only a model whose configuration changed, so this changes a parameter of it.
        Raises: BackendError, DeadlineExceeded.
        """
        request = pb.ModelConfigRequest(name=variant.name, version=str(variant.version))
        config = (await self._call("ModelConfig", request)).config
        config.parameters[RELOADED].string_value = str(time.time_ns())
        request = pb.RepositoryModelLoadRequest(model_name=variant.name)
        text = json_format.MessageToJson(config, preserving_proto_field_name=True)
        request.parameters["config"].string_param = text
        await self._call("RepositoryModelLoad", request, LOAD_TIMEOUT_MS)
        self._calls.forget(variant.name)

    async def checked(self, variant: Variant, check: Check) -> Trust:
        return await check(self)

    @property
    def cores(self) -> float:
        return self._cores

    def capacity(self, variant: Variant) -> int:
        return 1

    async def external_load(self) -> Mapping[str, float]:
        """Return the mean number of requests of other gateways since the last call; {} at the first."""
        statistics = await self._call("ModelStatistics", pb.ModelStatisticsRequest())
        before = self._counted
        stats = [(m.name, m.inference_stats.success) for m in statistics.model_stats]
        now = self._counted = Counted.of(
            time.perf_counter(),
            [(n, s.ns / 1e9, s.count) for n, s in stats],
            self.answered + self.others_answered,
        )
        return {} if before is None else now.external_since(before)

    async def is_ready(self) -> bool:
        try:
            ready = await self._call("ServerReady", pb.ServerReadyRequest())
            if not self._engine:
                await self._learn_engine()
        except BertierError:
            return False
        return bool(ready.ready)

    async def close(self) -> None:
        await self._calls.close()
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def _infer_all(
        self, variant: Variant, requests: Sequence[pb.ModelInferRequest], budget_ms: float
    ) -> list[list[Floats]]:
        if len(requests) == 1:
            return [await self._infer_one(variant, requests[0], budget_ms)]
        deadline = time.perf_counter() + budget_ms / 1e3
        places = asyncio.Semaphore(MAX_CONCURRENT)

        async def in_turn(request: pb.ModelInferRequest) -> list[Floats]:
            async with places:
                left_ms = (deadline - time.perf_counter()) * 1e3
                return await self._infer_one(variant, request, left_ms)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(in_turn(request)) for request in requests]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed  # the others were cancelled because of it
        return [task.result() for task in tasks]

    async def _infer_one(
        self, variant: Variant, request: pb.ModelInferRequest, budget_ms: float
    ) -> list[Floats]:
        def send(left_ms: float) -> Any:
            return next(self._stubs).ModelInfer(
                request, timeout=max(left_ms, 0.0) / 1e3, metadata=tracing.outgoing()
            )

        rows, tokens = request.inputs[0].shape
        work_ms = rows * variant.profile.cell(tokens).p50_ms
        try:
            reply = await self._calls.ask(
                Inquiry(variant.name, variant.instances, work_ms, send), budget_ms
            )
        except grpc.aio.AioRpcError as exc:
            raise inference_error(exc, request.model_name) from exc
        return read_logits(reply, outputs_of(variant))

    async def _idle_ms(self, model: str) -> float:
        """Return how long the model has been idle; inf where it is not loaded."""
        try:
            statistics = await self._call("ModelStatistics", pb.ModelStatisticsRequest(name=model))
        except VariantUnavailable:
            return math.inf
        return self._idle.for_ms(model, max(m.last_inference for m in statistics.model_stats))

    async def _hash(self, name: str, version: str) -> str:
        request = pb.ModelConfigRequest(name=name, version=version)
        parameters = (await self._call("ModelConfig", request)).config.parameters
        key = f"sha256.{version}"
        return str(parameters[key].string_value) if key in parameters else ""

    async def _is_loaded(self, variant: Variant) -> bool:
        request = pb.ModelReadyRequest(name=variant.name, version=str(variant.version))
        try:
            return bool((await self._call("ModelReady", request)).ready)
        except BackendUnavailable:
            raise
        except BackendError:
            return False  # a model nobody has heard of is an error in Triton, not a `false`

    async def _wait_loaded(self, variant: Variant) -> None:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_MS / 1e3):
                while not await self._is_loaded(variant):  # noqa: ASYNC110 - another process's state
                    await asyncio.sleep(READY_POLL_MS / 1e3)
        except TimeoutError as exc:
            raise BackendUnavailable(
                f"{variant.name}: version {variant.version} is not ready after"
                f" {LOAD_TIMEOUT_MS / 1e3:.0f} s; see Triton's log for its reason"
            ) from exc

    async def _learn_engine(self) -> None:
        metadata = await self._call("ServerMetadata", pb.ServerMetadataRequest())
        self._engine = f"triton {metadata.version}"

    async def _call(self, method: str, request: Any, timeout_ms: float = CONTROL_TIMEOUT_MS) -> Any:
        try:
            return await getattr(self._control, method)(request, timeout=timeout_ms / 1e3)
        except grpc.aio.AioRpcError as exc:
            raise map_triton_error(exc, self._url) from exc


def _channel(url: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(url, credentials, options=_CHANNEL_OPTIONS)


def infer_request(
    variant: Variant, windows: Windows, rows: slice, budget_ms: float
) -> pb.ModelInferRequest:
    """Return the request for some of the windows.

    `timeout` bounds the wait in Triton's queue where a model's config.pbtxt lets requests say so;
    the call's own deadline ends it everywhere.
    """
    request = pb.ModelInferRequest(model_name=variant.name, model_version=str(variant.version))
    request.parameters["timeout"].int64_param = max(1, int(budget_ms * 1e3))
    for name in INPUTS:
        tensor = getattr(windows, name)[rows]
        request.inputs.add(name=name, datatype="INT64", shape=tensor.shape)
        request.raw_input_contents.append(tensor.tobytes())
    return request


def read_logits(reply: pb.ModelInferResponse, names: Sequence[str] = SPAN_OUTPUTS) -> list[Floats]:
    """Return the outputs of these names. Raises: InvalidLogits when they are not there."""
    try:
        found = {
            output.name: np.frombuffer(raw, np.float32).reshape(tuple(output.shape))
            for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
        }
        return [found[name] for name in names]
    except (KeyError, ValueError) as exc:
        raise InvalidLogits(reply.model_name, f"not {' and '.join(names)} in FP32 ({exc})") from exc
