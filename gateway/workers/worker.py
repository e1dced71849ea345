"""One worker: a gateway that answers, with models and catalog that its parent keeps. Started by parent.py alone.

    python -m gateway.workers.worker NUMBER OF CONTROL HTTP OPS MEMORY

The last four are file descriptors; OPS is -1 where there is no ops server. It drains and ends when its parent says so
or is gone.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gateway import app
from gateway.app import Gateway, Models
from gateway.backends.triton import TritonBackend
from gateway.errors import BertierError
from gateway.frontends.http import routes
from gateway.observability import logs, tracing
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.shared_memory import SharedMemory, State, Workers
from gateway.workers.channel import Channel, Handler
from gateway.workers.follower import Follower
from gateway.workers.messages import Start

log = logging.getLogger("gateway.workers.worker")  # it runs as __main__


@dataclass(frozen=True, slots=True)
class Inherited:
    """What the parent opened for this worker."""

    control: socket.socket
    http: socket.socket
    ops: socket.socket | None
    workers: Workers

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Inherited:
        number, n_workers, control, http, ops, memory = map(int, arguments)
        return cls(
            socket.socket(fileno=control),
            socket.socket(fileno=http),
            None if ops < 0 else socket.socket(fileno=ops),
            Workers(SharedMemory(n_workers, memory), number),
        )


class Worker:
    """The life of this process."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self._start: asyncio.Future[Start] = asyncio.get_running_loop().create_future()
        self._handlers: dict[str, Handler] = {"start": self._begin, "stop": self._relay}
        self._channel = Channel(self._handlers)
        self._gateway: Gateway | None = None
        self._ended = asyncio.Event()  # before it answered anybody

    async def run(self) -> int:
        await self._channel.open(self._inherited.control)
        reading = asyncio.create_task(self._channel.run(), name="parent")
        reading.add_done_callback(lambda _: self._parent_gone())
        living = asyncio.create_task(self._live(), name="worker")
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait([living, ended], return_when=asyncio.FIRST_COMPLETED)
            return living.result() if living.done() else 0
        except BertierError as exc:
            self._channel.send("failed", str(exc))
            await self._channel.flush()
            return 1

    async def _live(self) -> int:
        start = await self._start
        if self._ended.is_set():
            return 0
        settings, metrics = start.settings, Metrics(start.settings.classes)
        written = logs.set_up(settings.log_level, settings.log_format)
        written.on_lost = metrics.log_lines_lost.inc
        tracing.start(routes.VERSION)
        workers = self._inherited.workers

        def follower(service: AnswerService, models: Models) -> Follower:
            return Follower(service, models, self._channel, workers)

        models = models_of(start, metrics)
        gateway = Gateway(
            app.fitted(settings), models, metrics, workers=workers, make_keeper=follower
        )
        assert isinstance(gateway.keeper, Follower)
        gateway.service.feedback.secret = start.secret
        self._handlers.update(gateway.keeper.handlers())
        self._channel.send("begun")
        await self._join(gateway)
        self._gateway = gateway
        code = await app.answer_at(self._inherited.http, gateway, self._inherited.ops)
        await gateway.keeper.last_words()
        tracing.stop()
        return code

    async def _join(self, gateway: Gateway) -> None:
        """Wait for the models where others answer meanwhile; where nobody does, the caller gets an error."""
        own = self._inherited.workers.own
        assert own is not None
        if not self._inherited.workers.others_ready:
            own.state = State.READY if gateway.keeper.ready.is_set() else State.STARTING
            return
        own.state = State.JOINING
        await gateway.keeper.ready.wait()

    async def _begin(self, start: Start) -> None:
        self._start.set_result(start)

    async def _relay(self, number: int) -> None:
        """Stop; the parent got this signal, too."""
        if self._gateway is None or self._gateway.server is None:
            self._ended.set()
        else:
            self._gateway.server.relay(number)

    def _parent_gone(self) -> None:
        if self._gateway is None or self._gateway.server is None:
            self._ended.set()
        elif not self._gateway.service.leaving:
            log.error("the parent process is gone: this worker ends, too")
            self._gateway.server.relay(signal.SIGTERM)


def models_of(start: Start, metrics: Metrics) -> Models:
    """Return how this worker asks the models that the parent chose."""
    if start.triton is None:
        return app.choose_models(start.settings, metrics)
    backend = TritonBackend(
        start.triton, engine=start.engine, unload_after_ms=start.settings.unload_after_ms
    )
    return Models(backend, servers={"triton": backend})


def part_of(settings: Settings) -> Settings:
    """Return the settings of one worker: connections and cache are divided, other limits are shared."""
    return settings.model_copy(
        update={
            "max_connections": int(settings.part_of(settings.max_connections)),
            "cache_bytes": int(settings.part_of(settings.cache_bytes))
            if settings.cache_bytes
            else 0,
        }
    )


def main(arguments: Sequence[str]) -> int:
    inherited = Inherited.of(arguments)
    # After draining, uvicorn raises the signal again; nothing is left to do then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    async def run() -> int:
        return await Worker(inherited).run()

    with asyncio.Runner(loop_factory=app.new_loop) as runner:
        return runner.run(run())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
