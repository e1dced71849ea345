"""Several model servers as one backend: sends each request to the healthy server with the least work.

A server gets requests for a variant only after its model file and golden answers were checked (it is
admitted). A circuit breaker ejects and probes a server that fails or hangs. A server that was away, or had
unloaded a variant, is checked again before it gets requests. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from gateway.backends.breaker import RETRY_BURST, GuardedCall, RetryBudget
from gateway.backends.choosing import least_busy
from gateway.backends.protocol import Backend, Check, key_of
from gateway.backends.replica import Replica, ReplicaState
from gateway.catalog.schema import Variant
from gateway.clock import now_ms
from gateway.domain import BY_TRUST, Inference, Trust, Windows
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    BertierError,
    DeadlineExceeded,
    VariantUnavailable,
)
from gateway.observability.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")


class Replicas:
    """A Backend over several servers of one repository."""

    name = "triton"

    def __init__(
        self,
        servers: Mapping[str, Backend],
        metrics: Metrics,
        retry_share: float,
        clock: Callable[[], float] = now_ms,
        retry_burst: float = RETRY_BURST,
    ) -> None:
        """`servers`: by their name in logs and metrics; `retry_share`: share of requests that may be retried on
        another server when the first one fails.
        """
        self.members = [Replica(name, backend, clock) for name, backend in servers.items()]
        self._metrics = metrics
        self._budget = RetryBudget(retry_share, retry_burst)
        self._clock = clock
        self._turn = itertools.count()
        for each in self.members:
            metrics.replica_in_flight.labels(each.name).set(0)
            metrics.replica_ejections.labels(each.name)
            self._show(each)

    @property
    def engine(self) -> str:
        return ", ".join(dict.fromkeys(each.backend.engine for each in self.members))

    def states(self) -> dict[str, ReplicaState]:
        """Return the state of every server."""
        return {each.name: each.state() for each in self.members}

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        """Ask the least busy server, and on a failure another one; raises as a single server does."""
        ends_ms = self._clock() + budget_ms
        self._budget.pay_in()
        tried: list[Replica] = []
        while True:
            replica = self._pick(variant, tried)
            left_ms = ends_ms - self._clock()
            try:
                return await self._ask(replica, variant, windows, left_ms)
            except BackendError as exc:
                tried.append(replica)
                others = self._able(variant, tried)
                in_time = self._clock() + _work_ms(variant, windows) < ends_ms
                if not (others and in_time and self._budget.take()):
                    raise
                log.warning("%s: %s; asking another replica", replica.name, exc)

    async def hashes(self) -> Mapping[str, str]:
        """Return the model files of the servers; dismiss a server whose file is not the admitted one."""
        held = await self._each(lambda server: server.hashes())
        merged: dict[str, str] = {}
        for replica, found in held.items():
            for key, variant in list(replica.admitted.items()):
                if found.get(key) != variant.sha256:
                    replica.dismiss(variant, "the server holds another file, or none")
                    log.error("%s: %s: removed from its variants", replica.name, key)
            merged |= {key: found[key] for key in replica.admitted}
        for found in held.values():
            merged = dict(found) | merged
        return merged

    async def load(self, variant: Variant) -> None:
        await self._each(lambda server: server.load(variant))

    async def unload(self, variant: Variant, kept: Collection[Variant]) -> bool:
        for replica in self.members:
            replica.admitted.pop(key_of(variant), None)
            replica.problems.pop(variant.name, None)
        done = await self._each(lambda server: server.unload(variant, kept))
        return all(done.values())

    async def checked(self, variant: Variant, check: Check) -> Trust:
        """Admit the servers with the best result of the check; return that result."""
        found = dict(
            zip(
                self.members,
                await asyncio.gather(*(_outcome(check(r.backend)) for r in self.members)),
                strict=True,
            )
        )
        held = [trust for trust in found.values() if isinstance(trust, Trust)]
        if not held:
            raise next(exc for exc in found.values() if isinstance(exc, BertierError))
        best = max(held, key=BY_TRUST.index)
        for replica, outcome in found.items():
            self._settle(replica, variant, outcome, best)
        return best

    def unchecked(self, variant: Variant) -> list[Replica]:
        """Return the servers that are up, but not yet admitted for the variant."""
        key = key_of(variant)
        return [
            r
            for r in self.members
            if r.up and key not in r.admitted and r.recheck.left_ms in (None, 0.0)
        ]

    async def readmit(self, variant: Variant, check: Check, trust: Trust) -> None:
        """Check the servers not admitted for the variant; `trust`: its trust on the admitted ones."""
        for replica in self.unchecked(variant):
            outcome = await _outcome(check(replica.backend))
            self._settle(replica, variant, outcome, trust)

    @property
    def cores(self) -> float:
        return max(r.backend.cores for r in self.members)

    def capacity(self, variant: Variant) -> int:
        return max(1, len(self._able(variant, ())))

    async def external_load(self) -> Mapping[str, float]:
        found: Counter[str] = Counter()
        for counted in (await self._each(lambda server: server.external_load())).values():
            found.update(counted)
        return found

    async def is_ready(self) -> bool:
        """Ask every server; one that is down is checked again when it is back."""
        ready = await asyncio.gather(*(r.backend.is_ready() for r in self.members))
        for replica, up in zip(self.members, ready, strict=True):
            if replica.up and not up:
                log.error("%s: not ready; it gets no requests until it is back", replica.name)
                self._metrics.replica_ejections.labels(replica.name).inc(bool(replica.admitted))
                replica.dismiss_all()
            replica.up = up
            self._show(replica)
        return any(ready)

    async def close(self) -> None:
        await asyncio.gather(*(r.backend.close() for r in self.members))

    def _able(self, variant: Variant, tried: Sequence[Replica]) -> list[Replica]:
        now = self._clock()
        return [r for r in self.members if r not in tried and r.serves(variant, now)]

    def _pick(self, variant: Variant, tried: Sequence[Replica]) -> Replica:
        """Return the server with the least work, ties round-robin. Raises: BackendUnavailable."""
        able = self._able(variant, tried)
        if not able:
            raise BackendUnavailable(f"{variant.name}: no replica answers for it now; see /readyz")
        return least_busy(able, next(self._turn))

    async def _ask(
        self, replica: Replica, variant: Variant, windows: Windows, left_ms: float
    ) -> Inference:
        work_ms = _work_ms(variant, windows)
        with (
            self._settled(replica, variant, work_ms),
            self._counted(replica, work_ms),
        ):
            return await replica.backend.infer(variant, windows, left_ms)

    @contextmanager
    def _settled(self, replica: Replica, variant: Variant, work_ms: float) -> Iterator[None]:
        """Begin a call at the breakers of the server and of the variant there, and settle both.

        A half-open breaker whose probe is never settled would stay closed to requests forever.
        """
        now = self._clock()
        server = replica.breaker.begin(now)
        own = replica.breakers.of(variant.name).begin(now)
        try:
            yield
        except BaseException as exc:
            self._blame(exc, replica, variant, (server, own), work_ms)
            raise
        now = self._clock()
        changed = (server.worked(now), own.worked(now))
        if any(changed):
            log.info("%s: answers again for %s", replica.name, variant.name)
            self._show(replica)

    def _blame(
        self,
        exc: BaseException,
        replica: Replica,
        variant: Variant,
        calls: tuple[GuardedCall, GuardedCall],
        work_ms: float,
    ) -> None:
        """Settle both calls: blame the failure on the server, or on the variant there."""
        now = self._clock()
        server, own = calls
        if isinstance(exc, VariantUnavailable):  # reloading, or gone
            server.worked(now)
            own.inconclusive()
            replica.dismiss(variant, str(exc))
            self._ejected(replica, variant.name)
        elif isinstance(exc, BackendUnavailable):
            own.inconclusive()
            if server.failed(now):
                replica.dismiss_all()
                self._ejected(replica, "everything")
        elif isinstance(exc, BackendError):
            server.worked(now)
            if own.failed(now):
                self._ejected(replica, variant.name)
        else:
            hangs = (server.gave_up(now, work_ms), own.gave_up(now, work_ms))
            if any(hangs):
                self._ejected(replica, "everything" if hangs[0] else variant.name)

    def _ejected(self, replica: Replica, what: str) -> None:
        log.warning("%s: fails: ejected for %s", replica.name, what)
        self._metrics.replica_ejections.labels(replica.name).inc()
        self._show(replica)

    def _show(self, replica: Replica) -> None:
        self._metrics.replica_up.labels(replica.name).set(replica.sound)

    @contextmanager
    def _counted(self, replica: Replica, work_ms: float) -> Iterator[None]:
        gauge = self._metrics.replica_in_flight.labels(replica.name)
        replica.work_ms += work_ms
        replica.in_flight += 1
        gauge.set(replica.in_flight)
        try:
            yield
        finally:
            replica.work_ms = replica.work_ms - work_ms if replica.in_flight > 1 else 0.0
            replica.in_flight -= 1
            gauge.set(replica.in_flight)

    def _settle(
        self, replica: Replica, variant: Variant, outcome: Trust | BertierError, trust: Trust
    ) -> None:
        """Admit the server for the variant if its trust there is as high as elsewhere."""
        if isinstance(outcome, Trust) and BY_TRUST.index(outcome) >= BY_TRUST.index(trust):
            replica.admit(variant)
            replica.recheck.worked()
            self._show(replica)
            log.info("%s: serves %s (%s)", replica.name, variant.name, outcome)
            return
        why = f"{outcome} here, {trust} elsewhere" if isinstance(outcome, Trust) else str(outcome)
        log.warning("%s: does not serve %s: %s", replica.name, variant.name, why)
        replica.dismiss(variant, why)
        if not replica.recheck.left_ms:
            replica.recheck.failed()

    async def _each(self, call: Callable[[Backend], Coroutine[Any, Any, T]]) -> dict[Replica, T]:
        """Return the results of the servers that answered. Raises: the first error, when none did."""
        outcomes = await asyncio.gather(*(_outcome(call(r.backend)) for r in self.members))
        found = {
            r: t
            for r, t in zip(self.members, outcomes, strict=True)
            if not isinstance(t, BertierError)
        }
        if not found:
            raise next(exc for exc in outcomes if isinstance(exc, BertierError))
        return found


async def _outcome(call: Any) -> Any:
    """Return the result of a server, or its error."""
    try:
        return await call
    except (BackendError, DeadlineExceeded) as exc:
        return exc


def _work_ms(variant: Variant, windows: Windows) -> float:
    return windows.n_windows * variant.profile.cell(windows.input_ids.shape[1]).p50_ms
