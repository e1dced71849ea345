"""What several workers share: slots, quotas and limits, through two mappings of one real memory."""

from __future__ import annotations

import asyncio

import pytest

from gateway.auth.quota import SharedQuota
from gateway.clock import now_ms
from gateway.domain import Size, SloRequest
from gateway.errors import Overloaded
from gateway.latency.model import LatencyModel
from gateway.latency.other_workers import OtherWorkers
from gateway.latency.queueing import Queue
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.shared_memory import MAX_JOBS, MAX_QUOTAS, SharedMemory, State, Workers, number_of
from tests.fakes import FakeBackend, make_plan, make_variant, serving_set, small_and_large

SMALL = Size(64, 1)
VARIANT = make_variant("small", 10.0)


def mapped(n_workers: int = 2) -> tuple[SharedMemory, SharedMemory]:
    """Return one memory as two processes see it."""
    memory = SharedMemory(n_workers)
    return memory, SharedMemory(n_workers, memory.number)


def predicting(memory: SharedMemory, worker: int | None) -> LatencyModel:
    latency = LatencyModel({"small": VARIANT.profile}, cores=2, instances={"small": 1})
    latency.others = OtherWorkers(Workers(memory, worker))
    return latency


def expected_ms(latency: LatencyModel, at_ms: float) -> float:
    return latency.predict([make_plan(VARIANT, 0.5)], SMALL, 0.5, at_ms)[0].predicted_ms


def test_a_prediction_sees_the_work_of_the_other_worker() -> None:
    """A request waits behind all work on the host, whichever process sent it."""
    one, other = mapped()
    a, b = predicting(one, 0), predicting(other, 1)
    alone_ms = expected_ms(a, 1_000.0)
    works = [b.begin("small", SMALL, 1_000.0) for _ in range(5)]
    assert expected_ms(a, 1_001.0) == pytest.approx(expected_ms(b, 1_001.0))
    assert expected_ms(a, 1_001.0) > alone_ms + 40.0
    was_busy = a.busy
    assert was_busy
    for work in works:
        b.leave(work, 1_010.0)
    assert not a.busy
    assert expected_ms(a, 5_000.0) == pytest.approx(alone_ms)


class Restless(OtherWorkers):
    """The others begin or end work between any two looks."""

    def follow(self, queue: Queue, now_ms: float | None = None) -> bool:
        super().follow(queue, now_ms)
        return True


def test_work_that_comes_during_a_prediction_does_not_break_it() -> None:
    """Other processes do not wait for this one to finish a step."""
    memory = SharedMemory(2)
    latency = predicting(memory, 0)
    latency.others = Restless(Workers(memory, 0))
    assert expected_ms(latency, 1_000.0) > 0.0
    work = latency.begin("small", SMALL, 1_001.0)
    assert latency.finish(work, 1_011.0).variant == "small"


def test_both_workers_predict_what_one_process_would() -> None:
    """Shared work counts as own work does: by its age, in its order."""
    one, other = mapped()
    a, b, single = predicting(one, 0), predicting(other, 1), predicting(SharedMemory(1), 0)
    for nth, at_ms in enumerate((0.0, 2.0, 3.0)):
        (a, b)[nth % 2].begin("small", SMALL, 1_000.0 + at_ms)
        single.begin("small", SMALL, 1_000.0 + at_ms)
    for model in (a, b):
        assert expected_ms(model, 1_006.0) == pytest.approx(expected_ms(single, 1_006.0), rel=0.1)


def test_the_work_of_a_dead_worker_is_forgotten() -> None:
    """It ended with its process; the parent clears its slot."""
    one, other = mapped()
    a, b = predicting(one, 0), predicting(other, 1)
    for _ in range(3):
        b.begin("small", SMALL, now_ms())
    assert a.busy
    SharedMemory(2, one.number).slot(1).clear()
    assert not a.busy


