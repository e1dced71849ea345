"""The parent of several workers: our own Triton, the catalog, and the workers' lives. It answers no question.

It opens the sockets that the workers share: HTTP connections are taken from one queue, gRPC's are distributed by the
kernel (SO_REUSEPORT). It sends all workers what it finds out about models, and they send it what they see.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from gateway import app, slo
from gateway.app import Models, Upkeep
from gateway.auth import tls as certificates
from gateway.auth.access import Access
from gateway.backends.pool import Replicas
from gateway.catalog import host
from gateway.clock import now_ms
from gateway.errors import BertierError
from gateway.frontends import sockets
from gateway.latency.other_workers import OtherWorkers
from gateway.lifecycle.followers import Followers
from gateway.lifecycle.preparation import capacity
from gateway.lifecycle.readiness import Readiness
from gateway.monitoring.sequential_tests import Comparison
from gateway.observability import logs, merged_metrics
from gateway.observability.merged_metrics import Snapshot
from gateway.observability.metrics import Metrics
from gateway.request.feedback import Given, Lives, OwnedKey, Scored, Truth
from gateway.request.rollout import Running, Seen
from gateway.request.service import AnswerService
from gateway.serving_set import ServingSet
from gateway.settings import Settings
from gateway.shared_memory import SharedMemory, Workers
from gateway.triton_server.supervisor import check_ports
from gateway.workers import whole
from gateway.workers.channel import Handler
from gateway.workers.child import Child
from gateway.workers.follower import snapshot
from gateway.workers.messages import Admissions, CheckedSet, Published, Start, Tried
from gateway.workers.worker import part_of

log = logging.getLogger(__name__)

PREPARE_MS = 30_000.0  # until a worker has built a set; then it follows later
FLUSH_MS = 1_000.0  # until a worker has sent what it has seen; else a report is not found
SNAPSHOT_MS = 2_500.0  # until a worker has sent its metrics; else its last ones count
KEPT_MS = (
    PREPARE_MS + 5_000.0
)  # longer than the longest deadline: until workers have switched, and answered


def serve(settings: Settings) -> int:
    """Serve with `settings.workers` processes until stopped; return the exit code."""
    written = logs.set_up(settings.log_level, settings.log_format)
    metrics = Metrics(settings.classes)
    written.on_lost = metrics.log_lines_lost.inc
    try:
        with asyncio.Runner(loop_factory=app.new_loop) as runner:
            return runner.run(_serve(settings, metrics))
    except BertierError as exc:
        log.error("%s", exc)
        return 1


async def _serve(settings: Settings, metrics: Metrics) -> int:
    _warn_of(settings)
    _check_files(settings)
    models = app.choose_models(settings, metrics)
    if models.triton is not None:
        check_ports(models.triton)
    if models.backend.name == "embedded":
        log.warning(
            "every worker and their parent load all models of their own: %d times the memory of one"
            " process; a Triton is shared",
            int(settings.workers) + 1,
        )
    with Listening(settings) as listening:
        return await Parent(settings, models, metrics, listening).run()


def _warn_of(settings: Settings) -> None:
    app.warn_of(settings)
    cores = whole(host.usable_cpu())
    if int(settings.workers) > cores:
        log.warning("%s workers share %d usable cores: more cost more", settings.workers, cores)


def _check_files(settings: Settings) -> None:
    """Raise what a worker would raise. Raises: KeyFileError, CertificateError."""
    unused = Metrics(settings.classes)
    Access(settings, unused)
    certificates.of(settings, unused)


class Listening:
    """The sockets that the workers share."""

    def __init__(self, settings: Settings) -> None:
        """Raises: SettingsError."""
        self._opened = ExitStack()
        self.uds = settings.uds
        self.http = self._opened.enter_context(sockets.open_http(settings))
        grpc = sockets.reserve_shared(settings.host, settings.grpc_port, "grpc_port")
        self.grpc_port: int = self._opened.enter_context(grpc).getsockname()[1]
        self.ops = app.open_ops(settings)
        if self.ops is not None:
            self._opened.enter_context(self.ops)

    def close(self) -> None:
        """Leave the sockets to the workers, who close them when they have taken all connections."""
        self._opened.close()

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)


class Parent(Followers):
    """Keeps models, catalog and workers, and tells each what the others need to know."""

    def __init__(
        self, settings: Settings, models: Models, metrics: Metrics, listening: Listening
    ) -> None:
        self._settings = settings
        self._models = models
        self._metrics = metrics
        self._listening = listening
        self._http_port = app.port_of(listening.http)
        memory = SharedMemory(int(settings.workers))
        self._others = OtherWorkers(Workers(memory, None))
        self._service = AnswerService(models.backend, settings, metrics)
        self._upkeep = Upkeep(self._service, models, followers=self)
        handlers: dict[str, Handler] = {
            "readiness": self._readiness,
            "compared": self._compared,
            "answers": self._test_answers,
            "outcomes": self._test_outcomes,
            "given": self._remember,
            "report": self._report,
            "live": self._live,
            "lost": self._lost,
        }
        start = Start(
            part_of(settings).model_copy(
                update={
                    "grpc_port": listening.grpc_port,
                    "backend": "auto" if settings.triton_url else models.backend.name,
                }
            ),
            None if models.triton is None else models.triton.grpc_url,
            models.backend.engine,
            self._service.feedback.secret,
        )
        self._children = [
            Child(slot, memory, listening, start, handlers | {"scrape": partial(self._scrape, nth)})
            for nth, slot in enumerate(memory.slots())
        ]
        for child in self._children:
            child.on_begun, child.on_end = self._welcome, self._ended
        self._numbers = itertools.count(1)  # of sets, and of the tests of candidates
        self._served: ServingSet | None = None
        self._current: CheckedSet | None = None
        self._tried: Tried | None = None
        self._published: Published | None = None
        self._news = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._late: dict[int, asyncio.TimerHandle] = {}  # workers that could not build a set yet
        self._catching_up: set[asyncio.Task[None]] = set()
        self._kept: deque[tuple[float, ServingSet]] = deque()
        self._kept_ms = slo.longest_timeout_ms(settings.classes) + KEPT_MS
        self._stop = asyncio.Event()
        self._running: Running | None = None
        self._gone: Snapshot = []  # what ended workers have counted
        self._gone_answered: dict[str, Counter[str]] = {name: Counter() for name in models.servers}

    async def run(self) -> int:
        """Serve until a signal comes, or until something cannot begin. Raises: BertierError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        children = [asyncio.create_task(each.run()) for each in self._children]
        own = [asyncio.create_task(each) for each in (self._upkeep.run(), self._publish())]
        ready = asyncio.create_task(self._say_when_ready())
        stop: asyncio.Task[Any] = asyncio.create_task(self._stop.wait())
        ends: list[asyncio.Task[Any]] = [*children, *own, stop]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(children, [*own, ready, stop])
        return 0

    async def _end(
        self, children: Sequence[asyncio.Task[None]], own: Sequence[asyncio.Task[Any]]
    ) -> None:
        """Let the workers drain, then end the models. Raises: what ended one of the tasks early."""
        failed = [
            exc
            for task in (*children, *own)
            if task.done() and not task.cancelled() and (exc := task.exception()) is not None
        ]
        if not self._stop.is_set():
            self._leave(signal.SIGTERM)
        await asyncio.wait(children)
        for task in own:
            task.cancel()
        await asyncio.wait(own)
        await self._service.shadow.close()
        await self._upkeep.stop()
        if failed:
            raise failed[0]

    def _on_signal(self, number: int) -> None:
        self._leave(number)
        self._stop.set()

    def _leave(self, number: int) -> None:
        """Have all workers drain, and open no more connections than they take."""
        self._service.leaving = True
        self._listening.close()
        for child in self._children:
            child.stop(number)

    async def _say_when_ready(self) -> None:
        await asyncio.gather(*(child.ready.wait() for child in self._children))
        log.info("%d workers answer", len(self._children))
        app.print_ready(self._settings, self._service, self._http_port, self._listening.grpc_port)

    # What the watcher, healing and background tasks of this process find out.

    def serve(self, serving: ServingSet) -> None:
        before, self._served = self._served, serving
        checked = before is None or before.breakers is not serving.breakers
        self._current = self._checked_set(serving, checked=checked)
        self._spread()

    def tried(self, running: Running | None) -> None:
        before, self._running = self._running, running
        if running is None:
            self._tried = None
        else:
            known = self._tried if before is running else None
            self._tried = Tried(
                number=next(self._numbers) if known is None else known.number,
                sha256=running.sha256,
                share=running.share,
                shadow=running.shadow,
                verdict=running.tests.verdict,
                serving=None
                if running.serving is None
                else self._checked_set(running.serving, checked=True),
                classes=running.classes,
            )
        self._spread()

    def reclassed(self) -> None:
        self._spread()

    def _checked_set(self, serving: ServingSet, *, checked: bool) -> CheckedSet:
        now = now_ms()
        self._kept.append((now, serving))  # else its models could be unloaded too soon
        while len(self._kept) > 1 and now - self._kept[1][0] > self._kept_ms:
            self._kept.popleft()
        serving.latency.others = self._others
        cores, instances = capacity(serving.catalog, self._service.backend)
        return CheckedSet(
            number=next(self._numbers),
            catalog=serving.catalog,
            trust=serving.trust,
            profiles=serving.profiles,
            problems=serving.problems,
            under_load=serving.under_load,
            cores=cores,
            instances=instances,
            checked=checked,
        )

    def _spread(self) -> None:
        """Have all workers follow what is served now."""
        if self._current is None:
            return
        self._published = Published(
            number=self._published.number + 1 if self._published else 1,
            current=self._current,
            candidate=self._tried,
            classes=self._service.classes,
            tests=self._service.shadow.certificate_tests.found,
            admissions=self._admissions(),
        )
        self._news.set()

    def admitted(self) -> None:
        self._tell("admitted", self._admissions())

    def gone(self, variant: str) -> None:
        self._tell("gone", variant)

    def healed(self, server: str, variant: str) -> None:
        self._tell("healed", (server, variant))

    def external(self, windows: Mapping[str, int]) -> None:
        self._tell("external", windows)

    async def count_answers(self) -> None:
        await asyncio.gather(*(child.count_answers(SNAPSHOT_MS) for child in self._children))
        for name, server in self._models.servers.items():
            server.others_answered = sum(
                (child.answered.get(name, Counter()) for child in self._children),
                Counter(self._gone_answered[name]),
            )

    def _tell(self, kind: str, payload: Any) -> None:
        for child in self._children:
            if child.begun:  # another one gets everything when it begins
                child.channel.send(kind, payload)

    def _admissions(self) -> Admissions:
        backend = self._service.backend
        if not isinstance(backend, Replicas):
            return {}
        return {each.name: tuple(each.admitted.values()) for each in backend.members}

    # The workers.

    async def _publish(self) -> None:
        """Have all workers switch together to each set that is served from now on."""
        while True:
            await self._news.wait()
            self._news.clear()
            async with self._publishing:
                await self._publish_to([c for c in self._children if c.begun])

    async def _welcome(self, child: Child) -> None:
        """Have a new worker serve what the others serve."""
        async with self._publishing:
            await self._publish_to([child])

    async def _publish_to(self, children: Sequence[Child]) -> None:
        published = self._published
        if published is None:
            return
        # What was found out since it was published.
        published = replace(
            published,
            candidate=self._tried,
            classes=self._service.classes,
            tests=self._service.shadow.certificate_tests.found,
            admissions=self._admissions(),
        )
        await asyncio.gather(*(c.prepare(published, PREPARE_MS) for c in children))
        for child in children:
            if child.begun:  # a new process in its place has nothing prepared
                child.channel.send("switch", published.number)
            self._try_later(child)

    def _try_later(self, child: Child) -> None:
        """Have a worker that could not build the set try again; the others have it."""
        if (planned := self._late.pop(child.number, None)) is not None:
            planned.cancel()
        if (left_ms := child.retry.left_ms) is not None:
            loop = asyncio.get_running_loop()
            self._late[child.number] = loop.call_later(left_ms / 1e3, self._try_again, child)

    def _try_again(self, child: Child) -> None:
        task = asyncio.create_task(self._catch_up(child), name=f"worker {child.number} catches up")
        self._catching_up.add(task)
        task.add_done_callback(self._catching_up.discard)

    async def _catch_up(self, child: Child) -> None:
        async with self._publishing:
            if child.begun and child.retry.left_ms is not None:  # else it has a set by now
                await self._publish_to([child])

    async def _ended(self, child: Child, *, replaced: bool) -> None:
        """Keep what a worker counted that has ended."""
        self._gone = merged_metrics.lasting(self._gone, child.last)
        for name, answered in child.answered.items():
            self._gone_answered[name] += answered
        if replaced:
            self._metrics.worker_restarts.inc()

    async def _readiness(self, _: None) -> Readiness:
        found = await self._upkeep.readiness()
        states = {str(c.number): c.state for c in self._children}
        return replace(found, workers=states)

    async def _compared(self, seen: tuple[str, bytes, Comparison]) -> None:
        self._service.shadow.test_agreement(*seen)
        self._tell("tests", self._service.shadow.certificate_tests.found)

    async def _test_answers(self, answers: Sequence[tuple[str, bytes, float, int]]) -> None:
        before = self._service.shadow.certificate_tests.found.shifted
        for each in answers:
            self._service.shadow.test_confidence(*each)
        if self._service.shadow.certificate_tests.found.shifted != before:
            self._tell("tests", self._service.shadow.certificate_tests.found)

    async def _test_outcomes(self, outcomes: Sequence[tuple[int, Seen]]) -> None:
        """Test what a worker has seen of the candidate; a verdict holds for all workers at once."""
        for number, seen in outcomes:
            running, tried = self._running, self._tried
            if running is None or tried is None or tried.number != number:
                continue  # of one that has ended
            if self._service.rollout.test(running, seen):
                self._tried = replace(tried, verdict=running.tests.verdict)
                self._tell("verdict", (number, running.tests.verdict))

    async def _remember(self, given: Sequence[Given | tuple[OwnedKey, Comparison]]) -> None:
        feedback = self._service.feedback
        for each in given:
            if isinstance(each, Given):
                feedback.keep(each)
            else:
                feedback.predict(*each)

    async def _report(self, reported: tuple[OwnedKey, Truth]) -> Scored | BertierError:
        """Return how an answer of any worker scores, or why that is not known."""
        feedback = self._service.feedback
        if not feedback.knows(reported[0]):  # a worker may not have sent it yet
            begun = [child for child in self._children if child.begun]
            await asyncio.gather(*(child.flush(FLUSH_MS) for child in begun))
        try:
            return await feedback.take(*reported)
        except BertierError as exc:
            return exc

    async def _live(self, _: None) -> tuple[Lives, int]:
        return await self._service.feedback.known(self._service.serving)

    async def _lost(self, lost: tuple[str, dict[str, str]]) -> None:
        server, models = lost
        if server in self._models.servers:
            self._models.servers[server].note_lost(models)

    async def _scrape(self, nth: int, own: Snapshot) -> tuple[Snapshot, list[Snapshot]]:
        """Return the metrics of this process, and of all workers but the one that sent its own."""
        self._children[nth].last = own
        others = [child for child in self._children if child.number != nth + 1]
        await asyncio.gather(*(child.take_snapshot(SNAPSHOT_MS) for child in others))
        self._service.show_live()
        return await snapshot(self._metrics), [*(c.last for c in others), self._gone]
