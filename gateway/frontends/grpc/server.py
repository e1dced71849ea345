"""The gRPC frontend: one server with QuestionAnswering, Classification, Open Inference Protocol v2, health, reflection.

Built like the HTTP frontend; `grpc.call` has the table of errors and statuses.
"""

# ruff: noqa: N802  # the protocol names its calls

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gateway.auth.access import Access
from gateway.auth.tls import Certificates
from gateway.clock import now_ms
from gateway.frontends import slo_headers, sockets
from gateway.frontends.grpc import auth, classification, oip, qa
from gateway.frontends.grpc.auth import AuthInterceptor
from gateway.frontends.grpc.call import Calls, Context, handlers
from gateway.proto.bertier.v1 import qa_pb2
from gateway.request.service import AnswerService
from gateway.settings import Settings, SettingsError

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
WATCH_MS = 1_000.0  # how often a health watch looks
AGE_JITTER = 1.1  # gRPC lets a connection get so much older, so that not all end at once
IDLE_MS = 500.0  # without a new call: then no client is sending any more
LOOK_MS = 50.0  # how often that is looked at
HANDSHAKES = ("grpc.server_handshake_timeout_ms", "grpc.http2.settings_timeout")
PING_INTERVAL_MS = 5_000  # a caller that pings more often is sent away
METADATA_SIZES = ("grpc.max_metadata_size", "grpc.absolute_max_metadata_size")
Status = health_pb2.HealthCheckResponse
OURS = (qa.SERVICE, classification.SERVICE, oip.SERVICE)


@dataclass(frozen=True, slots=True)
class GrpcServer:
    """A started server, and the port it really has."""

    server: grpc.aio.Server
    port: int
    health: Health
    calls: Calls
    age_ms: float  # that a connection reaches at most


class Health:
    """The standard health service: every service of ours serves while a question can be answered."""

    def __init__(self, service: AnswerService) -> None:
        self._service = service
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Say NOT_SERVING from now on, and end the watches."""
        self._stopping.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Message:
        status = await self._status(request.service)
        if status == Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:80]!r}")
        return Status(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[Message]:
        last = None
        while not self._stopping.is_set():
            status = await self._status(request.service)
            if status != last:
                yield Status(status=status)
                last = status
            await self._pause()
        yield Status(status=await self._status(request.service))

    async def _status(self, name: str) -> int:
        if name not in ("", *(service.full_name for service in OURS)):
            return Status.SERVICE_UNKNOWN
        ready = not self._stopping.is_set() and await slo_headers.is_ready(self._service)
        return Status.SERVING if ready else Status.NOT_SERVING

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), WATCH_MS / 1e3)
        except TimeoutError:
            return


async def start(
    service: AnswerService,
    settings: Settings,
    access: Access | None = None,
    certificates: Certificates | None = None,
    *,
    shared: bool = False,
) -> GrpcServer:
    """Return a server that listens on settings.host:grpc_port. Raises: SettingsError.

    `shared`: other workers of this gateway listen there, too.
    """
    interceptors = [AuthInterceptor(access)] if access is not None and access.guarded else []
    server = grpc.aio.server(
        interceptors=interceptors,
        options=(
            (
                "grpc.so_reuseport",
                int(shared),
            ),  # else a second gateway would share the port unnoticed
            # The only way to part with a caller and lose nothing: what comes while a server stops is cancelled.
            ("grpc.max_connection_age_ms", math.ceil(settings.grpc_connection_age_ms)),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            *((name, math.ceil(settings.head_timeout_ms)) for name in HANDSHAKES),
            *((name, settings.max_head_bytes) for name in METADATA_SIZES),
            # Callers may ping a quiet stream, or a connection without one, every 10 s, as Go and Java do.
            ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_receive_message_length", settings.max_batch_bytes),
            ("grpc.max_send_message_length", settings.max_batch_bytes),
        ),
    )
    calls, health = Calls(service), Health(service)
    server.add_generic_rpc_handlers(
        (
            handlers(qa.SERVICE, qa.QuestionAnswering(calls)),
            handlers(classification.SERVICE, classification.Classification(calls)),
            handlers(oip.SERVICE, oip.GrpcInferenceService(calls)),
            handlers(HEALTH, health),
        )
    )
    _enable_reflection(server)
    port = _bind(server, settings, certificates)
    await server.start()
    return GrpcServer(server, port, health, calls, settings.grpc_connection_age_ms)


async def stop(running: GrpcServer, drain_ms: float) -> None:
    """Close all connections, wait up to `drain_ms` for calls in flight, then cancel them.

    A stopping server cancels every call that has not reached its handler. So it first refuses new connections
    and lets open ones reach their maximum age (GOAWAY). `drain_ms` 0: stop at once.
    """
    running.health.stop()
    if drain_ms:
        sockets.refuse_new(running.port)
        await _parted(running)
    await running.server.stop(drain_ms / 1e3)


async def _parted(running: GrpcServer) -> None:
    """Return when no connection is open, none has sent a call for a while, or all are of age."""
    ends_ms = now_ms() + AGE_JITTER * running.age_ms + IDLE_MS
    while now_ms() < min(ends_ms, running.calls.began_ms + IDLE_MS):
        if not sockets.n_connected(running.port):
            return
        await asyncio.sleep(LOOK_MS / 1e3)


def _bind(server: grpc.aio.Server, settings: Settings, certificates: Certificates | None) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        address = f"{host}:{settings.grpc_port}"
        if certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, auth.credentials(certificates))
    except RuntimeError as exc:
        raise SettingsError(
            f"grpc_port: cannot listen on {host}:{settings.grpc_port}; it is in use, or the address"
            " is not this host's; stop the other program, or choose another port with --grpc-port"
            " or BERTIER_GRPC_PORT"
        ) from exc


def _enable_reflection(server: grpc.aio.Server) -> None:
    """Offer what a tool needs to call us; of the inference protocol, the calls that are served."""
    pool = DescriptorPool()
    for file in (qa_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    for file in (*oip.SERVICE.file.dependencies, oip.SERVICE.file):
        pool.Add(_served_part(file))
    services = (*OURS, HEALTH, REFLECTION)
    reflection.enable_server_reflection([each.full_name for each in services], server, pool)


def _served_part(file: FileDescriptor) -> FileDescriptorProto:
    """Return a file of the inference protocol without the calls that are not served."""
    part = FileDescriptorProto()
    file.CopyToProto(part)
    for service in part.service:
        served = [m for m in service.method if hasattr(oip.GrpcInferenceService, m.name)]
        del service.method[:]
        service.method.extend(served)
    return part
