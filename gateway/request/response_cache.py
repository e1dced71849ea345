"""Response cache: answers for repeated requests with the same catalog, texts, SLO and caller. Off by default.

Keys are hashes: it stores the texts of answers, but no question or context. Never asks a model.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from cachetools import TTLCache

from gateway.auth import access
from gateway.catalog.store import Catalog
from gateway.domain import A, Asked, Classification, Served, Slo, SloViolation, Timings
from gateway.observability.observer import Observer
from gateway.serving_set import ServingSet
from gateway.settings import Settings

ENTRY_BYTES = 2_048  # of an answer and its key, without texts; an upper bound
SPAN_BYTES = 256
CHARACTER_BYTES = 4
# An answer with any other violation may do better next time.
LASTING = {SloViolation.LATE, SloViolation.UNCERTIFIED}


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The Cache-Control of a request (RFC 9111, section 5.2.1)."""

    reads: bool = True
    stores: bool = True
    max_age_ms: float | None = None  # None: as old as the settings allow


ANYTHING = CacheControl()
CONTROL: ContextVar[CacheControl] = ContextVar("cache_control", default=ANYTHING)


def receive(pairs: Iterable[tuple[bytes | str, bytes | str]]) -> None:
    """Note for the current request what its `Cache-Control` headers say; names are in lower case."""
    said = [value for name, value in pairs if name in (b"cache-control", "cache-control")]
    texts = [value if isinstance(value, str) else value.decode("latin-1") for value in said]
    CONTROL.set(parse_control(",".join(texts)) if texts else ANYTHING)


def parse_control(header: str) -> CacheControl:
    """Return the directives that concern us; others are ignored, as RFC 9111 has it."""
    said = {}
    for part in header.lower().split(","):
        name, _, value = part.partition("=")
        said[name.strip()] = value.strip().strip('"')
    age = said.get("max-age")
    return CacheControl(
        reads=not {"no-store", "no-cache"} & said.keys(),
        stores="no-store" not in said,
        max_age_ms=None if age is None else _whole_ms(age),
    )


def _whole_ms(seconds: str) -> float:
    """Return a number of seconds in ms; one that cannot be read allows no age at all."""
    return 1e3 * int(seconds[:9]) if seconds.isascii() and seconds.isdecimal() else 0.0


@dataclass(frozen=True, slots=True)
class _Kept:
    answered: Served[Any]
    since_ms: float


class ResponseCache:
    """Keeps answers up to `cache_bytes`, each for `cache_ttl_ms`; for one event loop."""

    def __init__(self, settings: Settings, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer = observer
        self._clock = clock
        self._kept: TTLCache[bytes, _Kept] | None = None
        if settings.cache_bytes:
            self._kept = TTLCache(settings.cache_bytes, settings.cache_ttl_ms, clock, _size_bytes)
        # Hashes of catalogs: of the part of each task and, while one is tried, of a candidate.
        self._hashes: deque[tuple[Catalog, bytes]] = deque(maxlen=16)

    async def answer(
        self,
        question: Asked[A],
        slo: Slo,
        serving: ServingSet,
        arrived_ms: float,
        ask: Callable[[], Awaitable[Served[A]]],
    ) -> Served[A]:
        """Return the cached answer to such a request, else that of `ask`, which is stored."""
        if self._kept is None:
            return await ask()
        control = CONTROL.get()
        if slo.explain or not (control.reads or control.stores):
            self._observer.bypassed_cache()
            return await ask()
        key = self._key(question, slo, serving)
        kept = self._find(key, serving, control) if control.reads else None
        if kept is not None and self._clock() - arrived_ms < slo.timeout_ms:
            again = self._again(kept, slo, arrived_ms)
            self._observer.answered_from_cache(question, again)
            return again
        self._observer.missed_cache()
        answered = await ask()
        if control.stores and LASTING.issuperset(answered.violations):
            self._keep(key, answered)
        return answered

    @property
    def holds(self) -> tuple[int, float]:
        """How many answers are kept, and an upper bound on their memory, bytes."""
        return (0, 0.0) if self._kept is None else (len(self._kept), float(self._kept.currsize))

    def _find(self, key: bytes, serving: ServingSet, control: CacheControl) -> _Kept | None:
        """Return the cached answer, if the caller accepts it and its plan is trusted as before."""
        assert self._kept is not None
        kept = self._kept.get(key)
        if kept is None:
            return None
        age_ms = self._clock() - kept.since_ms
        if control.max_age_ms is not None and age_ms > control.max_age_ms:
            return None
        option = kept.answered.option
        served = next((p for p in serving.served if p.plan.name == option.plan.name), None)
        return kept if served and serving.trust_of(served.plan) is option.trust else None

    def _again(self, kept: _Kept, slo: Slo, arrived_ms: float) -> Served[Any]:
        """Return the answer with its age, and the time and cost of this request."""
        now, answered = self._clock(), kept.answered
        total_ms = now - arrived_ms
        late = (SloViolation.LATE,) if total_ms > slo.latency_ms else ()
        violations = (*late, *(v for v in answered.violations if v is not SloViolation.LATE))
        return replace(
            answered,
            slo=slo,
            violations=violations,
            timings=Timings(total=total_ms),
            cost=replace(answered.cost, compute_ms=0.0),
            age_ms=now - kept.since_ms,
        )

    def _keep(self, key: bytes, answered: Served[Any]) -> None:
        assert self._kept is not None
        kept = _Kept(answered, self._clock())
        if _size_bytes(kept) <= self._kept.maxsize:
            self._kept[key] = kept
        self._observer.cache_holds(len(self._kept), self._kept.currsize)

    def _key(self, question: Asked[Any], slo: Slo, serving: ServingSet) -> bytes:
        other = question.without_texts()
        same = replace(slo, timeout_ms=0.0, priority=0)  # neither changes an answer
        parts = (*question.texts.values(), repr((other, same, access.key_name())))
        key = hashlib.blake2b(self._hash_of(serving.catalog), digest_size=32)
        for part in parts:
            raw = part.encode("utf-8", "surrogatepass")
            key.update(len(raw).to_bytes(8, "big") + raw)
        return key.digest()

    def _hash_of(self, catalog: Catalog) -> bytes:
        for known, digest in self._hashes:
            if known is catalog:
                return digest
        digest = hashlib.sha256(repr(catalog).encode()).digest()
        self._hashes.append((catalog, digest))
        return digest


def _size_bytes(kept: _Kept) -> int:
    answer = kept.answered.answer
    if isinstance(answer, Classification):
        n_chars = sum(len(score.label) for score in answer.scores)
        return ENTRY_BYTES + SPAN_BYTES * len(answer.scores) + CHARACTER_BYTES * n_chars
    spans = [*answer.alternatives, *([answer.best] if answer.best else [])]
    n_chars = len(answer.text) + sum(len(span.text) for span in spans)
    return ENTRY_BYTES + SPAN_BYTES * len(spans) + CHARACTER_BYTES * n_chars
