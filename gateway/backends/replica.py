"""One of several model servers: its admitted variants, its work in flight, and its health."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.backends.breaker import Breaker, Breakers
from gateway.backends.protocol import Backend, key_of
from gateway.backends.retry import Retry
from gateway.catalog.schema import Variant

FIRST_RECHECK_MS, LONGEST_RECHECK_MS = 1_000.0, 60_000.0


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One model server as /readyz shows it."""

    up: bool
    ejected: bool  # it failed and is being probed, or is away
    in_flight: int
    variants: Mapping[str, str]  # by name: `serving`, `failing`, or why it gets no requests


class Replica:
    """One server: its admitted variants and its work in flight."""

    def __init__(self, name: str, backend: Backend, clock: Callable[[], float]) -> None:
        self.name = name
        self.backend = backend
        self.up = True  # until it is asked
        self.admitted: dict[str, Variant] = {}  # by name/version
        self.problems: dict[str, str] = {}  # by variant's name: why it gets no requests for it
        self.work_ms = 0.0  # profiled work in flight
        self.in_flight = 0
        self.away = False  # it could not be reached; it is checked before it gets requests again
        self.breaker = Breaker()
        self.breakers = Breakers()
        self.recheck = Retry(FIRST_RECHECK_MS, LONGEST_RECHECK_MS, clock)

    def serves(self, variant: Variant, now_ms: float) -> bool:
        """Say whether a request for the variant may go here now."""
        known = self.admitted.get(key_of(variant))
        sound = known is not None and known.sha256 == variant.sha256
        return (
            sound and self.breaker.allows(now_ms) and self.breakers.of(variant.name).allows(now_ms)
        )

    @property
    def sound(self) -> bool:
        """Whether the server as a whole is ready and not ejected."""
        return self.up and not self.away and self.breaker.closed

    def admit(self, variant: Variant) -> None:
        self.away = False
        self.admitted[key_of(variant)] = variant
        self.problems.pop(variant.name, None)

    def dismiss(self, variant: Variant, why: str) -> None:
        """Send it no more requests for the variant until it is checked again."""
        self.admitted.pop(key_of(variant), None)
        self.problems[variant.name] = why

    def dismiss_all(self) -> None:
        """Forget all admissions and breakers: what comes back may be another server."""
        for variant in list(self.admitted.values()):
            self.dismiss(variant, "the server was away: it is checked again when it is back")
        self.breaker, self.breakers = Breaker(), Breakers()
        self.away = True
        self.recheck.worked()

    def state(self) -> ReplicaState:
        of = self.breakers.of
        served = {
            v.name: "serving" if of(v.name).closed else "failing" for v in self.admitted.values()
        }
        return ReplicaState(
            self.up,
            self.away or not self.breaker.closed,
            self.in_flight,
            self.problems | served,
        )
