"""Two of each behind a balancer: one dies and comes back, models change, and callers hardly notice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import pytest

from tests.end_to_end import fleet as fleets
from tests.end_to_end.fleet import Fleet, until

pytestmark = pytest.mark.end_to_end

BODY = {"question": "Who slept?", "context": "The old dog slept by the stove all winter."}
# A promise that a busy test machine can keep, so that what breaks it is what the test does.
SLO = {
    "SLO-Latency-Ms": "2500",
    "SLO-Min-F1": "0.3",
    "Priority": "u=0",
    "Connection": "close",
}
# A gateway that gets no processor for a while refuses, and says when to come back: nobody is lost.
NOT_LOST = (200, 429)
CALLERS = 3
STREAK = 12  # kept promises in a row that count as recovered
RECOVERY_S = 5.0
# Shared cores stall for seconds now and then; then the same is tried once more before it counts.
TRIES = 3


@dataclass(frozen=True, slots=True)
class Ended:
    """One request: when, and how; status 0: nobody answered it."""

    began_s: float
    ended_s: float
    status: int
    kept: bool
    error: str = ""  # why there was no answer


@dataclass
class Load:
    """Callers that ask without a pause, each on a new connection, until told to stop."""

    url: str
    ended: list[Ended] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def ask_on(self) -> None:
        with httpx2.Client(base_url=self.url, headers=SLO, timeout=60) as client:
            while not self._stop.is_set():
                began_s = time.monotonic()
                status, kept, error = 0, False, ""
                try:
                    reply = client.post("/v1/answer", json=BODY)
                    status, kept = reply.status_code, reply.headers.get("slo-met") == "true"
                    error = "" if status == 200 else reply.text
                except httpx2.TransportError as exc:
                    error = repr(exc)
                self.ended.append(Ended(began_s, time.monotonic(), status, kept, error))

    def stop(self) -> None:
        self._stop.set()

    def since(self, moment_s: float) -> list[Ended]:
        """Return what began after a moment, in the order of its end."""
        return [each for each in list(self.ended) if each.began_s > moment_s]

    def recovered_s(self, moment_s: float) -> float:
        """Return how long after a moment the next streak of kept promises began; wait for it."""
        found: list[float] = []

        def streak() -> bool:
            after = self.since(moment_s)
            for at in range(len(after) - STREAK + 1):
                if all(each.kept for each in after[at : at + STREAK]):
                    found.append(after[at].began_s - moment_s)
                    return True
            return False

        until(streak, f"{STREAK} kept promises in a row")
        return max(0.0, found[0])


@contextmanager
def load_on(url: str) -> Iterator[Load]:
    load = Load(url)
    with ThreadPoolExecutor(CALLERS) as pool:
        callers: list[Future[None]] = [pool.submit(load.ask_on) for _ in range(CALLERS)]
        try:
            load.recovered_s(0.0)
            yield load
        finally:
            load.stop()
    for caller in callers:
        caller.result()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleets.running(tmp_path_factory.mktemp("fleet")) as running:
        yield running


def show(what: str, ended: list[Ended], recovered_s: float) -> None:
    """Print a row: `pytest -s` shows it."""
    answered = [each for each in ended if each.status == 200]
    lost = sum(each.status not in NOT_LOST for each in ended)
    kept = sum(each.kept for each in ended) / max(1, len(ended))
    print(
        f"{what}: sent {len(ended)}, answered {len(answered)}, refused"
        f" {len(ended) - len(answered) - lost}, lost {lost}, attained {kept:.3f},"
        f" recovered after {recovered_s:.2f} s"
    )


def recovers(load: Load, break_it: Callable[[], None], mend_it: Callable[[], None]) -> list[float]:
    """Break and mend until it recovered in time, at most TRIES times; return each time it took."""
    took: list[float] = []
    while not took or (took[-1] > RECOVERY_S and len(took) < TRIES):
        break_it()
        took.append(load.recovered_s(time.monotonic()))
        mend_it()
    return took


def test_a_killed_gateway_loses_only_what_it_had_in_flight(fleet: Fleet) -> None:
    """The balancer takes the other; the one that comes back is taken again."""
    killed: list[tuple[float, float]] = []
    gateway = fleet.gateways[0]

    def kill() -> None:
        before_s = time.monotonic()
        gateway.kill()
        killed.append((before_s, time.monotonic()))

    def bring_back() -> None:
        gateway.start()
        until(lambda: fleet.is_ready(0), "the gateway is back")

    with load_on(fleet.url) as load:
        took = recovers(load, kill, bring_back)
    show("gateway killed and back", load.ended, took[-1])
    failed = [each for each in load.ended if each.status not in NOT_LOST]
    for each in failed:
        assert any(each.began_s <= dead <= each.ended_s + 1 for _, dead in killed), each
    assert len(failed) <= CALLERS * len(killed)
    assert took[-1] <= RECOVERY_S


def test_a_killed_triton_loses_nothing(fleet: Fleet) -> None:
    """What it had is asked of the other, and it is used again when it is back."""
    triton = fleet.tritons[0]

    def bring_back() -> None:
        triton.start()
        until(lambda: fleet.triton_is_ready(0), "the Triton is back")

    with load_on(fleet.url) as load:
        took = recovers(load, triton.kill, bring_back)
        load.recovered_s(time.monotonic())
    show("Triton killed and back", load.ended, took[-1])
    assert [each for each in load.ended if each.status not in NOT_LOST] == []
    assert took[-1] <= RECOVERY_S


def test_a_new_catalog_is_taken_over_without_a_failed_request(fleet: Fleet) -> None:
    """Both gateways switch to it, while they answer."""
    catalog = fleets.smallest(3)
    names = {variant.name for variant in catalog.variants}
    with load_on(fleet.url) as load:
        assert all(len(fleet.variants_of(n)) == 2 for n in (0, 1))
        published_s = time.monotonic()
        fleets.publish(fleet.repository, catalog)
        for n in (0, 1):
            until(lambda n=n: fleet.variants_of(n) == names, "the switch")  # type: ignore[misc]
        recovered_s = load.recovered_s(published_s)
    show("new catalog", load.ended, recovered_s)
    assert [each for each in load.ended if each.status not in NOT_LOST] == []
