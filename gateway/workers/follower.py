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
from gateway.domain import SetName
from gateway.errors import BackendUnavailable, RepositoryError
from gateway.latency.model import LatencyModel
from gateway.latency.other_workers import OtherWorkers
from gateway.lifecycle.preparation import capacity, encoder_for
from gateway.lifecycle.readiness import Readiness, states_of
from gateway.lifecycle.retirement import Retirement
from gateway.monitoring.rollout_tests import Chances, RolloutTests
from gateway.monitoring.sequential_tests import Found
from gateway.observability import merged_metrics
from gateway.observability.merged_metrics import Snapshot
from gateway.observability.metrics import Metrics
from gateway.request.rollout import Running
from gateway.request.service import AnswerService
from gateway.serving_set import ServingSet
from gateway.shared_memory import State, Workers
from gateway.workers.channel import Channel, ChannelClosed, Handler
from gateway.workers.messages import Admissions, CheckedSet, Published, Tried
from gateway.workers.observed import Observed

log = logging.getLogger(__name__)

LOOK_MS = 250.0  # between looks for lost model instances
PARENT_MS = 1_000.0  # until the parent answers a probe
SCRAPE_MS = 6_000.0  # until it has the metrics of all


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
        self._observed = Observed(service, channel)
        self._next: tuple[Published, ServingSet, ServingSet | None] | None = None
        self._newest: Published | None = None  # whose preparation began last
        self._sets: dict[int, ServingSet] = {}  # what is served, by the parent's numbers
        self._preparing = 0
        longest_ms = slo.longest_timeout_ms(service.settings.classes)
        self._retirement = Retirement(longest_ms, now_ms)
        self._lost: dict[str, set[str]] = {name: set() for name in models.servers}
        self._repeated: dict[str, Counter[str]] = {name: Counter() for name in models.servers}
        service.metrics.merge = self._merge

    def handlers(self) -> dict[str, Handler]:
        """Return what the parent may tell and ask."""
        return {
            "prepare": self._prepare,
            "switch": self._switch,
            "tests": self._show_tests,
            "verdict": self._observed.show_verdict,
            "flush": self._observed.flush,
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

    async def last_words(self) -> None:
        """Leave to the parent what must not be lost with this process."""
        self._observed.send()
        self._channel.send("last", await self._snapshot(None))
        await self._channel.flush()

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
        """Build what is new; the switch comes when all workers have. Returns whether all was possible."""
        self._preparing += 1
        self._newest = published
        try:
            current = await self._built(published.current, self._service.serving)
            candidate, whole = await self._candidate(published.candidate, current)
        except (RepositoryError, BackendUnavailable) as exc:
            log.error("the catalog that the parent checked cannot be used here: %s", exc)
            return False
        finally:
            self._preparing -= 1
        if self._newest is not published:  # the parent did not wait for this one
            return False
        self._next = (published, current, candidate)
        return whole

    async def _candidate(
        self, tried: Tried | None, current: ServingSet
    ) -> tuple[ServingSet | None, bool]:
        """Return the set of a candidate that has one, and whether it could be built; the current one goes on."""
        if tried is None or tried.serving is None:
            return None, True
        try:
            return await self._built(tried.serving, current), True
        except (RepositoryError, BackendUnavailable) as exc:
            log.error("the candidate that the parent checked cannot be tried here: %s", exc)
            return None, False

    async def _built(self, found: CheckedSet, previous: ServingSet | None) -> ServingSet:
        """Return a set to serve; the one that is served, if it is that. Raises: RepositoryError, BackendUnavailable."""
        if found.number in self._sets:
            return self._sets[found.number]
        repository = self._service.settings.model_repository
        encoder = await encoder_for(repository, found.catalog, previous)
        await self._load(found)
        latency = LatencyModel(
            found.profiles,
            found.cores,
            found.instances,
            None if previous is None else previous.latency,
        )
        latency.others = self._others
        return ServingSet(
            catalog=found.catalog,
            encoder=encoder,
            trust=found.trust,
            profiles=found.profiles,
            latency=latency,
            problems=found.problems,
            under_load=found.under_load,
        )

    async def _load(self, found: CheckedSet) -> None:
        """Load the models of a set that run in this process. Raises: BackendUnavailable."""
        if not self._has_models:
            return
        variants = [found.catalog.variant(name) for name in found.trust]
        self._retirement.load(variants)
        for variant in variants:
            await self._service.backend.load(variant)

    async def _unload_unused(self) -> None:
        """Free the models of this process that no request can ask any more."""
        serving = self._service.serving
        if serving is None or self._preparing or not self._has_models:
            return
        sets = [serving, *self._service.candidates()]
        if self._next is not None:
            sets += [each for each in self._next[1:] if each is not None]
        routed = [variant for each in sets for variant in each.catalog.variants]
        for variant in self._retirement.unused(routed):
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
        published, serving, candidate = self._next
        self._next, old = None, self._service.serving
        if serving is not old:
            if old is not None and not published.current.checked:
                serving = replace(serving, breakers=old.breakers.keeping(serving.trust.keys()))
            if old is not None:
                self._retirement.replace(old)
            self._service.serving = serving = self._service.shadow.follow(serving)
        self._sets = {published.current.number: serving}
        self._service.classes = published.classes
        self._try(published.candidate, candidate)
        await self._show_tests(published.tests)
        await self._admit(published.admissions)
        if serving.plans() and not self.ready.is_set():
            self.ready.set()
            assert self._workers.own is not None
            if not self._service.leaving:
                self._workers.own.state = State.READY
            self._channel.send("ready")

    def _try(self, tried: Tried | None, serving: ServingSet | None) -> None:
        """Try this candidate from now on; one that was built here, or has no set of its own."""
        rollout = self._service.rollout
        before, rollout.running = rollout.running, None
        if before is not None and before.serving is not None and before.serving is not serving:
            self._retirement.replace(before.serving)
        if tried is None or (tried.serving is None) is not (serving is None):
            self._observed.follow(0, None)
            return
        running = self._observed.trial_of(tried.number) or Running(
            tried.sha256,
            serving,
            tried.share,
            tried.shadow,
            RolloutTests(Chances()),  # the parent's count
            dict.fromkeys(SetName, 0.0),
            tried.classes,
        )
        running.serving = serving
        running.tests.show(self._observed.verdict_on(tried))
        rollout.running = running
        self._observed.follow(tried.number, running)
        if tried.serving is not None and serving is not None:
            self._sets[tried.serving.number] = serving

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
        self._observed.send()
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
