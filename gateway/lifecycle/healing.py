"""Reloads models that lost an instance; the remaining instances or other plans answer meanwhile.

A lost instance is detected by its process (model_processes.py, for a Triton on this host) or by unanswered calls
(silent_calls.py, for any Triton). It never answers a question.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.backends.retry import Retry
from gateway.backends.triton import TritonBackend
from gateway.catalog.schema import Variant
from gateway.clock import now_ms
from gateway.errors import BertierError
from gateway.lifecycle.followers import NOBODY, Followers
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.triton_server.supervisor import Supervisor

log = logging.getLogger(__name__)

CHECK_MS = 250.0
FIRST_RETRY_MS, LONGEST_RETRY_MS = 2_000.0, 60_000.0
ATTEMPTS = 3  # failed reloads in a row after which our own Triton is restarted
LEFT_MS = 10_000.0  # until replaced processes that still run are killed
CALM_MS = 60_000.0  # a loss after this time without one counts as the first again


@dataclass(slots=True)
class _Patient:
    """A variant at one server that has lost an instance."""

    retry: Retry
    why: str = ""
    failures: int = 0
    healed_ms: float = float("-inf")
    task: asyncio.Task[None] | None = None
    left: dict[int, float] = field(default_factory=dict)  # replaced processes, and when they were


class Healing:
    """Watches servers for models that have lost an instance, and heals them."""

    def __init__(
        self,
        service: AnswerService,
        servers: Mapping[str, TritonBackend],
        supervisor: Supervisor | None = None,
        clock: Callable[[], float] = now_ms,
        followers: Followers = NOBODY,
    ) -> None:
        """`servers`: by name; `supervisor`: of the only one, where it is a Triton of our own."""
        self._service = service
        self._metrics: Metrics = service.metrics
        self._servers = servers
        self._supervisor = supervisor
        self._clock = clock
        self._followers = followers
        self._patients: dict[tuple[str, str], _Patient] = {}
        self._counted: dict[str, Counter[str]] = {name: Counter() for name in servers}

    async def run(self) -> None:
        """Check forever, if there is a server to check."""
        while self._servers:
            try:
                self.look()
            except Exception:  # keep serving
                log.exception("checking the models failed; it continues")
            await asyncio.sleep(CHECK_MS / 1e3)

    def states(self) -> dict[str, str]:
        """Return by variant what is wrong with it now; {}: nothing."""
        return {name: p.why for (_, name), p in self._patients.items() if p.why}

    def look(self) -> None:
        """Check every server once, and begin to reload models that lost an instance."""
        for where, server in self._servers.items():
            self._count(where, server)
            for model, why in {**server.lost, **self._ended()}.items():
                self._note(where, model, why)
        for (where, model), patient in self._patients.items():
            if patient.why:
                self._treat(where, model, patient)
            self._end_replaced(patient)

    def _ended(self) -> dict[str, str]:
        """Return the models of which a process was found lost since the last look."""
        if self._supervisor is None:
            return {}
        return {lost.model: lost.why for lost in self._supervisor.models.take_lost()}

    def _count(self, where: str, server: TritonBackend) -> None:
        before = self._counted[where]
        for model, n in server.repeated.items():
            self._metrics.repeated.labels(model).inc(n - before[model])
            before[model] = n

    def _note(self, where: str, model: str, why: str) -> None:
        if self._variant(model) is None:
            return
        key = (where, model)
        patient = self._patients.get(key)
        if patient is None:
            retry = Retry(FIRST_RETRY_MS, LONGEST_RETRY_MS, self._clock)
            patient = self._patients[key] = _Patient(retry)
        if patient.why:
            return
        patient.why = why
        self._metrics.instances_lost.labels(model).inc()
        self._metrics.healing.labels(model).set(1)
        log.error(
            "%s: %s: %s; it is loaded again, what is left answers meanwhile", where, model, why
        )

    def _variant(self, model: str) -> Variant | None:
        serving = self._service.serving
        if serving is None or model not in serving.trust:
            return None
        return serving.catalog.variant(model)

    def _treat(self, where: str, model: str, patient: _Patient) -> None:
        self._route_around(model)
        if patient.task is not None and not patient.task.done():
            return
        if patient.retry.left_ms in (None, 0.0):
            patient.task = asyncio.create_task(self._heal(where, model, patient))

    def _route_around(self, model: str) -> None:
        """Open the circuit breaker of a variant that has no instance left."""
        serving = self._service.serving
        if serving is None or self._supervisor is None:
            return
        if not self._supervisor.models.is_gone(model):
            return
        self._followers.gone(model)
        breaker = serving.breakers.of(model)
        if breaker.trip(self._clock()):
            log.warning("%s: no instance of it is left; other plans answer", model)
            self._metrics.note_breaker(model, breaker.state(self._clock()))

    async def _heal(self, where: str, model: str, patient: _Patient) -> None:
        variant = self._variant(model)
        if variant is None:  # not served any more
            self._end(model, patient)
            return
        before = self._supervisor.models.of(model) if self._supervisor else set()
        try:
            await self._servers[where].reload(variant)
        except BertierError as exc:
            self._metrics.model_reloads.labels(model, "failed").inc()
            patient.retry.failed()
            patient.failures += 1
            log.error("%s: %s could not be loaded again: %s", where, model, exc)
            if patient.failures >= ATTEMPTS and self._supervisor is not None:
                self._supervisor.restart(f"cannot load {model} again")
                self._end(model, patient)
            return
        now = self._clock()
        patient.left |= dict.fromkeys(before, now)
        self._metrics.model_reloads.labels(model, "loaded").inc()
        self._followers.healed(where, model)
        self._end(model, patient)
        log.info("%s: %s is loaded again: all of its instances answer", where, model)

    def _end(self, model: str, patient: _Patient) -> None:
        """Note that a variant has recovered; if it fails again soon, its reload is delayed more each time."""
        now = self._clock()
        if now - patient.healed_ms > CALM_MS:
            patient.retry.worked()
        else:
            patient.retry.failed()
        patient.why, patient.failures, patient.healed_ms = "", 0, now
        self._metrics.healing.labels(model).set(0)

    def _end_replaced(self, patient: _Patient) -> None:
        now = self._clock()
        old = [pid for pid, since in patient.left.items() if now - since > LEFT_MS]
        if old and self._supervisor is not None:
            self._supervisor.models.end(old)
        for pid in old:
            del patient.left[pid]
