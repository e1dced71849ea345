"""Plays events on a fleet under load: break a part, mend it, change the models, restart one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.domain import Slo
from loadtest.faults import fleet as fleets
from loadtest.faults import load as loads
from loadtest.faults import phases
from loadtest.faults.fleet import Fleet
from loadtest.faults.load import Load
from loadtest.faults.phases import Episode
from loadtest.faults.processes import until
from optimizer.data.question_sets import Example

BUSY_S = 5.0  # at a low rate a gateway is seldom caught with a request


@dataclass
class Play:
    """A fleet under load, which is left alone for a while between one event and the next."""

    fleet: Fleet
    load: Load
    calm_s: float
    _calm_since_ms: float = 0.0

    def calm_down(self) -> None:
        """Let the load run for a while, until all that was sent has come back."""
        self._calm_since_ms = self.load.now_ms
        time.sleep(self.calm_s)

    def event(self, name: str, act: Callable[[], None]) -> Episode:
        """Run an event, wait until SLOs are met again and a while longer; return its effect.

        Raises: StackError.
        """
        from_ms, event_ms = self._calm_since_ms, self.load.now_ms
        act()
        self.wait_for_recovery(event_ms)
        over_ms = self.load.now_ms
        self.calm_down()
        seen, to_ms = self._seen(), self.load.now_ms
        took_s = phases.recovered_s(seen, event_ms)
        assert took_s is not None
        rows = phases.rows(seen, from_ms, event_ms, over_ms, to_ms)
        return Episode(name, rows, took_s, failures=phases.failures(seen, from_ms, to_ms))

    def kill_gateway(self, n: int) -> Episode:
        """Kill a gateway while it has requests, if it is seen to have one soon. Raises: StackError."""
        gateway = self.fleet.gateways[n]
        there, times = 0, [0.0, 0.0]

        def is_busy() -> bool:
            nonlocal there
            there = gateway.in_flight
            return there > 0

        def kill() -> None:
            last_s = time.monotonic() + BUSY_S
            while not is_busy() and time.monotonic() < last_s:
                pass
            times[0] = self.load.now_ms
            gateway.program.kill()
            times[1] = self.load.now_ms

        found = self.event("gateway killed", kill)
        in_flight = phases.in_flight(self._seen(), there, times[0], times[1])
        return replace(found, in_flight=in_flight)

    def bring_gateway_back(self, n: int) -> Episode:
        """Start it again, until it is asked. Raises: StackError."""

        def start() -> None:
            self.fleet.gateways[n].program.start()
            self.fleet.wait_for_gateway(n)

        return self.event("gateway back", start)

    def kill_triton(self, n: int) -> Episode:
        return self.event("Triton killed", self.fleet.tritons[n].kill)

    def bring_triton_back(self, n: int) -> Episode:
        """Start it again, until every gateway asks it. Raises: StackError."""

        def start() -> None:
            self.fleet.tritons[n].start()
            self.fleet.wait_for_tritons()

        return self.event("Triton back", start)

    def publish(self, variants: int) -> Episode:
        """Publish a catalog of the smallest variants, until every gateway serves it. Raises: StackError."""
        catalog = fleets.smallest(self.fleet.source, variants)

        def switch() -> None:
            self.fleet.publish(catalog)
            self.fleet.wait_for_catalog(catalog)

        return self.event("new catalog", switch)

    def restart_gateways(self) -> Episode:
        """Stop one gateway after the other by SIGTERM, and start it again. Raises: StackError."""

        def restart() -> None:
            for n, gateway in enumerate(self.fleet.gateways):
                gateway.program.stop()
                gateway.program.start()
                self.fleet.wait_for_gateway(n)

        return self.event("rolling restart", restart)

    def wait_for_recovery(self, event_ms: float) -> None:
        """Return when SLOs are met again. Raises: StackError."""
        until(
            lambda: phases.recovered_s(tuple(self.load.results), event_ms) is not None,
            f"{phases.STREAK} SLOs in a row are met",
        )

    def _seen(self) -> phases.Seen:
        """Return what became of all that was sent until now; wait for it."""
        asked = set(self.load.under_way)
        until(lambda: not asked & self.load.under_way, "what was sent came back")
        return tuple(self.load.results)


@contextmanager
def playing(
    folder: Path, source: Path, examples: list[Example], slo: Slo, rate: float, calm_s: float
) -> Iterator[Play]:
    """Start a fleet and its load, and stop both at the end. Raises: StackError."""
    with fleets.running(folder, source) as fleet:
        load = Load(fleet.http_url, fleet.grpc_url, rate, slo, examples)
        with loads.running(load):
            play = Play(fleet, load, calm_s)
            play.wait_for_recovery(0.0)
            play.calm_down()
            yield play
