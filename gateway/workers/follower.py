"""What one worker serves: the sets that its parent checked. It asks models questions, and checks none."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateway import slo
from gateway.app import Models
from gateway.backends.pool import Replicas
from gateway.clock import now_ms
from gateway.errors import BackendUnavailable, RepositoryError
from gateway.latency.model import LatencyModel
from gateway.latency.other_workers import OtherWorkers
from gateway.lifecycle.preparation import capacity, encoder_for
from gateway.lifecycle.readiness import Readiness, states_of
from gateway.lifecycle.retirement import Retirement
from gateway.monitoring.sequential_tests import Comparison, Found
from gateway.observability import merged_metrics
from gateway.observability.merged_metrics import Snapshot
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.serving_set import ServingSet
from gateway.shared_memory import State, Workers
from gateway.workers.channel import Channel, ChannelClosed, Handler
from gateway.workers.messages import Admissions, Published

log = logging.getLogger(__name__)

LOOK_MS = 250.0  # between looks for lost model instances
PARENT_MS = 1_000.0  # until the parent answers a probe
SCRAPE_MS = 6_000.0  # until it has the metrics of all
MOST_ANSWERS = 200  # whose confidence is sent at once


class Follower:
    """Serves what the parent publishes, and tells it what it finds out."""

    def __init__(
        self, service: AnswerService, models: Models, channel: Channel, workers: Workers
    ) -> None:
        self.ready = asyncio.Event()
        self._service = service
        self._models = models
        self._channel = channel
        self._workers = workers
        self._others = OtherWorkers(workers)
        self._parent_silent = False
        self._next: tuple[Published, ServingSet] | None = None
        self._preparing = 0
        longest_ms = slo.longest_timeout_ms(service.settings.classes)
        self._retirement = Retirement(longest_ms, now_ms)
        self._lost: dict[str, set[str]] = {name: set() for name in models.servers}
        self._repeated: dict[str, Counter[str]] = {name: Counter() for name in models.servers}
        self._answers: list[tuple[str, bytes, float, int]] = []
        service.shadow.elsewhere = self
        service.metrics.merge = self._merge

    def handlers(self) -> dict[str, Handler]:
        """Return what the parent may tell and ask."""
        return {
            "prepare": self._prepare,
            "switch": self._switch,
            "tests": self._show_tests,
            "admitted": self._admit,
            "gone": self._trip,
            "healed": self._forget_lost,
            "external": self._set_external,
            "answered": self._answered,
            "snapshot": self._snapshot,
        }

    async def readiness(self) -> Readiness:
        """Return the state of the whole gateway, as the parent knows it."""
        serving, service = self._service.serving, self._service
        try:
            whole: Readiness = await self._channel.ask("readiness", timeout_ms=PARENT_MS)
        except ChannelClosed as exc:
            whole = await self._alone(str(exc))
        else:
            self._parent_silent = False
        reasons = list(whole.reasons)
        if serving is None and not reasons:
            reasons.append("this worker has no models yet")
        if service.leaving and "the gateway is about to stop" not in reasons:
            reasons.append("the gateway is about to stop")
        return replace(
            whole, ready=not reasons, reasons=tuple(reasons), variants=states_of(serving)
        )

    async def run(self) -> None:
        """Look after the model servers, as far as a worker sees more of them than its parent."""
        backend, next_check = self._service.backend, 0.0
        while True:
            try:
                self._look()
                if now_ms() >= next_check:
                    if isinstance(backend, Replicas):
                        await backend.is_ready()
                    await self._unload_unused()
                    next_check = now_ms() + self._service.settings.catalog_poll_ms
            except Exception:  # keep serving
                log.exception("looking after the model servers failed; it continues")
            await asyncio.sleep(LOOK_MS / 1e3)

    async def stop(self) -> None:
        await self._models.backend.close()

    def compared(self, plan: str, text: bytes, outcome: Comparison) -> None:
        """Have the parent test the agreement of a plan."""
        self._channel.send("compared", (plan, text, outcome))

    def answered(self, variant: str, text: bytes, score: float, n_tokens: int) -> None:
        """Have the parent test the confidence of a variant; some answers are sent together."""
        self._answers.append((variant, text, score, n_tokens))
        if len(self._answers) >= MOST_ANSWERS:
            self._send_answers()

    async def last_words(self) -> None:
        """Leave to the parent what must not be lost with this process."""
        self._send_answers()
        self._channel.send("last", await self._snapshot(None))
        await self._channel.flush()

    def _send_answers(self) -> None:
        if self._answers:
            self._channel.send("answers", self._answers)
            self._answers = []

    async def _alone(self, why: str) -> Readiness:
        """Return what this worker knows without its parent."""
        backend, serving = self._service.backend, self._service.serving
        up = await backend.is_ready()
        if not self._parent_silent:
            log.warning("the parent process does not say how ready it is: %s", why)
        self._parent_silent = True
        return Readiness(
            ready=up,
            reasons=() if up else (f"{backend.name}: the model server is not ready",),
            backend=backend.name,
            engine=backend.engine,
            backend_up=up,
            catalog_sha256=None,
            refused=None,
            variants=states_of(serving),
        )

    async def _prepare(self, published: Published) -> bool:
        """Build the set; the switch comes when all workers have. Returns whether that was possible."""
        self._preparing += 1
        try:
            repository, serving = self._service.settings.model_repository, self._service.serving
            encoder = await encoder_for(repository, published.catalog, serving)
            await self._load(published)
        except (RepositoryError, BackendUnavailable) as exc:
            log.error("the catalog that the parent checked cannot be used here: %s", exc)
            return False
        finally:
            self._preparing -= 1
        old = self._service.serving
        latency = LatencyModel(
            published.profiles,
            published.cores,
            published.instances,
            None if old is None else old.latency,
        )
        latency.others = self._others
        self._next = (
            published,
            ServingSet(
                catalog=published.catalog,
                encoder=encoder,
                trust=published.trust,
                profiles=published.profiles,
                latency=latency,
                problems=published.problems,
                under_load=published.under_load,
            ),
        )
        return True

    async def _load(self, published: Published) -> None:
        """Load the models of a set that run in this process. Raises: BackendUnavailable."""
        if not self._has_models:
            return
        variants = [published.catalog.variant(name) for name in published.trust]
        self._retirement.load(variants)
        for variant in variants:
            await self._service.backend.load(variant)

    async def _unload_unused(self) -> None:
        """Free the models of this process that no request can ask any more."""
        serving = self._service.serving
        if serving is None or self._preparing or not self._has_models:
            return
        catalogs = (
            [serving.catalog] if self._next is None else [serving.catalog, self._next[0].catalog]
        )
        for variant in self._retirement.unused([v for each in catalogs for v in each.variants]):
            await self._service.backend.unload(variant, ())
            self._retirement.forget(variant)
            log.info("%s: version %d unloaded", variant.name, variant.version)

    @property
    def _has_models(self) -> bool:
        """Whether models run in this process; those of a model server are the parent's to unload."""
        return self._service.backend.name == "embedded"

    async def _switch(self, number: int) -> None:
        """Serve the set with this number, which was prepared."""
        if self._next is None or self._next[0].number != number:
            return
        published, serving = self._next
        self._next, old = None, self._service.serving
        if old is not None and not published.checked:
            serving = replace(serving, breakers=old.breakers.keeping(serving.trust.keys()))
        if old is not None:
            self._retirement.replace(old)
        self._service.serving = self._service.shadow.follow(serving)
        await self._show_tests(published.tests)
        await self._admit(published.admissions)
        if serving.plans() and not self.ready.is_set():
            self.ready.set()
            assert self._workers.own is not None
            if not self._service.leaving:
                self._workers.own.state = State.READY
            self._channel.send("ready")

    async def _show_tests(self, found: Found) -> None:
        self._service.shadow.certificate_tests.show(found)

    async def _admit(self, admissions: Admissions) -> None:
        """Ask the model servers that the parent asks, for the same variants."""
        backend, serving = self._service.backend, self._service.serving
        if not isinstance(backend, Replicas):
            return
        for replica in backend.members:
            variants = admissions.get(replica.name, ())
            for known in set(replica.admitted.values()) - set(variants):
                replica.dismiss(known, "the parent process does not ask it")
            for variant in variants:
                replica.admit(variant)
        if serving is not None:
            serving.latency.resize(*capacity(serving.catalog, backend))

    async def _trip(self, variant: str) -> None:
        """Open the breaker of a variant that has no instance left."""
        serving = self._service.serving
        if serving is not None and serving.breakers.of(variant).trip(now_ms()):
            self._service.metrics.note_breaker(variant, "open")

    async def _forget_lost(self, healed: tuple[str, str]) -> None:
        server, variant = healed
        if server in self._models.servers:
            self._models.servers[server].forget_lost(variant)
            self._lost[server].discard(variant)

    async def _set_external(self, windows: Mapping[str, int]) -> None:
        if self._service.serving is not None:
            self._service.serving.latency.set_external(windows, now_ms())

    async def _answered(self, _: None) -> dict[str, Counter[str]]:
        """Return what each server answered to this worker."""
        return {name: server.answered for name, server in self._models.servers.items()}

    def _look(self) -> None:
        self._send_answers()
        for name, server in self._models.servers.items():
            for model, n in server.repeated.items():
                self._service.metrics.repeated.labels(model).inc(n - self._repeated[name][model])
                self._repeated[name][model] = n
            fresh = {m: why for m, why in server.lost.items() if m not in self._lost[name]}
            if fresh:
                self._lost[name] |= fresh.keys()
                self._channel.send("lost", (name, fresh))

    async def _snapshot(self, _: Any) -> Snapshot:
        return await snapshot(self._service.metrics)

    async def _merge(self, own: Snapshot) -> Snapshot:
        """Return the metrics of all workers and the parent. Raises: BackendUnavailable."""
        began = time.perf_counter()
        try:
            parents, others = await self._channel.ask("scrape", own, timeout_ms=SCRAPE_MS)
        except ChannelClosed as exc:
            raise BackendUnavailable(
                f"the metrics of the other workers are missing: {exc}"
            ) from exc
        merged = await asyncio.to_thread(merged_metrics.merged, own, parents, others)
        log.debug("metrics of all workers: %.1f ms", (time.perf_counter() - began) * 1e3)
        return merged


async def snapshot(metrics: Metrics) -> Snapshot:
    """Return all metrics of this process; requests run in between."""
    found = []
    for metric in metrics.registry.collect():
        found.append(metric)
        await asyncio.sleep(0)
    return found
