"""Keeps what is served in step with the catalog on disk and with the model server.

Polls both. A new catalog is checked whole before it is switched to; a bad one is refused, once, and
the old one goes on. It never answers a question.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping

from gateway import catalog as catalogs
from gateway.catalog import CATALOG, Catalog
from gateway.errors import BertierError, RepositoryError
from gateway.readiness import Readiness, VariantState, state_of
from gateway.service import AnswerService
from gateway.serving import ServingSet, hash_problem, prepare

log = logging.getLogger(__name__)


class Watcher:
    """Loads, checks and swaps in `service.serving`."""

    def __init__(self, service: AnswerService, restarts: Callable[[], int] = lambda: 0) -> None:
        """`restarts`: how often a model server of our own was started again."""
        self.ready = asyncio.Event()  # set once, by the first catalog that can be served
        self._service = service
        self._backend = service.backend
        self._repository = service.settings.model_repository
        self._restarts = restarts
        self._restarts_seen = 0
        self._up = False
        self._seen = ""  # sha256 of the catalog last tried
        self._served = ""  # sha256 of the catalog that is served
        self._refused: str | None = None
        self._wrong: frozenset[str] = frozenset()  # variants whose file in the server is another

    async def run(self) -> None:
        """Check for ever."""
        while True:
            try:
                await self.check()
            except Exception:  # the gateway goes on with what it has
                log.exception("the watcher failed; it goes on")
            await asyncio.sleep(self._service.settings.catalog_poll_ms / 1e3)

    async def check(self) -> None:
        """Look once at the model server and at the catalog, and act on what changed."""
        came_back = await self._check_backend()
        raw = await self._read()
        if raw is None or not self._up:
            return
        digest = hashlib.sha256(raw).hexdigest()
        if digest != self._seen or (came_back and self._service.serving is None):
            await self._switch(raw, digest)
        elif self._service.serving is not None and (came_back or await self._check_hashes()):
            await self._prepare_again(self._service.serving)

    async def readiness(self) -> Readiness:
        """Return the state, with the model server asked now."""
        serving = self._service.serving
        up = await self._backend.is_ready()
        reasons = []
        if not up:
            reasons.append(f"{self._backend.name}: the model server is not ready")
        if serving is None or not serving.plans():
            reasons.append(self._refused or "models are being loaded")
        return Readiness(
            ready=not reasons,
            reasons=tuple(reasons),
            backend=self._backend.name,
            engine=self._backend.engine,
            backend_up=up,
            catalog_sha256=self._served or None,
            refused=self._refused,
            variants=_states(serving),
        )

    async def _check_backend(self) -> bool:
        """Return whether the model server is up after it was down, however shortly."""
        was_up, self._up = self._up, await self._backend.is_ready()
        self._service.metrics.backend_up.labels(self._backend.name).set(self._up)
        if was_up and not self._up:
            log.error("%s: the model server is not ready; waiting for it", self._backend.name)
        restarts, self._restarts_seen = self._restarts() - self._restarts_seen, self._restarts()
        self._service.metrics.backend_restarts.inc(restarts)
        return self._up and (restarts > 0 or not was_up)

    async def _read(self) -> bytes | None:
        try:
            return await asyncio.to_thread(catalogs.read_bytes, self._repository)
        except RepositoryError as exc:
            if self._refused != str(exc):
                log.error("%s", exc)
            self._refused = str(exc)
            self._seen = ""
            return None

    async def _switch(self, raw: bytes, digest: str) -> None:
        """Serve the catalog if it is sound; else refuse it until it changes."""
        old = self._service.serving
        try:
            catalog = catalogs.parse(raw, self._repository / CATALOG)
            new = await prepare(self._repository, catalog, self._backend, old)
            _refuse_worse(new, old)
        except BertierError as exc:
            if await self._backend.is_ready():  # else it may be as good as any: try again
                self._refuse(exc, digest)
            return
        except Exception as exc:  # whatever breaks the checks is wrong with the set
            log.exception("the new catalog broke the checks")
            self._refuse(RepositoryError(f"it could not be checked: {exc!r}"), digest)
            return
        self._seen = self._served = digest
        self._refused = None
        self._serve(new)
        await self._check_hashes()
        self._service.metrics.catalog_switches.labels("switched").inc()
        log.info("serving %s", _summary(new))

    def _refuse(self, error: BertierError, digest: str) -> None:
        self._seen = digest
        self._refused = str(error)
        self._service.metrics.catalog_switches.labels("refused").inc()
        log.error("catalog %s refused: %s", digest[:12], error)

    async def _prepare_again(self, old: ServingSet) -> None:
        """Check the catalog that is served once more: the model server is another, or was changed."""
        try:
            new = await prepare(self._repository, old.catalog, self._backend, old)
        except BertierError as exc:
            log.error("checked again: %s", exc)
            problems = dict.fromkeys((v.name for v in old.catalog.variants), str(exc))
            self._serve(old.without(problems))
            self._up = False  # so that it is tried again
            return
        self._serve(new)
        log.info("checked again: serving %s", _summary(new))

    async def _check_hashes(self) -> bool:
        """Stop routing to what is another file now; return whether one is right again."""
        serving = self._service.serving
        assert serving is not None
        try:
            problems = _hash_problems(serving.catalog, await self._backend.hashes())
        except BertierError as exc:
            log.warning("the model server did not tell its hashes: %s", exc)
            return False
        right_again = self._wrong - problems.keys()
        self._wrong = frozenset(problems)
        fresh = {name: why for name, why in problems.items() if name in serving.trust}
        if fresh:
            log.error("not routed to any more: %s", fresh)
            self._serve(serving.without(fresh))
        return bool(right_again)

    def _serve(self, serving: ServingSet) -> None:
        self._service.serving = serving
        gauge = self._service.metrics.variant_up
        gauge.clear()
        for name, state in _states(serving).items():
            gauge.labels(name, state.trust or "none").set(state.served)
        if serving.plans():
            self.ready.set()


def _states(serving: ServingSet | None) -> dict[str, VariantState]:
    if serving is None:
        return {}
    return {v.name: state_of(v.name, serving) for v in serving.catalog.variants}


def _hash_problems(catalog: Catalog, hashes: Mapping[str, str]) -> dict[str, str]:
    found = {v.name: hash_problem(v, hashes) for v in catalog.variants}
    return {name: why for name, why in found.items() if why is not None}


def _refuse_worse(new: ServingSet, old: ServingSet | None) -> None:
    """Refuse a set with broken variants where another set is served already."""
    if old is not None and old.plans() and new.problems:
        reasons = "; ".join(f"{name}: {why}" for name, why in new.problems.items())
        raise RepositoryError(f"the old catalog goes on, because of {reasons}")


def _summary(serving: ServingSet) -> str:
    states = _states(serving).items()
    return ", ".join(f"{name} ({state.trust or 'not served'})" for name, state in states)
