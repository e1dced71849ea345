"""A Triton of our own: started, watched, restarted when it dies, and stopped.

process.py handles one run of it. guard.py, a process between this one and Triton, cleans up even after a
kill -9 of this process.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import tempfile
import time
from pathlib import Path

from gateway.backends.retry import backoff_ms
from gateway.errors import BackendUnavailable, RepositoryError
from gateway.triton_server import guard
from gateway.triton_server.installation import TritonInstallation
from gateway.triton_server.model_processes import LOOK_MS, ModelProcesses
from gateway.triton_server.process import TritonOptions, TritonProcess

log = logging.getLogger(__name__)

FIRST_BACKOFF_MS = 500.0
LONGEST_BACKOFF_MS = 30_000.0
STABLE_MS = 60_000.0  # after running for so long, the next failure counts as the first again
START_TIMEOUT_MS = 120_000.0


class Supervisor:
    """Keeps one Triton running from `start` to `stop`, in the event loop that calls `start`."""

    def __init__(self, installation: TritonInstallation, options: TritonOptions) -> None:
        self._installation = installation
        self._options = options
        self._run: TritonProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ready_timeout_ms = START_TIMEOUT_MS
        self._restarts = 0
        self.models = ModelProcesses()
        self._looking: asyncio.Task[None] | None = None

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
        """How often it was restarted after it died."""
        return self._restarts

    async def start(self, ready_timeout_ms: float = START_TIMEOUT_MS) -> None:
        """Start Triton and return when it has loaded every model that it can.

        Raises: BackendUnavailable, RepositoryError.
        """
        check_repository(self._options.model_repository)
        check_ports(self._options)
        check_shared_memory()
        guard.sweep()
        self._ready_timeout_ms = ready_timeout_ms
        await self._launch()
        self._watching = asyncio.create_task(self._watch(), name="triton supervisor")
        self._looking = asyncio.create_task(self._look(), name="model processes")

    async def stop(self) -> None:
        """Stop Triton; none of its processes or files remain."""
        for task in (self._watching, self._looking):
            if task:
                task.cancel()
                await asyncio.wait([task])
        self._watching = self._looking = None
        await self._end_run()

    def restart(self, why: str) -> None:
        """Request a restart of Triton."""
        if self._run:
            self._run.condemn(why)

    async def _launch(self) -> None:
        try:
            async with asyncio.timeout(self._ready_timeout_ms / 1e3):
                self._run = await TritonProcess.begin(self._installation, self._options)
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

    async def _look(self) -> None:
        while True:
            self.models.look(self.pid)
            await asyncio.sleep(LOOK_MS / 1e3)

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
            await asyncio.sleep(backoff_ms(failures, FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS) / 1e3)
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


def run_foreground(
    installation: TritonInstallation,
    options: TritonOptions,
    ready_timeout_ms: float = START_TIMEOUT_MS,
) -> None:
    """Serve until SIGTERM or SIGINT: `bertier triton`. Raises: BackendUnavailable."""
    asyncio.run(_run_until_signal(Supervisor(installation, options), ready_timeout_ms))


async def _run_until_signal(supervisor: Supervisor, ready_timeout_ms: float) -> None:
    stop_requested = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop_requested.set)
    starting = asyncio.create_task(supervisor.start(ready_timeout_ms))
    stopping = asyncio.create_task(stop_requested.wait())
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


def check_shared_memory(folder: Path = guard.SHARED_MEMORY) -> None:
    """Raise BackendUnavailable when nothing can be written there: Triton and its models talk through it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise BackendUnavailable(
            f"{folder} cannot be written ({exc.strerror}), and Triton passes data to its models there:"
            " mount it writable (a container: --shm-size, or a tmpfs), or serve with --backend embedded"
        ) from exc


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
