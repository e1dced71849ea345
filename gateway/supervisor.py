"""A Triton of our own: started, watched, restarted when it dies, and stopped.

It never speaks Triton's protocol beyond the HTTP health check. What must survive even a kill -9 of
this process is done by guard.py, which stands between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from gateway import guard
from gateway.errors import BackendUnavailable, RepositoryError
from gateway.installation import TritonInstallation

log = logging.getLogger(__name__)
triton_log = logging.getLogger("triton")

FIRST_BACKOFF_MS = 500.0
LONGEST_BACKOFF_MS = 30_000.0
STABLE_MS = 60_000.0  # up for so long, its next death is the first again
START_TIMEOUT_MS = 120_000.0
PROBE_MS = 2_000.0  # between two health checks
PROBE_TIMEOUT_MS = 10_000.0
PROBES = 3  # failed ones in a row, and it is taken for hung
EXIT_TIMEOUT_S = 8  # for inferences in flight when Triton is told to stop
STUB_TIMEOUT_S = 300  # for the process of one model instance to start
_READY_POLL_MS = 50.0
_LINE_BYTES = 1 << 20

_LINE = re.compile(r"([IWEF])\d{4} [\d:.]+ \d+ (\S+:\d+)\] (.*)")
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
# Said at every start on a host without a GPU.
_NO_GPU = ("CudaDriverHelper", "CUDA driver version is insufficient", "CUDA memory pool disabled")


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """What a local Triton serves, and where it listens."""

    model_repository: Path
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    host: str = "127.0.0.1"

    @property
    def grpc_url(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    def ports(self) -> dict[str, int]:
        """Return each port by the flag that sets it."""
        return {
            "--triton-http-port": self.http_port,
            "--triton-grpc-port": self.grpc_port,
            "--triton-metrics-port": self.metrics_port,
        }


class Supervisor:
    """Keeps one Triton running from `start` to `stop`, in the event loop that calls `start`."""

    def __init__(self, installation: TritonInstallation, options: TritonOptions) -> None:
        self._installation = installation
        self._options = options
        self._run: _Run | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ready_timeout_ms = START_TIMEOUT_MS
        self._restarts = 0

    @property
    def grpc_url(self) -> str:
        return self._options.grpc_url

    @property
    def engine(self) -> str:
        return self._installation.engine

    @property
    def pid(self) -> int | None:
        """The process id of tritonserver, None while there is none."""
        return self._run.pid if self._run else None

    @property
    def restarts(self) -> int:
        """How often it came back after it had died."""
        return self._restarts

    async def start(self, ready_timeout_ms: float = START_TIMEOUT_MS) -> None:
        """Start Triton and return when it has loaded what can be loaded.

        Raises: BackendUnavailable or RepositoryError, saying what is in the way.
        """
        check_repository(self._options.model_repository)
        check_ports(self._options)
        guard.sweep()
        self._ready_timeout_ms = ready_timeout_ms
        await self._launch()
        self._watching = asyncio.create_task(self._watch(), name="triton supervisor")

    async def stop(self) -> None:
        """End Triton; nothing of it is left when this returns."""
        if self._watching:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None
        await self._end_run()

    async def _launch(self) -> None:
        try:
            async with asyncio.timeout(self._ready_timeout_ms / 1e3):
                self._run = await _Run.begin(self._installation, self._options)
                await self._run.until_ready()
        except TimeoutError as exc:
            await self._end_run()
            raise BackendUnavailable(
                f"Triton was not ready after {self._ready_timeout_ms / 1e3:.0f} s; see its log"
                " above, or raise triton_start_timeout_ms"
            ) from exc
        except OSError as exc:
            await self._end_run()
            raise BackendUnavailable(f"Triton could not be started: {exc}") from exc
        except BaseException:
            await self._end_run()
            raise

    async def _end_run(self) -> None:
        if self._run:  # forgotten only once it has ended: this may be cancelled and called again
            await self._run.end()
            self._run = None

    async def _watch(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            if self._run:
                reason = await self._run.until_sick()
                await self._end_run()
                log.error("Triton %s; starting it again", reason)
                if (time.monotonic() - began) * 1e3 > STABLE_MS:
                    failures = 0
            await asyncio.sleep(backoff_ms(failures) / 1e3)
            failures += 1
            await self._relaunch()

    async def _relaunch(self) -> None:
        try:
            await self._launch()
        except BackendUnavailable as exc:
            log.error("Triton could not be started again: %s", exc)
        else:
            self._restarts += 1
            log.info("Triton is back: pid %s, restart %d", self.pid, self._restarts)


class _Run:
    """One life of tritonserver, with the guard that ends it."""

    def __init__(self, name: str, options: TritonOptions, process: asyncio.subprocess.Process):
        self._name = name
        self._options = options
        self._guard = process
        self._errors: deque[str] = deque(maxlen=3)
        self._logging = asyncio.create_task(self._forward_log(), name="triton log")
        self._ended = asyncio.create_task(process.wait(), name="triton guard")
        self.pid: int | None = None

    @classmethod
    async def begin(cls, installation: TritonInstallation, options: TritonOptions) -> _Run:
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
        while not await _answers(self._options, "ready"):
            if self._ended.done():
                await self._logging
                said = "; ".join(self._errors) or "it gave no reason"
                raise BackendUnavailable(
                    f"Triton ended with code {self._ended.result()} while starting: {said}"
                )
            await asyncio.wait([self._ended], timeout=_READY_POLL_MS / 1e3)

    async def until_sick(self) -> str:
        """Return why it must be started again, once it must."""
        failed = 0
        while failed < PROBES:
            await asyncio.wait([self._ended], timeout=PROBE_MS / 1e3)
            if self._ended.done():
                return f"(pid {self.pid}) ended with code {self._ended.result()}"
            failed = 0 if await _answers(self._options, "live") else failed + 1
        return f"(pid {self.pid}) did not answer {PROBES} health checks"

    async def end(self) -> None:
        """Have the guard end everything, and end the guard if it does not."""
        with contextlib.suppress(ProcessLookupError):
            self._guard.terminate()
        _, late = await asyncio.wait([self._ended], timeout=guard.GRACE_S + 5)
        if late:
            self._guard.kill()
            await self._ended
        await self._logging
        guard.clean(self._name)  # what a killed guard could not

    async def _forward_log(self) -> None:
        assert self._guard.stderr
        async for line in self._guard.stderr:
            level, message = parse_log_line(line.decode(errors="replace").rstrip())
            if level >= logging.ERROR:
                self._errors.append(message)
            triton_log.log(level, "%s", message)


def run_foreground(
    installation: TritonInstallation,
    options: TritonOptions,
    ready_timeout_ms: float = START_TIMEOUT_MS,
) -> None:
    """Serve until SIGTERM or SIGINT: `bertier triton`. Raises: BackendUnavailable."""
    asyncio.run(_run_until_signal(Supervisor(installation, options), ready_timeout_ms))


async def _run_until_signal(supervisor: Supervisor, ready_timeout_ms: float) -> None:
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    starting = asyncio.create_task(supervisor.start(ready_timeout_ms))
    stopping = asyncio.create_task(told.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            log.info("Triton is ready: gRPC on %s, pid %s", supervisor.grpc_url, supervisor.pid)
        await stopping
    finally:
        stopping.cancel()
        starting.cancel()
        await asyncio.wait([starting])
        await supervisor.stop()


def check_repository(path: Path) -> None:
    """Raise RepositoryError when there is none: Triton would start, and never be ready."""
    if not path.is_dir():
        raise RepositoryError(
            f"{path}: no such folder; point --model-repository at one that holds models"
        )


def check_ports(options: TritonOptions) -> None:
    """Raise BackendUnavailable, with port and flag, when a port is taken."""
    for flag, port in options.ports().items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.host, port))
            except OSError as exc:
                raise BackendUnavailable(
                    f"port {port} on {options.host} is not free for Triton ({exc.strerror});"
                    f" choose another with {flag}, or use what runs there with --triton-url"
                ) from exc


def backoff_ms(failures: int) -> float:
    """Return how long to wait before the next start."""
    return float(min(LONGEST_BACKOFF_MS, FIRST_BACKOFF_MS * 2.0 ** min(failures, 32)))


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
        "http-address": options.host,
        "http-port": options.http_port,
        "grpc-address": options.host,
        "grpc-port": options.grpc_port,
        "metrics-address": options.host,
        "metrics-port": options.metrics_port,
        "model-control-mode": "explicit",
        "load-model": "*",
        # One model that cannot be loaded must not stop the others.
        "exit-on-error": "false",
        "strict-readiness": "false",
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "allow-gpu-metrics": "false",
        "backend-config": f"python,shm-region-prefix-name={name}-",
    }
    flags = [f"--{key}={value}" for key, value in settings.items()]
    # Our configurations are complete; completing them would start every model's process twice.
    flags.append("--disable-auto-complete-config")
    # On a very busy host the import of ONNX Runtime takes longer than Triton's own limit of 30 s,
    # and then Triton aborts as a whole.
    flags.append(f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}")
    return [str(installation.binary), *flags]


async def _answers(options: TritonOptions, state: str) -> bool:
    """Is `/v2/health/<state>` 200?"""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_MS / 1e3):
            return await _status(options, f"/v2/health/{state}") == 200
    except (OSError, TimeoutError, ValueError, IndexError):
        return False


async def _status(options: TritonOptions, path: str) -> int:
    reader, writer = await asyncio.open_connection(options.host, options.http_port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {options.host}\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
