"""Loads and checks the candidate, begins and ends its rollout, and acts on the verdict.

It is a catalog, or else other SLO classes; a catalog goes first. A candidate is checked like any new catalog, and refused unless all of it can be served: it runs beside the current
one, which stays as it is. Several gateways on one repository each decide from their own requests; the first that
withdraws or promotes moves the file, and the others follow.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from gateway.backends.protocol import key_of
from gateway.backends.retry import Retry
from gateway.catalog import candidate as disk
from gateway.catalog import candidate_classes as disk_of_classes
from gateway.catalog import memory
from gateway.catalog.candidate import Candidate, Terms
from gateway.catalog.schema import QA, Variant
from gateway.catalog.store import Catalog
from gateway.domain import SetName
from gateway.errors import (
    BackendError,
    BertierError,
    DeadlineExceeded,
    RepositoryError,
    VariantsUnserved,
)
from gateway.latency.kept_profiles import NONE_KEPT, KeptProfiles
from gateway.lifecycle.classes import Classes, in_place
from gateway.lifecycle.followers import NOBODY, Followers
from gateway.lifecycle.preparation import hash_problems, prepare
from gateway.lifecycle.readiness import CandidateState, candidate_state, summary
from gateway.lifecycle.retirement import Retirement
from gateway.monitoring.rollout_tests import Chances, RolloutTests, Verdict
from gateway.request.rollout import Running
from gateway.request.service import AnswerService
from gateway.serving_set import ServingSet

log = logging.getLogger(__name__)

FIRST_RETRY_MS, LONGEST_RETRY_MS = 5_000.0, 60_000.0
MAY_PASS = (VariantsUnserved, BackendError, DeadlineExceeded)  # the file on disk is not at fault


class Files(Protocol):
    """How candidates of one kind end on disk. Raises: RepositoryError."""

    def withdrawn(self, repository: Path, sha256: str) -> str | None: ...

    def withdraw(self, repository: Path, reason: str, sha256: str | None = None) -> Path: ...

    def promote(self, repository: Path, sha256: str | None = None) -> object: ...


def _read(repository: Path) -> tuple[Files, bytes | None]:
    """Return the candidate that is on disk, the catalog before classes. Raises: RepositoryError."""
    if (raw := disk.read_bytes(repository)) is not None:
        return disk, raw
    return disk_of_classes, disk_of_classes.read_bytes(repository)


class Candidates:
    """Keeps `service.rollout` in step with the candidate on disk."""

    def __init__(
        self,
        service: AnswerService,
        retirement: Retirement,
        clock: Callable[[], float],
        followers: Followers = NOBODY,
        free_bytes: Callable[[], float] = memory.free_bytes,
        as_served: Callable[[Catalog], Catalog] = lambda catalog: catalog,
        kept: KeptProfiles = NONE_KEPT,
    ) -> None:
        """`as_served` returns a stored catalog as this gateway serves the current one."""
        self._service = service
        self._retirement = retirement
        self._followers = followers
        self._free_bytes = free_bytes
        self._as_served = as_served
        self._kept = kept
        self._repository = service.settings.model_repository
        self._seen: str | None = None  # sha256 of the candidate last tried
        self._files: Files = disk  # of the candidate last tried
        self._against: tuple[Catalog | None, Classes] = (None, {})  # what was current then
        self._refused: str | None = None
        self._may_pass = False
        self._decided: str | None = None  # what became of the last candidate
        self._unwritten = ""  # what could not be done on disk
        self._retry = Retry(FIRST_RETRY_MS, LONGEST_RETRY_MS, clock)

    async def look(self, *, checked_anew: bool = False) -> None:
        """Look once at the candidate on disk, and act on what changed. Call it while the backend is up."""
        current = self._service.serving
        if current is None or not self._service.settings.candidate_share:
            return
        try:
            files, raw = await asyncio.to_thread(_read, self._repository)
        except RepositoryError as exc:
            if self._service.rollout.running is None:
                self._refuse(exc, self._seen)
            else:
                log.warning("the candidate was not read, and goes on: %s", exc)
            return
        if raw is None:
            self._gone()
        elif self._is_new(raw, current) or (self._may_pass and self._retry.due):
            self._files = files
            await self._begin(raw, current)
        elif self._service.rollout.running is not None:
            await self._go_on(self._service.rollout.running, current, checked_anew=checked_anew)

    def _is_new(self, raw: bytes, current: ServingSet) -> bool:
        """Return whether the candidate or what it is compared with is another than at the last look."""
        catalog, classes = self._against
        same = current.catalog is catalog and self._service.classes is classes
        return hashlib.sha256(raw).hexdigest() != self._seen or not same

    def state(self) -> CandidateState | None:
        """Return what /readyz says of it."""
        running = self._service.rollout.running
        return candidate_state(running, self._seen, self._refused, self._decided)

    async def _begin(self, raw: bytes, current: ServingSet) -> None:
        """Try the candidate if it is sound; else refuse it until it changes, or the reason passes."""
        self._end()
        digest = hashlib.sha256(raw).hexdigest()
        self._decided = self._decided if digest == self._seen else None
        self._against = (current.catalog, self._service.classes)
        try:
            if why := self._files.withdrawn(self._repository, digest):
                raise RepositoryError(f"this candidate was withdrawn before ({why})")
            terms, serving, classes = await self._checked(raw, current)
        except BertierError as exc:
            self._refuse(exc, digest)
            return
        except Exception as exc:  # any error in the checks condemns the candidate
            log.exception("the checks of the candidate failed with an error of their own")
            self._refuse(RepositoryError(f"it could not be checked: {exc!r}"), digest)
            return
        self._seen, self._refused, self._may_pass, self._unwritten = digest, None, False, ""
        self._retry.worked()
        self._run(digest, terms, serving, classes)

    def _run(self, sha256: str, terms: Terms, serving: ServingSet | None, classes: Classes) -> None:
        settings = self._service.settings
        default = 1.0 if terms.shadow else settings.candidate_share
        chances = Chances(
            settings.candidate_delta,
            settings.candidate_margin,
            settings.shadow_tolerance,
            terms.promote_after,
        )
        compares = bool(settings.candidate_compared) or terms.shadow
        running = Running(
            sha256,
            serving,
            share=default if terms.share is None else terms.share,
            shadow=terms.shadow,
            tests=RolloutTests(chances, compares),
            sums_ms=dict.fromkeys(SetName, 0.0),
            classes=classes,
        )
        self._service.rollout.running = running
        self._followers.tried(running)
        shown = 0.0 if running.shadow else running.share
        self._service.metrics.note_candidate(shown, refused=False)
        how = "in shadow" if running.shadow else f"on {running.share:.1%} of the requests"
        what = f"classes {', '.join(sorted(classes))}" if serving is None else summary(serving)
        log.info("candidate %s: tried %s: %s", sha256[:12], how, what)

    async def _checked(
        self, raw: bytes, current: ServingSet
    ) -> tuple[Terms, ServingSet | None, Classes]:
        """Return the terms of a candidate, and its set or its classes. Raises: BertierError."""
        if self._files is not disk:
            return self._checked_classes(raw)
        found = disk.parse(raw, self._repository)
        found = replace(found, catalog=self._as_served(found.catalog))
        self._check(found, current)
        return found.terms, await self._prepared(found.catalog, current), {}

    def _checked_classes(self, raw: bytes) -> tuple[Terms, None, Classes]:
        """Return the terms and the classes that differ from the current ones. Raises: RepositoryError."""
        path = self._repository / disk_of_classes.CANDIDATE
        tables, terms = disk_of_classes.parse(raw, path)
        found, current = in_place(tables, self._service.settings, path), self._service.classes
        others = {name: each for name, each in found.items() if each != current[name]}
        if not others:
            raise RepositoryError(
                f"{path}: its classes are the current ones: they were promoted already, or there is nothing to try;"
                " 'bertier-optimize withdraw' removes it"
            )
        return terms, None, others

    def _check(self, found: Candidate, current: ServingSet) -> None:
        """Raises: RepositoryError for a candidate that there is no sense in trying."""
        if disk.same_models(found.catalog, current.catalog):
            raise RepositoryError(
                "the candidate names the same variants and plans as the current catalog: it was promoted already,"
                " or there is nothing to try; 'bertier-optimize withdraw' removes it"
            )
        _check_tasks(found.catalog, current.catalog)

    async def _prepared(self, catalog: Catalog, current: ServingSet) -> ServingSet:
        """Return the candidate's set, all of it checked. Raises: BertierError."""
        await self._check_memory(catalog.variants)
        self._retirement.load(catalog.variants)
        backend = self._service.backend
        serving = await prepare(self._repository, catalog, backend, current, self._kept)
        if serving.problems:
            raise VariantsUnserved("the candidate is not tried, because of", serving.problems)
        return replace(serving, encoder=current.encoder)  # the tokenizer is the same file

    async def _check_memory(self, variants: tuple[Variant, ...]) -> None:
        """Refuse models that this host has no room for, where they would be loaded on it."""
        service = self._service
        if service.settings.triton_url:
            return
        embedded = service.backend.name == "embedded"
        loaded = await service.backend.hashes()
        new = [v for v in variants if loaded.get(key_of(v)) != v.sha256]
        needed = sum(
            memory.embedded_bytes(v) if embedded else v.instances * memory.instance_bytes(v)
            for v in new
        )
        if embedded and int(service.settings.workers) > 1:  # and their parent
            needed *= int(service.settings.workers) + 1
        free = self._free_bytes()
        if needed > free:
            raise VariantsUnserved(
                "the candidate is not tried",
                {
                    ", ".join(
                        v.name for v in new
                    ): f"about {needed / 1e6:.0f} MB more would be taken,"
                    f" {free / 1e6:.0f} MB are free"
                },
            )

    async def _go_on(self, running: Running, current: ServingSet, *, checked_anew: bool) -> None:
        """Act on the verdict; else see that the models are still those of the catalog."""
        if running.tests.verdict is Verdict.WORSE:
            await self._move(running, "withdrawn")
        elif running.tests.verdict is Verdict.NO_WORSE:
            await self._move(running, "promoted")
        elif running.serving is not None:
            again = self._prepare_again if checked_anew else self._check_hashes
            await again(running, running.serving, current)

    async def _move(self, running: Running, result: str) -> None:
        """Withdraw or promote the candidate on disk; where that cannot be written, the verdict holds here."""
        reason = running.tests.reason
        try:
            if result == "withdrawn":
                why = f"shown to be worse: {reason}"
                await asyncio.to_thread(self._files.withdraw, self._repository, why, running.sha256)
            else:
                await asyncio.to_thread(self._files.promote, self._repository, running.sha256)
        except (RepositoryError, OSError) as exc:
            if self._unwritten != str(
                exc
            ):  # a repository that is mounted read-only, or a full disk
                log.error("candidate %s: %s, but: %s", running.sha256[:12], result, exc)
            self._unwritten = str(exc)
            self._decided = f"{result}, but not on disk ({exc}): {reason}"
            return
        level = logging.WARNING if result == "withdrawn" else logging.INFO
        log.log(level, "candidate %s: %s: %s", running.sha256[:12], result, reason)
        self._decided = f"{result}: {reason}"
        self._service.metrics.rollouts.labels(result).inc()
        self._gone()

    async def _prepare_again(
        self, running: Running, serving: ServingSet, current: ServingSet
    ) -> None:
        """Check it once more, as the model server is another; what was seen of it still counts."""
        try:
            running.serving = await self._prepared(serving.catalog, current)
            self._followers.tried(running)
        except BertierError as exc:
            self._end()
            self._refuse(exc, running.sha256)

    async def _check_hashes(self, running: Running, serving: ServingSet, _: ServingSet) -> None:
        try:
            problems = hash_problems(serving.catalog, await self._service.backend.hashes())
        except BertierError as exc:
            log.warning("the model server did not report its hashes: %s", exc)
            return
        if problems:
            self._end()
            self._refuse(
                VariantsUnserved("the candidate is not tried, because of", problems), running.sha256
            )

    def _gone(self) -> None:
        """Follow a candidate that is on disk no more: removed, promoted or withdrawn, here or elsewhere."""
        if self._service.rollout.running is not None and self._decided is None:
            self._decided = "its file is gone: promoted or withdrawn by hand, or by another gateway"
            log.info("candidate: %s", self._decided)
        self._end()
        self._seen, self._refused, self._may_pass = None, None, False
        self._service.metrics.note_candidate(0.0, refused=False)

    def _end(self) -> None:
        """Give it no further request; those in flight end with it."""
        running, self._service.rollout.running = self._service.rollout.running, None
        if running is None:
            return
        if running.serving is not None:
            self._retirement.replace(running.serving)
        self._followers.tried(None)

    def _refuse(self, error: BertierError, digest: str | None) -> None:
        if digest != self._seen or str(error) != self._refused:
            log.error("candidate %s refused: %s", (digest or "")[:12], error)
            self._service.metrics.rollouts.labels("refused").inc()
        self._seen, self._refused = digest, str(error)
        self._service.metrics.note_candidate(0.0, refused=True)
        self._may_pass = isinstance(error, MAY_PASS)
        if self._may_pass:
            self._retry.failed()


def _check_tasks(found: Catalog, current: Catalog) -> None:
    """Refuse a candidate that changes more than how questions are answered: only they are compared.

    Raises: RepositoryError.
    """
    if QA not in found.task_names or QA not in current.task_names:
        raise RepositoryError(
            "a candidate is tried on questions, and one of the two catalogs has no question-answering model;"
            " publish it without a trial"
        )
    disk.check_classifications(found, current)
