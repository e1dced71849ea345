"""One run of tritonserver: its command line, its health, its log, and the guard that stops it.

Uses only the standard gRPC health check, and restarts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
from asyncio import FIRST_COMPLETED
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from gateway.errors import BackendUnavailable
from gateway.triton_server import guard
from gateway.triton_server.installation import TritonInstallation

triton_log = logging.getLogger("triton")

PROBE_MS = 2_000.0  # between two health checks
PROBE_TIMEOUT_MS = 10_000.0
PROBES = 3  # failed checks in a row after which it counts as hung
EXIT_TIMEOUT_S = 8  # for inferences in flight when Triton stops
STUB_TIMEOUT_S = 300  # for the process of one model instance to start
_READY_POLL_MS = 50.0
# While Triton starts nobody listens; gRPC's own back-off would find it seconds later.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)
READY = frozenset({"SERVING"})
LIVE = frozenset({"SERVING", "NOT_SERVING"})
_LINE_BYTES = 1 << 20

_LINE = re.compile(r"([IWEF])\d{4} [\d:.]+ \d+ (\S+:\d+)\] (.*)")
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
# Said at a stop once no inference is in flight. What follows, unloading, is of no use to anyone, takes a second
# for each model, and never ends where a model's process was lost before.
_IDLE = "All models are stopped"
# Said at every start on a host without a GPU.
_NO_GPU = ("CudaDriverHelper", "CUDA driver version is insufficient", "CUDA memory pool disabled")


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """What a local Triton serves, and where it listens."""

    model_repository: Path
    http_port: int | None = None  # None: no HTTP, which the gateway does not need
    grpc_port: int = 8001
    metrics_port: int = 8002
    host: str = "127.0.0.1"
    load_all: bool = True  # at the start; False: each model is loaded when it is asked for

    @property
    def grpc_url(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    def ports(self) -> dict[str, int]:
        """Return each port by the flag that sets it."""
        http = {} if self.http_port is None else {"--triton-http-port": self.http_port}
        return http | {
            "--triton-grpc-port": self.grpc_port,
            "--triton-metrics-port": self.metrics_port,
        }


class TritonProcess:
    """One run of tritonserver, with the guard that stops it."""

    def __init__(self, name: str, options: TritonOptions, process: asyncio.subprocess.Process):
        self._name = name
        self._options = options
        self._guard = process
        self._errors: deque[str] = deque(maxlen=3)
        self._idle = asyncio.Event()
        self._condemned: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._channel = grpc.aio.insecure_channel(options.grpc_url, options=_CHANNEL_OPTIONS)
        self._logging = asyncio.create_task(self._forward_log(), name="triton log")
        self._ended = asyncio.create_task(process.wait(), name="triton guard")
        self.pid: int | None = None

    @classmethod
    async def begin(cls, installation: TritonInstallation, options: TritonOptions) -> TritonProcess:
        name = guard.new_name()
        try:
            arguments = _arguments(installation, options, name)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard.__file__, name, *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=installation.environment(),
                start_new_session=True,
                limit=_LINE_BYTES,
            )
        except BaseException:
            guard.clean(name)
            raise
        return cls(name, options, process)

    async def until_ready(self) -> None:
        """Return when it answers; raise BackendUnavailable when it ends instead."""
        assert self._guard.stdout
        self.pid = int(await self._guard.stdout.readline() or 0) or None
        while not await self._is(READY):
            if self._ended.done():
                await self._logging
                said = "; ".join(self._errors) or "it reported no reason"
                raise BackendUnavailable(
                    f"Triton ended with code {self._ended.result()} while starting: {said}"
                )
            await asyncio.wait([self._ended], timeout=_READY_POLL_MS / 1e3)

    async def until_sick(self) -> str:
        """Return why it must be started again, once it must."""
        failed = 0
        while failed < PROBES:
            await self._wait(self._condemned, timeout_s=PROBE_MS / 1e3)
            if self._ended.done():
                return f"(pid {self.pid}) ended with code {self._ended.result()}"
            if self._condemned.done():
                return f"(pid {self.pid}) {self._condemned.result()}"
            failed = 0 if await self._is(LIVE) else failed + 1
        return f"(pid {self.pid}) did not answer {PROBES} health checks"

    def condemn(self, why: str) -> None:
        """Have `until_sick` say so."""
        if not self._condemned.done():
            self._condemned.set_result(why)

    async def end(self) -> None:
        """Have the guard end everything once nothing is in flight, and end the guard if it does not."""
        idle = asyncio.create_task(self._idle.wait())
        self._tell_guard()
        await self._wait(idle, timeout_s=guard.GRACE_S)
        idle.cancel()
        self._tell_guard()  # a second signal makes it stop at once
        await self._wait(timeout_s=5)
        if not self._ended.done():
            self._guard.kill()
            await self._ended
        await self._logging
        await self._channel.close()
        guard.clean(self._name)  # what a killed guard could not

    def _tell_guard(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._guard.terminate()

    async def _wait(self, *others: asyncio.Future[Any], timeout_s: float) -> None:
        """Return when the guard has ended, or one of the others is done, or the time is over."""
        either = (self._ended, *others)
        await asyncio.wait(either, timeout=timeout_s, return_when=FIRST_COMPLETED)

    async def _is(self, states: Collection[str]) -> bool:
        """Say whether it answers that it is in one of these states."""
        check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            reply = await check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_MS / 1e3)
        except grpc.aio.AioRpcError:
            return False
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status) in states

    async def _forward_log(self) -> None:
        assert self._guard.stderr
        async for line in self._guard.stderr:
            level, message = parse_log_line(line.decode(errors="replace").rstrip())
            if level >= logging.ERROR:
                self._errors.append(message)
            if message.startswith(_IDLE):
                self._idle.set()
            triton_log.log(level, "%s", message)


def parse_log_line(line: str) -> tuple[int, str]:
    """Return the level and the message of a line of Triton's log."""
    found = _LINE.match(line)
    if found is None:  # a table, or what a model printed
        return (logging.DEBUG if line[:1] in "+|" else logging.INFO), line
    level, place, message = found.groups()
    if any(words in message for words in _NO_GPU):
        return logging.DEBUG, message
    return _LEVELS[level], message.strip('"') + f" ({place})"


def _arguments(installation: TritonInstallation, options: TritonOptions, name: str) -> list[str]:
    backends = installation.backend_directory(guard.work_directory(name))
    settings = {
        "model-repository": options.model_repository.resolve(),
        "backend-directory": backends,
        "grpc-address": options.host,
        "grpc-port": options.grpc_port,
        "metrics-address": options.host,
        "metrics-port": options.metrics_port,
        "model-control-mode": "explicit",
        # One model that cannot be loaded must not stop the others.
        "exit-on-error": "false",
        "strict-readiness": "false",
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "allow-gpu-metrics": "false",
        "backend-config": f"python,shm-region-prefix-name={name}-",
    }
    if options.load_all:
        settings["load-model"] = "*"
    if options.http_port is None:
        settings["allow-http"] = "false"
    else:
        settings |= {"http-address": options.host, "http-port": options.http_port}
    flags = [f"--{key}={value}" for key, value in settings.items()]
    # Our configurations are complete; completing them would start every model's process twice.
    flags.append("--disable-auto-complete-config")
    # On a very busy host the import of ONNX Runtime takes longer than Triton's own limit of 30 s,
    # and then Triton aborts as a whole.
    flags.append(f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}")
    return [str(installation.binary), *flags]
