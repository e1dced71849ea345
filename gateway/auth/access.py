"""Access control: API keys, their scopes and quotas; the key file is read again when it changes.

Knows no protocol: the frontends pass the Authorization value and the scope that the request needs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field

from gateway import api_keys
from gateway.api_keys import ApiKey, KeyFileError, Keys, Scope
from gateway.auth.quota import Quota, SharedQuota
from gateway.auth.reloading import Reloading
from gateway.clock import now_ms
from gateway.errors import Forbidden, QuotaExceeded, Unauthenticated
from gateway.observability.metrics import Metrics
from gateway.settings import Settings
from gateway.shared_memory import Quotas, number_of

log = logging.getLogger(__name__)

SCHEME = "bearer "


@dataclass(slots=True)
class Caller:
    """The owner of a key and the rest of its quota."""

    name: str
    key: ApiKey
    quota: Quota | SharedQuota | None
    metrics: Metrics

    def take(self, n: int) -> None:
        """Take n questions off the quota. Raises: QuotaExceeded."""
        wait_ms = 0.0 if self.quota is None else self.quota.take(n, now_ms())
        outcome = "quota" if wait_ms else "admitted"
        self.metrics.key_requests.labels(self.name, outcome).inc(n)
        if wait_ms:
            raise QuotaExceeded(self.name, self.key.requests_per_s or 0.0, wait_ms)

    def rate_limit(self) -> dict[str, str]:
        """Return the rate limit headers; {} for a key without a quota.

        Source: draft-ietf-httpapi-ratelimit-headers-10.
        """
        if self.quota is None:
            return {}
        now, q = now_ms(), self.quota
        return {
            "ratelimit-policy": f'"{self.name}";q={int(q.burst)};w={math.ceil(q.window_ms / 1e3)}',
            "ratelimit": f'"{self.name}";r={q.left(now)};t={math.ceil(q.reset_ms(now) / 1e3)}',
        }


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
WITHOUT_KEY: ContextVar[bool] = ContextVar(
    "without_key", default=False
)  # the request has no valid key, although keys are required


CONNECTION: ContextVar[Hashable] = ContextVar("connection", default=None)  # it came on


def caller() -> Hashable:
    """Return what identifies the caller: the name of its key, else its connection."""
    found = CALLER.get()
    return CONNECTION.get() if found is None else found.name


def key_name() -> str | None:
    """Return the name of the caller's key; None: it has none."""
    found = CALLER.get()
    return None if found is None else found.name


def take(n: int) -> None:
    """Take n questions off the quota of the caller, if it has one. Raises: QuotaExceeded."""
    caller = CALLER.get()
    if caller is not None and n:
        caller.take(n)


def rate_limit() -> dict[str, str]:
    """Return the rate limit headers of the caller; {} without a quota."""
    caller = CALLER.get()
    return {} if caller is None else caller.rate_limit()


def lacks_key() -> bool:
    """Return whether keys are required and the caller has no valid one."""
    return WITHOUT_KEY.get()


def tightest_class() -> str | None:
    """Return the tightest class that the caller may use; None: any."""
    caller = CALLER.get()
    return None if caller is None else caller.key.tightest_class


@dataclass
class Access:
    """All callers by the hash of their key. Without any key, access is open."""

    settings: Settings
    metrics: Metrics
    clock: Callable[[], float] = now_ms
    quotas: Quotas | None = None  # of all workers of this gateway, where there are several
    _by_hash: dict[str, Caller] = field(default_factory=dict)
    _file: Reloading = field(init=False)

    def __post_init__(self) -> None:
        """Raises: KeyFileError."""
        path = self.settings.api_keys_file
        self._file = Reloading([] if path is None else [path], self.clock)
        if self.guarded:
            self._use(self._read())

    @property
    def guarded(self) -> bool:
        return self.settings.api_keys_file is not None or bool(self.settings.api_keys)

    def admit(self, frontend: str, authorization: str | None, scope: Scope) -> Caller | None:
        """Return the caller; None where no key is required. Raises: Unauthenticated, Forbidden."""
        if not self.guarded:
            return None
        self._look()
        caller = self._find(authorization)
        if caller is None:
            self.metrics.denied.labels(frontend, "unknown" if authorization else "missing").inc()
            raise Unauthenticated("unknown key" if authorization else "no key")
        if scope not in caller.key.scopes:
            self.metrics.denied.labels(frontend, "scope").inc()
            raise Forbidden(f"the key {caller.name} has no scope {scope.value}")
        return caller

    def meet(self, authorization: str | None) -> None:
        """Note whether the caller of an open route has a key: without one it gets fewer details."""
        if self.guarded:
            self._look()
            WITHOUT_KEY.set(self._find(authorization) is None)

    def _find(self, authorization: str | None) -> Caller | None:
        given = authorization or ""
        if len(given) > api_keys.MAX_KEY_CHARS or given[: len(SCHEME)].lower() != SCHEME:
            return None
        return self._by_hash.get(api_keys.digest(given[len(SCHEME) :].strip()))

    def _look(self) -> None:
        """Read the file again if it changed; if it cannot be used, the old keys stay valid."""
        if not self._file.is_due():
            return
        try:
            self._use(self._read())
        except KeyFileError as exc:
            if self._file.failed(str(exc)):
                log.error("%s; the previous keys stay valid until this is fixed", exc)
            self.metrics.note_reload("keys", loaded=False)
        else:
            self._file.worked()
            log.info("%s: %d keys", self.settings.api_keys_file, len(self._by_hash))
            self.metrics.note_reload("keys", loaded=True)

    def _read(self) -> Keys:
        classes, path = self.settings.classes, self.settings.api_keys_file
        named = {n: k.model_dump() for n, k in self.settings.api_keys.items()}
        found = (
            {}
            if path is None
            else {n: k.model_dump() for n, k in api_keys.read(path, classes).items()}
        )
        if both := sorted(set(named) & set(found)):
            raise KeyFileError(
                f"{path}: {both[0]} is also a key of the setting api_keys; rename one of them"
            )
        return api_keys.check({**named, **found}, classes, str(path or "api_keys"))

    def _use(self, found: Keys) -> None:
        """Use these keys; an unchanged key keeps the rest of its quota."""
        before = {caller.name: caller for caller in self._by_hash.values()}
        self._by_hash = {
            key.sha256: self._caller(name, key, before.get(name)) for name, key in found.items()
        }

    def _caller(self, name: str, key: ApiKey, before: Caller | None) -> Caller:
        if before is not None and before.key == key:
            return before
        return Caller(name, key, self._quota(name, key), self.metrics)

    def _quota(self, name: str, key: ApiKey) -> Quota | SharedQuota | None:
        if key.requests_per_s is None:
            return None
        if self.quotas is None:
            return Quota(key.requests_per_s)
        number = number_of(f"{name} {key.sha256} {key.requests_per_s}")
        return SharedQuota(key.requests_per_s, self.quotas, number)
