"""The composition root: picks the backend, wires service, frontends and watcher, and runs them.

The HTTP frontend starts at once; models are loaded in the background. uvicorn handles the signals: some time after
SIGTERM it drains HTTP, then the end of the lifespan drains gRPC and stops Triton.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import grpc
import uvicorn
from fastapi import FastAPI

from gateway import cgroups, slo
from gateway.auth import tls as certificates
from gateway.auth.access import Access
from gateway.backends.breaker import RETRY_BURST
from gateway.backends.pool import Replicas
from gateway.backends.protocol import Backend
from gateway.backends.triton import TritonBackend
from gateway.catalog import host, store
from gateway.catalog.schema import QA
from gateway.catalog.store import Catalog
from gateway.errors import BertierError, RepositoryError
from gateway.frontends import sockets, welcome
from gateway.frontends.grpc import server as grpc_api
from gateway.frontends.http import oip, open_files, ops_server, routes, shutdown
from gateway.frontends.http.connections import Limits
from gateway.frontends.http.routes import HttpApi
from gateway.latency.kept_profiles import KeptProfiles
from gateway.lifecycle.background_tasks import BackgroundTasks
from gateway.lifecycle.followers import NOBODY, Followers
from gateway.lifecycle.healing import Healing
from gateway.lifecycle.readiness import Readiness
from gateway.lifecycle.watcher import Watcher
from gateway.observability import logs, tracing
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings, SettingsError
from gateway.shared_memory import State, Workers
from gateway.triton_server.fitting import Fitting
from gateway.triton_server.installation import TritonInstallation, find_installation
from gateway.triton_server.process import TritonOptions
from gateway.triton_server.supervisor import Supervisor, check_ports

log = logging.getLogger(__name__)
MakeService = Callable[[Backend, Settings, Metrics], AnswerService]


@dataclass(frozen=True, slots=True)
class Models:
    """What runs the models: a backend, and the supervisor of our own Triton, if there is one."""

    backend: Backend
    supervisor: Supervisor | None = None
    triton: TritonOptions | None = None
    servers: Mapping[str, TritonBackend] = field(default_factory=dict)  # every Triton by name
    fit: Callable[[Catalog], Catalog] = lambda catalog: catalog  # to the memory of this host


class Keeper(Protocol):
    """Decides what the service serves, and keeps it in step with the models."""

    ready: asyncio.Event  # set once, by the first catalog that can be served

    async def readiness(self) -> Readiness: ...

    async def run(self) -> None:
        """Run forever. Raises: BertierError, where it cannot begin."""

    async def stop(self) -> None: ...


class Upkeep:
    """The models, the catalog and the model servers of this process, and of those that follow it."""

    def __init__(
        self, service: AnswerService, models: Models, followers: Followers = NOBODY
    ) -> None:
        supervisor = models.supervisor
        restarts: Callable[[], int] = (lambda: supervisor.restarts) if supervisor else (lambda: 0)
        self._models = models
        self._settings = service.settings
        self.healing = Healing(service, models.servers, supervisor, followers=followers)
        self.watcher = Watcher(
            service,
            restarts,
            healing=self.healing.states,
            followers=followers,
            fit=models.fit,
            kept=KeptProfiles.of(service.settings),
        )
        self.background = BackgroundTasks(service, followers)
        self.ready = self.watcher.ready

    async def readiness(self) -> Readiness:
        return await self.watcher.readiness()

    async def run(self) -> None:
        if self._models.supervisor is not None:
            await self._models.supervisor.start(self._settings.triton_start_timeout_ms)
        await asyncio.gather(self.watcher.run(), self.background.run(), self.healing.run())

    async def stop(self) -> None:
        await self._models.backend.close()
        if self._models.supervisor is not None:
            await self._models.supervisor.stop()


class Gateway:
    """The parts of a running gateway, and what ended it early."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        metrics: Metrics,
        make_service: MakeService = AnswerService,
        workers: Workers | None = None,
        make_keeper: Callable[[AnswerService, Models], Keeper] = Upkeep,
    ) -> None:
        """`workers`: this gateway is one of them, and shares their limits and ports."""
        self.settings = settings
        self.models = models
        self.metrics = metrics
        self.metrics.build.info({"version": routes.VERSION})
        self.service = make_service(models.backend, settings, self.metrics)
        self.workers = workers
        self.service.admission.workers = workers
        quotas = None if workers is None else workers.quotas
        self.access = Access(settings, self.metrics, quotas=quotas)
        self.certificates = certificates.of(settings, self.metrics)
        self.keeper = make_keeper(self.service, models)
        self.server: shutdown.Server | None = None  # None: it does not listen yet
        self.grpc_port: int | None = None  # None: it does not listen yet
        self.failure: BertierError | None = None
        self.failed = asyncio.Event()

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Run gRPC, Triton and the watcher beside the HTTP frontend."""
        grpc_server = await grpc_api.start(
            self.service,
            self.settings,
            self.access,
            self.certificates,
            shared=self.workers is not None,
        )
        self.grpc_port = grpc_server.port
        serving = asyncio.create_task(self._serve_models(), name="models")
        lag = asyncio.create_task(self.service.admission.lag.run(), name="loop lag")
        recording = asyncio.create_task(self.service.decisions.run(), name="decisions")
        try:
            yield
        finally:
            lag.cancel()
            await grpc_api.stop(grpc_server, self.settings.drain_ms)
            await self.service.rollout.close()
            await self.service.shadow.close()
            serving.cancel()
            recording.cancel()
            await asyncio.wait([serving, recording])
            await self.keeper.stop()
            await asyncio.to_thread(self.service.decisions.write)  # last: the disk may hang

    def leave(self) -> None:
        """Report from now on that this gateway is about to stop, and keep answering."""
        self.service.leaving = True
        if self.workers is not None and self.workers.own is not None:
            self.workers.own.state = State.LEAVING

    async def _serve_models(self) -> None:
        try:
            await self.keeper.run()
        except BertierError as exc:
            log.error("%s", exc)
            self.failure = exc
            self.failed.set()


def build(gateway: Gateway) -> FastAPI:
    app = routes.create(gateway.service, gateway.keeper.readiness, gateway.lifespan, gateway.access)
    app.include_router(oip.router(gateway.service))
    return app


def choose_models(settings: Settings, metrics: Metrics) -> Models:
    """Return the configured backend; by default the best one on this host. Raises: SettingsError."""
    if settings.backend == "embedded":
        return _embedded(settings)
    if settings.triton_url:
        return _remote(settings, metrics)
    installation = find_installation()
    if installation is not None:
        return _own_triton(installation, settings)
    if settings.backend == "triton":
        raise SettingsError(
            "backend: no Triton was found on this host; install nvidia-pytriton (`make run` does),"
            " put tritonserver on PATH, or name a running one with --triton-url"
        )
    log.warning("no Triton on this host: models run in this process (backend: embedded)")
    return _embedded(settings)


def serve(settings: Settings, make_service: MakeService = AnswerService) -> int:
    """Serve until stopped; return the exit code. `make_service`: plugs in another policy, to measure it."""
    written = logs.set_up(settings.log_level, settings.log_format)
    tracing.start(routes.VERSION)
    # After draining, uvicorn raises the signal again; nothing is left to do then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(_serve(settings, written, make_service))
    except BertierError as exc:
        log.error("%s", exc)
        return 1
    finally:
        tracing.stop()


@asynccontextmanager
async def watched(
    gateway: Gateway, listener: socket.socket | None = None
) -> AsyncIterator[int | None]:
    """Run the ops server for the length of the block, if the settings name a port for it.

    `listener`: of the parent, which shares it. Raises: SettingsError.
    """
    if listener is None:
        listener = open_ops(gateway.settings)
    if listener is None:
        yield None
        return
    with listener:
        api = HttpApi(gateway.service, gateway.keeper.readiness)
        async with ops_server.opened(api, listener, Limits.of(gateway.settings), gateway.metrics):
            yield listener.getsockname()[1]


def open_ops(settings: Settings) -> socket.socket | None:
    """Return the listening socket of the ops server; None: it has none. Raises: SettingsError."""
    if settings.metrics_port is None:
        return None
    listener = sockets.bind(settings.metrics_host, settings.metrics_port, "metrics_port")
    log.info("metrics: http://%s:%d/metrics", *listener.getsockname()[:2])
    return listener


async def _serve(settings: Settings, written: logs.StderrHandler, make_service: MakeService) -> int:
    """Build the gateway from its settings and files, then listen; errors in them are raised before."""
    metrics = Metrics(settings.classes)
    written.on_lost = metrics.log_lines_lost.inc
    warn_of(settings)
    models = choose_models(settings, metrics)
    if models.triton is not None:
        check_ports(models.triton)
    gateway = Gateway(fitted(settings), models, metrics, make_service)
    with sockets.open_http(settings) as listener:
        try:
            return await answer_at(listener, gateway)
        finally:
            if settings.uds is not None:
                settings.uds.unlink(missing_ok=True)


def warn_of(settings: Settings) -> None:
    """Log what is allowed and probably not meant."""
    for one, other in slo.equal_classes(settings.classes):
        log.warning("classes.%s and classes.%s are equal; only their metrics differ", one, other)


def fitted(settings: Settings) -> Settings:
    """Return the settings with no more connections than this process may open."""
    fitting = open_files.connections_for(settings.max_connections, settings.probe_connections)
    return settings.model_copy(update={"max_connections": fitting})


async def answer_at(
    listener: socket.socket, gateway: Gateway, ops_listener: socket.socket | None = None
) -> int:
    """Run all parts until stopped, or until one fails; return the exit code."""
    settings, tls = gateway.settings, gateway.certificates
    gateway.service.observer.log_access(settings.access_log_share, texts=settings.log_texts)
    gateway.server = server = shutdown.Server(
        uvicorn.Config(
            build(gateway),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the caller's address is not used
            lifespan="on",
            ws="none",
            ssl_context_factory=None if tls is None else lambda *_: tls.context(),
            timeout_graceful_shutdown=math.ceil(settings.drain_ms / 1e3),
        ),
        Limits.of(settings),
        gateway.metrics,
        settings.stop_delay_ms,
        gateway.leave,
    )
    if gateway.workers is not None:
        server.once, server.workers = True, gateway.workers
        server.connections.own = gateway.workers.own
    watching = [
        asyncio.create_task(_say_when_ready(gateway, settings, port_of(listener))),
        asyncio.create_task(_stop_when_failed(gateway, server)),
    ]
    async with watched(gateway, ops_listener):
        await server.serve(sockets=[listener])
    for task in watching:
        task.cancel()
    return 1 if gateway.failure is not None or not server.started else 0


def port_of(listener: socket.socket) -> int:
    """Return the port of a TCP socket; 0: it is a Unix socket."""
    return 0 if listener.family == socket.AF_UNIX else int(listener.getsockname()[1])


async def _say_when_ready(gateway: Gateway, settings: Settings, port: int) -> None:
    await gateway.keeper.ready.wait()
    gc.collect()
    gc.freeze()  # what lives as long as the process is no longer looked at: shorter pauses
    if gateway.workers is None:  # else its parent says so, once
        print_ready(settings, gateway.service, port, gateway.grpc_port)


def print_ready(
    settings: Settings, service: AnswerService, port: int, grpc_port: int | None
) -> None:
    """Print where the gateway answers, and an example."""
    serving = service.serving
    answers = serving is None or QA in serving.catalog.task_names
    text = welcome.ready_text(
        settings.host,
        port,
        tls=settings.tls_certificate is not None,
        keys=settings.api_keys_file is not None or bool(settings.api_keys),
        apart=settings.metrics_port is not None,
        playground=settings.playground,
        best_floor=serving.of(QA).best_floor if serving is not None and answers else 0.0,
        classification=None if serving is None or answers else serving.catalog.tasks[0],
        grpc_port=grpc_port,
        uds=settings.uds,
    )
    with suppress(OSError):  # a full disk
        print(text, flush=True)


async def _stop_when_failed(gateway: Gateway, server: uvicorn.Server) -> None:
    await gateway.failed.wait()
    server.should_exit = True


def _remote(settings: Settings, metrics: Metrics) -> Models:
    """Return the Tritons at the addresses of the settings."""
    log.info("models run in the Triton at %s", ", ".join(settings.triton_url))
    after_ms, credentials = settings.unload_after_ms, triton_credentials(settings)
    tritons = {
        url: TritonBackend(
            url,
            engine=f"triton at {url}",
            unload_after_ms=after_ms,
            cores=settings.triton_cores,
            credentials=credentials,
        )
        for url in settings.triton_url
    }
    if len(tritons) == 1:
        return Models(tritons[settings.triton_url[0]], servers=tritons)
    burst = settings.part_of(RETRY_BURST)
    replicas = Replicas(tritons, metrics, settings.retry_share, retry_burst=burst)
    return Models(replicas, servers=tritons)


def triton_credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """Return what the way to Triton is secured with; None: nothing. Raises: SettingsError."""
    if settings.triton_tls_authority is None:
        return None
    found: dict[str, bytes | None] = {}
    for name in ("authority", "certificate", "key"):
        file: Path | None = getattr(settings, f"triton_tls_{name}")
        try:
            found[name] = pem = None if file is None else file.read_bytes()
        except OSError as exc:
            raise SettingsError(f"triton_tls_{name}: {file}: {exc.strerror}") from exc
        if pem is not None and b"-----BEGIN" not in pem:
            raise SettingsError(f"triton_tls_{name}: {file}: no PEM file")
    return grpc.ssl_channel_credentials(found["authority"], found["key"], found["certificate"])


def _own_triton(installation: TritonInstallation, settings: Settings) -> Models:
    fitting = Fitting(cgroups.memory_limit_bytes())
    options = TritonOptions(
        settings.model_repository,
        settings.triton_http_port,
        settings.triton_grpc_port,
        settings.triton_metrics_port,
        load_all=_fits(settings.model_repository, fitting),
    )
    log.info("models run in a Triton of our own: %s", installation.binary)
    backend = TritonBackend(
        options.grpc_url,
        engine=installation.engine,
        unload_after_ms=settings.unload_after_ms,  # a second gateway may use it, too
        repository=None if options.load_all else settings.model_repository,
        cores=host.usable_cpu(),
    )
    servers = {"triton": backend}
    return Models(backend, Supervisor(installation, options), options, servers, fitting.fit)


def _fits(repository: Path, fitting: Fitting) -> bool:
    """Say whether all models may be loaded as they are published; the watcher tells what is wrong with them."""
    try:
        return fitting.fits(store.read(repository))
    except RepositoryError:
        return True


def _embedded(settings: Settings) -> Models:
    from gateway.backends.embedded import EmbeddedBackend

    return Models(EmbeddedBackend(settings.model_repository))


def new_loop() -> asyncio.AbstractEventLoop:
    with suppress(ImportError):
        import uvloop

        return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())
    return asyncio.new_event_loop()
