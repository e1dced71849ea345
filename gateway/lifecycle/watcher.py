"""Keeps what is served in step with the catalog on disk and with the model server.

Polls both. A new catalog is checked completely before the switch; an invalid one is refused once, and the old one
stays in use. A failure that may be temporary is retried with growing delays; a variant that is no longer routed to
is unloaded. It never answers a question.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping

from gateway import slo
from gateway.backends.pool import Replicas
from gateway.backends.retry import Retry
from gateway.catalog import store
from gateway.catalog.scopes import in_scope
from gateway.catalog.store import CATALOG, Catalog
from gateway.clock import now_ms
from gateway.errors import (
    BackendError,
    BertierError,
    DeadlineExceeded,
    RepositoryError,
    VariantsUnserved,
)
from gateway.latency.kept_profiles import NONE_KEPT, KeptProfiles
from gateway.lifecycle.candidates import Candidates
from gateway.lifecycle.classes import ClassesFile
from gateway.lifecycle.followers import NOBODY, Followers
from gateway.lifecycle.preparation import hash_problems, measure_again, prepare, recheck
from gateway.lifecycle.readiness import Readiness, states_of, summary
from gateway.lifecycle.retirement import Retirement
from gateway.request.service import AnswerService
from gateway.serving_set import ServingSet

log = logging.getLogger(__name__)

LONGEST_RETRY_MS = 60_000.0
FIRST_MEASURING_MS, LONGEST_MEASURING_MS = 5_000.0, 600_000.0  # it takes a core for seconds
MAY_PASS = (VariantsUnserved, BackendError, DeadlineExceeded)  # the file on disk is not at fault


class Watcher:
    """Loads, checks and swaps in `service.serving`."""

    def __init__(
        self,
        service: AnswerService,
        restarts: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = now_ms,
        healing: Callable[[], Mapping[str, str]] = dict,
        followers: Followers = NOBODY,
        fit: Callable[[Catalog], Catalog] = lambda catalog: catalog,
        kept: KeptProfiles = NONE_KEPT,
    ) -> None:
        """`restarts` returns how often our own model server was restarted; `healing` the variants that are being
        reloaded, with the reason; `fit` a catalog with as many instances as there is memory for.
        """
        self.ready = asyncio.Event()  # set once, by the first catalog that can be served
        self._service = service
        self._backend = service.backend
        self._metrics = service.metrics
        self._repository = service.settings.model_repository
        self._restarts = restarts
        self._healing = healing
        self._followers = followers
        self._fit = fit
        self._restarts_seen = 0
        self._up = False
        self._seen = ""  # sha256 of the catalog last tried
        self._served = ""  # sha256 of the catalog that is served
        self._refused: str | None = None
        self._refusal_may_pass = False
        self._wrong: frozenset[str] = frozenset()  # variants whose file in the server is another
        self._retry = Retry(service.settings.catalog_poll_ms, LONGEST_RETRY_MS, clock)
        self._kept = kept
        self._measuring = Retry(FIRST_MEASURING_MS, LONGEST_MEASURING_MS, clock)
        longest_ms = slo.longest_timeout_ms(service.settings.classes)
        self._retirement = Retirement(longest_ms, clock)
        self._classes = ClassesFile(service, followers)
        self._candidates = Candidates(
            service, self._retirement, clock, followers, as_served=self._as_served, kept=kept
        )

    async def run(self) -> None:
        """Check forever."""
        while True:
            try:
                await self.check()
            except Exception:  # keep serving
                log.exception("the watcher failed; it continues")
            await asyncio.sleep(self._service.settings.catalog_poll_ms / 1e3)

    async def check(self) -> None:
        """Look once at the model server and at the catalog, and act on what changed."""
        await self._classes.look()
        came_back = await self._check_backend()
        raw = await self._read()
        if raw is None or not self._up:
            return
        await self._follow(raw, came_back)
        await self._candidates.look(checked_anew=came_back)
        await self._measure_again()
        self._plan_retry()
        await self._unload_unused()

    async def readiness(self) -> Readiness:
        """Return the state of the gateway, including the model server's readiness now."""
        serving = self._service.serving
        up = await self._backend.is_ready()
        reasons = []
        if not up:
            reasons.append(f"{self._backend.name}: the model server is not ready")
        if serving is None or not serving.plans():
            reasons.append(self._refused or "models are being loaded")
        if self._service.leaving:
            reasons.append("the gateway is about to stop")
        return Readiness(
            ready=not reasons,
            reasons=tuple(reasons),
            backend=self._backend.name,
            engine=self._backend.engine,
            backend_up=up,
            catalog_sha256=self._served or None,
            refused=self._refused,
            classes_refused=self._classes.refused,
            variants=states_of(serving),
            retry_in_ms=self._retry.left_ms,
            replicas=self._backend.states() if isinstance(self._backend, Replicas) else {},
            broken_plans=tuple(sorted(self._service.shadow.certificate_tests.broken)),
            healing=dict(self._healing()),
            candidate=self._candidates.state(),
        )

    async def _follow(self, raw: bytes, came_back: bool) -> None:
        """Take the one action that the state of catalog and model server requires."""
        digest = hashlib.sha256(raw).hexdigest()
        serving = self._service.serving
        if digest != self._seen:
            self._retry.worked()
            await self._switch(raw, digest)
        elif (serving is None and came_back) or (self._refusal_may_pass and self._retry.due):
            await self._switch(raw, digest)
        elif serving is not None and (came_back or await self._check_hashes()):
            await self._prepare_again(serving)
        elif serving is not None and serving.problems and self._retry.due:
            await self._mend(serving)

    async def _check_backend(self) -> bool:
        """Return whether the model server is up after it was down, however shortly."""
        was_up, self._up = self._up, await self._backend.is_ready()
        self._metrics.backend_up.labels(self._backend.name).set(self._up)
        if was_up and not self._up:
            log.error("%s: the model server is not ready; waiting for it", self._backend.name)
        restarts, self._restarts_seen = self._restarts() - self._restarts_seen, self._restarts()
        self._metrics.backend_restarts.inc(restarts)
        return self._up and (restarts > 0 or not was_up)

    async def _read(self) -> bytes | None:
        try:
            return await asyncio.to_thread(store.read_bytes, self._repository)
        except RepositoryError as exc:
            if self._refused != str(exc):
                log.error("%s", exc)
            self._refused = str(exc)
            self._metrics.catalog_refused.set(1)
            self._seen = ""
            return None

    async def _switch(self, raw: bytes, digest: str) -> None:
        """Serve the catalog if it is sound; else refuse it until it changes, or the reason passes."""
        old = self._service.serving
        try:
            stored = store.parse(raw, self._repository / CATALOG)
            catalog = self._as_served(stored)
            self._retirement.load(catalog.variants)
            new = await prepare(self._repository, catalog, self._backend, old, self._kept)
            _refuse_worse(new, old)
        except BertierError as exc:
            if await self._backend.is_ready():  # else the catalog may be fine: try again
                self._refuse(exc, digest)
            return
        except Exception as exc:  # any error in the checks condemns the catalog
            log.exception("the checks of the new catalog failed with an error of their own")
            self._refuse(RepositoryError(f"it could not be checked: {exc!r}"), digest)
            return
        self._seen = self._served = digest
        self._refused, self._refusal_may_pass = None, False
        self._retry.worked()
        self._serve(new)
        await self._check_hashes()
        self._metrics.note_catalog(digest, catalog.origin.commit)
        log.info("serving %s", summary(new))

    def _as_served(self, catalog: Catalog) -> Catalog:
        """Return a stored catalog with the floors and the instances that it is served with here."""
        return self._fit(in_scope(catalog, self._service.settings.floor_scope))

    def _refuse(self, error: BertierError, digest: str) -> None:
        if digest != self._seen:
            self._metrics.catalog_switches.labels("refused").inc()
        if digest != self._seen or str(error) != self._refused:
            log.error("catalog %s refused: %s", digest[:12], error)
        self._seen = digest
        self._refused = str(error)
        self._metrics.catalog_refused.set(1)
        self._refusal_may_pass = isinstance(error, MAY_PASS)
        if self._refusal_may_pass:
            self._retry.failed()

    async def _prepare_again(self, old: ServingSet) -> None:
        """Check the catalog that is served once more: the model server is another, or was changed."""
        try:
            new = await prepare(self._repository, old.catalog, self._backend, old, self._kept)
        except BertierError as exc:
            log.error("checked again: %s", exc)
            problems = dict.fromkeys((v.name for v in old.catalog.variants), str(exc))
            self._serve(old.without(problems))
            return
        self._serve(new)
        log.info("checked again: serving %s", summary(new))

    async def _mend(self, old: ServingSet) -> None:
        """Look again at the variants that are not served."""
        try:
            new = await recheck(self._repository, old, self._backend, self._kept)
        except BertierError as exc:
            log.warning("looked again: %s", exc)
            self._retry.failed()
            return
        self._serve(new)
        log.info("looked again: serving %s", summary(new))
        if new.problems:
            self._retry.failed()

    async def _measure_again(self) -> None:
        """Measure what was measured beside other work, once no request is in flight."""
        serving = self._service.serving
        if serving is None or not serving.under_load:
            self._measuring.worked()
        elif self._measuring.left_ms is None:
            self._measuring.failed()
        elif self._measuring.due and not serving.latency.busy:
            self._measuring.failed()  # for when it is disturbed again
            try:
                self._serve(await measure_again(serving, self._backend, self._kept))
            except (BackendError, DeadlineExceeded) as exc:
                log.warning("latency could not be measured again: %s", exc)

    def _plan_retry(self) -> None:
        serving = self._service.serving
        if not self._refusal_may_pass and (serving is None or not serving.problems):
            self._retry.worked()
        elif self._retry.left_ms is None:
            self._retry.failed()

    async def _unload_unused(self) -> None:
        """Free what no request can ask any more; what is about to be tried again stays."""
        if self._service.serving is None or self._refusal_may_pass:
            return
        sets = (self._service.serving, *self._service.candidates())
        routed = [variant for each in sets for variant in each.catalog.variants]
        for variant in self._retirement.unused(routed):
            kept = (*routed, *self._retirement.in_flight())
            try:
                if not await self._backend.unload(variant, kept):
                    continue
            except BertierError as exc:
                log.warning("%s: not unloaded: %s", variant.name, exc)
            else:
                log.info("%s: version %d unloaded", variant.name, variant.version)
            self._retirement.forget(variant)

    async def _check_hashes(self) -> bool:
        """Stop routing to what is another file now; return whether one is right again."""
        serving = self._service.serving
        assert serving is not None
        try:
            problems = hash_problems(serving.catalog, await self._backend.hashes())
        except BertierError as exc:
            log.warning("the model server did not report its hashes: %s", exc)
            return False
        right_again = self._wrong - problems.keys()
        self._wrong = frozenset(problems)
        self._metrics.note_hashes(
            {v.name: v.name not in problems for v in serving.catalog.variants}
        )
        fresh = {name: why for name, why in problems.items() if name in serving.trust}
        if fresh:
            log.error("not routed to any more: %s", fresh)
            self._serve(serving.without(fresh))
        return bool(right_again)

    def _serve(self, serving: ServingSet) -> None:
        serving = self._service.shadow.follow(serving)
        if self._service.serving is not None:
            self._retirement.replace(self._service.serving)
        self._service.serving = serving
        self._followers.serve(serving)
        for gauge in (self._metrics.variant_up, self._metrics.breaker_open):
            gauge.clear()
        for name, state in states_of(serving).items():
            self._metrics.variant_up.labels(name, state.trust or "none").set(state.served)
            self._metrics.breaker_open.labels(name).set(state.failing)
        self._metrics.note_floors({plan.name: plan.certified_f1 for plan in serving.plans()})
        if serving.plans():
            self.ready.set()


def _refuse_worse(new: ServingSet, old: ServingSet | None) -> None:
    """Refuse a set with broken variants where another set is served already."""
    if old is not None and old.plans() and new.problems:
        raise VariantsUnserved("the old catalog goes on, because of", new.problems)
