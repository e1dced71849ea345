"""Who is refused before being read, who is let in, and that nobody is refused for ever."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import policy
from gateway.clock import now_ms
from gateway.domain import Size, SloPolicy, SloRequest
from gateway.door import BEAT_MS, PATIENCE, TURNS, URGENCIES, Beat, Door, Turns
from gateway.errors import Overloaded
from gateway.serving import ServingSet
from gateway.settings import Settings
from tests import live
from tests.fakes import CONTEXT, QUESTION, serving_set, small_and_large

INTERACTIVE = SloRequest(slo_class="interactive")  # 50 ms, deadline 200
HEAD = (
    b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nSLO-Class: interactive\r\nContent-Length: 99\r\n\r\n"
)
BATCH = SloRequest(slo_class="batch")


class House:
    """A door on a clock that the test moves, before two variants."""

    def __init__(self, **settings: Any) -> None:
        self.now_ms = 1_000.0
        self.turns = Turns()
        self.door = Door(Settings(**settings), self.turns, lambda: self.now_ms)
        self.serving: ServingSet = serving_set(small_and_large())

    def fill(self, n: int) -> None:
        """Have `n` requests of 5 and `n` of 20 ms in flight, on two cores."""
        for variant in ("small", "large") * n:
            self.serving.latency.begin(variant, Size(64, 1), self.now_ms)

    def refused(self, request: SloRequest, in_flight: int = 0, *, told: bool = True) -> str | None:
        self.now_ms += 11.0  # what was predicted is no longer taken from before
        found = self.door.reason_to_refuse(request, self.serving, in_flight, told=told)
        return found[0] if found else None


def test_an_idle_gateway_lets_everybody_in() -> None:
    """The door costs next to nothing then, and is wrong about nobody."""
    house = House()
    house.fill(1)
    for u in range(URGENCIES):
        assert house.refused(SloRequest(slo_class="interactive", priority=u)) is None


def test_the_queue_refuses_short_deadlines_and_lets_long_ones_wait() -> None:
    """By class: half a second of work in front is too much for 200 ms, and not for 20 s."""
    house = House()
    house.fill(60)
    assert house.refused(INTERACTIVE) == "unreachable"
    assert house.refused(BATCH) is None


def test_the_less_urgent_are_refused_first() -> None:
    """At every length of the queue, who is let in is more urgent than who is not."""
    seen = set()
    for n in range(0, 60, 2):
        house = House()
        house.fill(n)
        let_in = [
            house.refused(SloRequest(slo_class="interactive", priority=u)) is None
            for u in range(URGENCIES)
        ]
        assert let_in == sorted(let_in, reverse=True)
        seen.add(sum(let_in))
    assert {0, 8} < seen


def test_a_late_event_loop_counts_as_waiting() -> None:
    """The gateway's own backlog is a queue, too, and the model server's is empty then."""
    house = House()
    house.door.beat._due_ms = house.now_ms  # as after a beat that was due now
    house.now_ms += 50.0
    assert house.refused(INTERACTIVE) is None
    house.now_ms += 200.0 / TURNS
    assert house.refused(INTERACTIVE) == "unreachable"
    assert house.refused(BATCH) is None


def test_a_loop_that_stays_late_refuses_long_before_the_deadline() -> None:
    """A queue for the loop makes everyone late and nobody faster; one stall is no queue."""
    house = House()
    house.door.beat._last_ms = 30.0
    house.door.beat._share = 1.0
    told = [house.refused(BATCH) for _ in range(40)]
    assert told[0] is None
    assert set(told[-20:]) <= {"congested", None}
    assert told.count("congested") > 20
    assert house.refused(SloRequest(slo_class="batch", variant="small")) is None


def test_a_set_without_plans_refuses_nobody_at_the_door() -> None:
    """After a catalog of which nothing can be served: whoever reads the request says 503."""
    house = House()
    house.door.beat._last_ms = 30.0
    house.door.beat._share = 1.0
    for _ in range(40):
        house.refused(BATCH)
    house.serving = house.serving.without({"small": "gone", "large": "gone"})
    assert [house.refused(BATCH) for _ in range(40)] == [None] * 40


def test_more_than_may_be_in_flight_are_refused_whatever_they_ask() -> None:
    """Memory is bounded, too."""
    house = House(max_in_flight=3)
    assert house.refused(BATCH, in_flight=2) is None
    assert house.refused(BATCH, in_flight=3) == "full"


def test_who_may_say_more_in_the_body_is_judged_by_the_longest_deadline() -> None:
    """An SLO in the parameters of a tensor request is not known yet."""
    house = House()
    house.fill(60)
    assert house.refused(SloRequest(slo_class="interactive"), told=False) is None
    house.fill(2_500)
    assert house.refused(SloRequest(), told=False) == "unreachable"


def test_a_pinned_variant_is_let_in_as_the_policy_would() -> None:
    """It is answered whatever waits at the models."""
    house = House()
    house.fill(60)
    assert house.refused(SloRequest(slo_class="interactive", variant="small")) is None


@pytest.mark.parametrize(
    "request_",
    [
        SloRequest(slo_class="no such class"),
        SloRequest(latency_ms=1.0, policy=SloPolicy.STRICT),  # no idle system could
    ],
)
def test_what_is_wrong_for_ever_is_not_told_as_busy(request_: SloRequest) -> None:
    """400 and 422 say that trying again is of no use."""
    house = House()
    house.fill(60)
    assert house.refused(request_) is None


def test_the_refusal_says_when_to_come_back() -> None:
    """When so much of the queue is done that the request could wait for the rest."""
    house = House()
    house.fill(60)
    told = []
    for u in (0, 7):
        found = house.door.reason_to_refuse(
            SloRequest(slo_class="interactive", priority=u), house.serving, 0
        )
        assert found is not None
        assert isinstance(found[1], Overloaded)
        told.append(found[1].retry_after_ms)
    assert 0 < told[0] < told[1]


@given(st.lists(st.integers(0, URGENCIES - 1), min_size=200, max_size=600), st.integers(1, 30))
def test_no_urgency_is_refused_more_often_in_a_row_than_the_patience_allows(
    arrivals: list[int], patience: int
) -> None:
    """Whatever comes: where the most urgent would be let in, everybody is, sooner or later."""
    turns = Turns(patience)
    in_a_row = [0] * URGENCIES
    for priority in arrivals:
        if turns.urgency(priority) == 0:  # the queue leaves room for the most urgent alone
            assert turns.take(priority) == 0
            in_a_row[priority] = 0
        else:
            turns.refused(priority)
            in_a_row[priority] += 1
        assert in_a_row[priority] <= patience


@pytest.mark.parametrize("crowd", [0, 3])
def test_under_lasting_overload_every_urgency_gets_a_share(crowd: int) -> None:
    """A queue kept full by the more urgent; each of the others is answered again and again."""
    rng, turns = random.Random(1), Turns()
    work_ms, deadline_ms, queue_ms = 10.0, 200.0, 0.0
    offered, served = [0] * URGENCIES, [0] * URGENCIES
    for _ in range(20_000):
        queue_ms = max(0.0, queue_ms - rng.expovariate(1 / (work_ms / 2)))  # twice the capacity
        priority = crowd if rng.random() < 0.8 else rng.randrange(URGENCIES)
        offered[priority] += 1
        share = policy.MAY_WAIT[turns.urgency(priority)]
        if queue_ms <= share * (deadline_ms - work_ms):
            turns.take(priority)
            served[priority] += 1
            queue_ms += work_ms
        else:
            turns.refused(priority)
    shares = [done / all_ for done, all_ in zip(served, offered, strict=True)]
    assert min(shares) > 0.5 / PATIENCE
    assert shares[crowd] > 2 * shares[7]


async def test_the_beat_feels_a_blocked_loop() -> None:
    """Between two beats too: what asks is late itself."""
    now = [0.0]
    beat = Beat(lambda: now[0])
    assert beat.late_ms == 0.0
    task = asyncio.create_task(beat.run())
    await asyncio.sleep(0)
    assert beat.late_ms == 0.0
    now[0] += BEAT_MS + 300.0
    assert beat.late_ms == pytest.approx(300.0)
    task.cancel()


async def test_a_shed_request_is_answered_before_its_body_is_sent() -> None:
    """429 from the headers: a gateway that is full reads no more."""
    async with live.gateway() as running:
        assert running.service.serving is not None
        latency = running.service.serving.latency
        for variant in ("small", "large") * 500:
            latency.begin(variant, Size(64, 1), now_ms())

        async with httpx2.AsyncClient(base_url=f"http://{running.http_url}") as client:
            headers = {"SLO-Class": "interactive", "Content-Type": "application/json"}
            question = {"question": QUESTION, "context": CONTEXT}
            refused = await client.post("/v1/answer", json=question, headers=headers)
            again = await client.post(
                "/v1/answer", json=question, headers=headers | {"SLO-Class": "batch"}
            )
        assert (refused.status_code, again.status_code) == (429, 200)
        host, port = running.http_url.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(HEAD)  # and no body at all
        async with asyncio.timeout(20):
            assert b" 429 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["type"] == "urn:bertier:problem:overloaded"
        sheds = running.service.metrics.registry.get_sample_value(
            "bertier_sheds_total", {"front": "http", "reason": "unreachable"}
        )
        assert sheds == 2
        assert len(running.backend.asked) == 1


def test_a_loop_that_others_keep_from_its_core_refuses_nobody_for_it() -> None:
    """On a host that is busy with other things few requests still come through: refusing them frees nothing."""
    house = House()
    house.door.beat._last_ms = 30.0
    for _ in range(40):
        house.door.beat._learn(spent_ms=2.0, passed_ms=50.0)
        assert house.refused(BATCH) is None


def test_a_loop_is_busy_when_it_takes_a_core_for_a_while() -> None:
    """One long turn is none; what lasts for half a second is."""
    beat = Beat(lambda: 0.0)
    beat._learn(spent_ms=40.0, passed_ms=40.0)
    assert not beat.busy
    for _ in range(25):
        beat._learn(spent_ms=19.0, passed_ms=20.0)
    assert beat.busy


def test_a_queue_that_lasts_refuses_who_needs_a_dear_plan_first() -> None:
    """Long deadlines would fill the models' queue before short ones; a burst refuses nobody."""
    house = House()
    house.fill(5)  # some 45 ms of work in front of the smallest model
    dear = SloRequest(slo_class="batch", min_f1=0.6)
    cheap = SloRequest(slo_class="batch", min_f1=0.4)
    told = [house.refused(dear) for _ in range(300)]
    assert told[0] is None
    assert told[-1] == "congested"
    assert house.refused(SloRequest(slo_class="batch", min_f1=0.6, variant="large")) is None
    calm = House()
    calm.fill(1)
    assert {calm.refused(each) for each in (dear, cheap) for _ in range(300)} == {None}
