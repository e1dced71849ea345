"""One worker as its parent sees it: started, replaced when it ends, and stopped."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from gateway.backends.retry import Retry, backoff_ms
from gateway.clock import now_ms
from gateway.observability.merged_metrics import Snapshot
from gateway.settings import SettingsError
from gateway.shared_memory import SharedMemory, Slot
from gateway.workers.channel import Channel, ChannelClosed, Handler
from gateway.workers.messages import Published, Start

log = logging.getLogger(__name__)

FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS = 500.0, 30_000.0
STABLE_S = 60.0  # after running for so long, the next end counts as the first again
OFTEN = 3  # ends in a row that are a crash loop
LAST_WORDS_S = 1.0  # until all is read that a worker sent before it ended
KILL_S = 10.0  # beyond the time that a worker may take to stop


class WorkerFailed(SettingsError):
    """A worker cannot start; the message says why."""


class Sockets(Protocol):
    """What a worker inherits."""

    http: socket.socket
    ops: socket.socket | None


class Child:
    """The process in one place; after its end, the next one."""

    def __init__(
        self,
        slot: Slot,
        memory: SharedMemory,
        listening: Sockets,
        start: Start,
        handlers: Mapping[str, Handler],
    ) -> None:
        self.number = slot.worker + 1  # as people count
        self.ready = asyncio.Event()  # set once
        self.begun = False  # it understands messages
        # Of the set that it cannot build.
        self.retry = Retry(FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS, now_ms)
        self.last: Snapshot = []  # its metrics, as they were last sent
        self.answered: Mapping[str, Counter[str]] = {}  # what each model server answered to it
        self.on_begun: Callable[[Child], Awaitable[None]] | None = None
        self.on_end: Callable[..., Awaitable[None]] | None = None
        self.channel = Channel({})
        self._slot = slot
        self._memory = memory
        self._listening = listening
        self._start = start
        self._handlers: dict[str, Handler] = {
            **handlers,
            "begun": self._begin,
            "ready": self._note_ready,
            "failed": self._note_failure,
            "last": self._note_last,
        }
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._why = ""  # it could not start
        self._tasks: set[asyncio.Task[None]] = set()
        self._killer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> str:
        """What it does, in one word."""
        return self._slot.state.name.lower()

    async def run(self) -> None:
        """Keep a process running until `stop`. Raises: WorkerFailed, where the first one gets not ready."""
        ends = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            how = await self._live()
            stopping = self._stopping.is_set()
            if self.on_end is not None:
                await self.on_end(self, replaced=not stopping)
            self.last, self.answered = [], {}
            if stopping:
                return
            if not self.ready.is_set():
                raise WorkerFailed(self._why or f"worker {self.number} {how} before it was ready")
            ends = 1 if time.monotonic() - began > STABLE_S else ends + 1
            await self._pause(ends, how)

    async def prepare(self, published: Published, timeout_ms: float) -> bool:
        """Have it build a set; return whether it has, or is gone."""
        try:
            built = bool(await self.channel.ask("prepare", published, timeout_ms=timeout_ms))
        except ChannelClosed as exc:
            log.warning("worker %d does not follow the catalog yet: %s", self.number, exc)
            built = not self.begun
        if built:
            self.retry.worked()
        else:
            self.retry.failed()
        return built

    async def take_snapshot(self, timeout_ms: float) -> None:
        """Bring its metrics up to date, if it answers."""
        with suppress(ChannelClosed):
            found = await self.channel.ask("snapshot", timeout_ms=timeout_ms)
            self.last = found or self.last

    async def count_answers(self, timeout_ms: float) -> None:
        """Bring the numbers of its answers up to date, if it says them."""
        with suppress(ChannelClosed):
            found = await self.channel.ask("answered", timeout_ms=timeout_ms)
            self.answered = found or self.answered

    async def flush(self, timeout_ms: float) -> None:
        """Have it send what it has seen; what it sent is taken when this returns."""
        with suppress(ChannelClosed):
            await self.channel.ask("flush", timeout_ms=timeout_ms)

    def stop(self, number: int) -> None:
        """Have it stop as a gateway does at this signal."""
        self._stopping.set()
        self.channel.send("stop", number)
        settings = self._start.settings
        if not self.begun:  # it does not listen yet
            self._kill()
        if self._killer is None:
            # HTTP drains, then gRPC.
            longest_s = (settings.stop_delay_ms + 2 * settings.drain_ms) / 1e3
            longest_s += settings.grpc_connection_age_ms / 1e3 + KILL_S
            self._killer = asyncio.get_running_loop().call_later(longest_s, self._kill)

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            if self.begun:
                log.error("worker %d does not end: killed", self.number)
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _live(self) -> str:
        """Run one process; return how it ended."""
        ours, theirs = socket.socketpair()
        self._why = ""
        try:
            with theirs:
                self._process = await self._spawn(theirs)
        except OSError as exc:  # no more processes, files or memory: the next try may have them
            ours.close()
            return f"could not be started: {exc}"
        self.channel = Channel(self._handlers)
        await self.channel.open(ours)
        reading = asyncio.create_task(self.channel.run(), name=f"worker {self.number}")
        self.channel.send("start", self._start)
        if self._stopping.is_set():
            self._kill()
        code = await self._process.wait()
        await asyncio.wait([reading], timeout=LAST_WORDS_S)
        reading.cancel()
        self.begun = False
        self.retry.worked()
        self._slot.clear()
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    async def _spawn(self, control: socket.socket) -> asyncio.subprocess.Process:
        http, ops = self._listening.http, self._listening.ops
        numbers = [control.fileno(), http.fileno(), -1 if ops is None else ops.fileno()]
        numbers.append(self._memory.number)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.workers.worker"),
            *(str(self._slot.worker), str(self._memory.n_workers), *map(str, numbers)),
            pass_fds=[number for number in numbers if number >= 0],
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is the parent's to hand on
        )

    async def _pause(self, ends: int, how: str) -> None:
        """Say how it ended, and wait until the next one starts: at once, then longer each time."""
        wait_ms = 0.0 if ends == 1 else backoff_ms(ends - 2, FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS)
        if ends < OFTEN:
            log.error("worker %d %s; another one starts", self.number, how)
        else:
            log.error(
                "worker %d %s, the %dth time in a row: see its messages above; another one starts in %g s,"
                " the other workers answer meanwhile",
                *(self.number, how, ends, wait_ms / 1e3),
            )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_ms / 1e3 + 1e-3)

    async def _begin(self, _: Any) -> None:
        self.begun = True
        if self.on_begun is not None:  # it asks the worker, whose answers come through this task
            task: asyncio.Task[None] = asyncio.ensure_future(self.on_begun(self))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _note_ready(self, _: Any) -> None:
        self.ready.set()
        log.info("worker %d answers", self.number)

    async def _note_failure(self, why: str) -> None:
        self._why = why
        log.error("worker %d cannot start: %s", self.number, why)

    async def _note_last(self, found: Snapshot) -> None:
        self.last = found