def test_more_jobs_than_there_is_room_for_are_no_error() -> None:
    """The others then see fewer; nothing else depends on it."""
    memory = SharedMemory(1)
    slot = memory.slot(0)
    places = [slot.add_job(1, 1, 1.0, 0.0) for _ in range(MAX_JOBS + 1)]
    assert places[-1] == -1
    for place in places:
        slot.remove_job(place)
    assert len(slot.job_ids()) == 0
    assert slot.add_job(1, 1, 1.0, 0.0) == 0


def test_a_quota_holds_for_both_workers_together() -> None:
    """A caller whose connections reach both may not ask twice as much."""
    one, other = mapped()
    quotas = [SharedQuota(10.0, memory.quotas, number_of("key")) for memory in (one, other)]
    admitted = sum(quotas[nth % 2].take(1, 1_000.0) == 0.0 for nth in range(30))
    assert admitted == 10
    assert [quota.left(1_000.0) for quota in quotas] == [0, 0]
    assert quotas[1].take(1, 1_000.0) == pytest.approx(100.0)
    assert quotas[0].left(1_500.0) == 5


def test_quotas_that_are_full_again_make_room() -> None:
    """Keys come and go for as long as a gateway runs."""
    memory = SharedMemory(1)
    for nth in range(2 * MAX_QUOTAS):
        SharedQuota(1e3, memory.quotas, number_of(f"key {nth}")).take(1, 1e3 * nth)
    spent = SharedQuota(1.0, memory.quotas, number_of("spent"))
    assert spent.take(1, 1e9) == 0.0
    assert spent.take(1, 1e9) > 0.0


async def test_max_in_flight_holds_for_both_workers_together() -> None:
    """It bounds memory and work of the whole gateway."""
    services = []
    for nth, memory in enumerate(mapped()):
        service = AnswerService(FakeBackend(), Settings(max_in_flight=3), Metrics())
        service.serving = serving_set(small_and_large())
        service.admission.workers = Workers(memory, nth)
        services.append(service)
    hold = asyncio.Event()

    async def asked(service: AnswerService) -> None:
        admission = await service.admit(SloRequest(latency_ms=1_000.0), "http")
        await hold.wait()
        service.leave(admission)

    tasks = [asyncio.create_task(asked(services[nth % 2])) for nth in range(3)]
    await asyncio.sleep(0)
    for service in services:
        with pytest.raises(Overloaded, match="3 requests are in flight, and max_in_flight is 3"):
            service.raise_if_full(SloRequest(), "http")
    hold.set()
    await asyncio.gather(*tasks)
    for service in services:
        service.raise_if_full(SloRequest(), "http")


def test_retries_of_all_workers_stay_within_the_budget() -> None:
    """Each has its part of what may be retried at once; the share of requests adds up by itself."""
    assert Settings(workers=4).part_of(20.0) == 5.0
    assert Settings().part_of(20.0) == 20.0
    assert Settings(workers=64).part_of(20.0) == 1.0


@pytest.mark.parametrize(
    ("own", "other", "mine"),
    [
        ((State.READY, 2), (State.READY, 2), True),
        ((State.READY, 3), (State.READY, 2), False),
        ((State.READY, 9), (State.LEAVING, 0), True),
        ((State.STARTING, 0), (State.READY, 5), False),
        ((State.STARTING, 0), (State.STARTING, 5), True),
        ((State.LEAVING, 0), (State.READY, 5), False),
        ((State.READY, 1), (State.ABSENT, 0), True),
    ],
)
def test_a_connection_goes_to_the_ready_worker_with_the_fewest(
    own: tuple[State, int], other: tuple[State, int], mine: bool
) -> None:
    """One that has no models, or is about to stop, leaves it to those that can answer."""
    memory = SharedMemory(2)
    for nth, (state, connections) in enumerate((own, other)):
        memory.slot(nth).state, memory.slot(nth).connections = state, connections
    assert Workers(memory, 0).may_accept() is mine
