"""Latencies that search workers ask cost workers for: whose turn it is, and what a lost one costs."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pytest
from optuna.trial import TrialState

from gateway.catalog.schema import Precision
from optimizer.models.weights import GraphShape
from optimizer.search import cost_queue, storage
from optimizer.search.cost_queue import MAX_TRIES, CostQueue
from optimizer.search.costs import WANTED, CostGate, Wanted, graph_shape
from optimizer.search.storage import SearchError
from optimizer.study.space import Candidate
from optimizer.study.trials import Cost
from optimizer.study.workers import Pulse

PULSE = Pulse(every_s=0.1, grace_s=2.0)
PATIENCE_S = 60.0
SHAPE = GraphShape(16, (2, 2), 16, (32, 32), 50)

Json = dict[str, Any]
T = TypeVar("T")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """In write-ahead mode: a test that looks all the time must not keep others from writing."""
    return storage._file(tmp_path / "trials.db")


@contextmanager
def joined(url: str) -> Iterator[CostQueue]:
    with cost_queue.opened(url, "mine", PULSE) as queue:
        yield queue


def started(work: Callable[..., T], *given: Any) -> Future[T]:
    """Return what will come of it; a thread that waits in vain does not keep a failed test."""
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(work(*given))
        except Exception as exc:  # noqa: BLE001 - raised where the result is asked for
            found.set_exception(exc)

    Thread(target=run, daemon=True).start()
    return found


def asked(url: str, *keys: str) -> list[Json]:
    """Be a search worker that wants these latencies, one after the other."""
    with joined(url) as queue:
        return [queue.ask(key, {"shape": key}) for key in keys]


def measured(wanted: Json) -> Json:
    return {"p95_ms": 1.5, "of": wanted["shape"]}


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def count(queue: CostQueue, state: TrialState) -> int:
    return len(queue.requests.get_trials(deepcopy=False, states=(state,)))


def waiting(queue: CostQueue) -> int:
    return count(queue, TrialState.WAITING)


def test_search_workers_take_turns(url: str) -> None:
    """One that wants many latencies does not keep another from its first."""
    order: list[str] = []

    def measure(wanted: Json) -> Json:
        order.append(wanted["shape"])
        return measured(wanted)

    with joined(url) as queue:
        many = started(asked, url, "a1", "a2", "a3")
        until(lambda: waiting(queue) == 1)
        later = started(asked, url, "b1", "b2", "b3")
        for left in (2, 2, 2, 2, 2, 1):
            until(lambda left=left: waiting(queue) == left)  # type: ignore[misc]
            assert queue.answer_next(measure)
        assert not queue.answer_next(measure)
    assert order == ["a1", "b1", "a2", "b2", "a3", "b3"]
    assert [found["of"] for found in many.result(PATIENCE_S)] == ["a1", "a2", "a3"]
    assert [found["of"] for found in later.result(PATIENCE_S)] == ["b1", "b2", "b3"]


def test_equal_shapes_are_measured_once(url: str) -> None:
    """Whoever asks, and also when nobody measures any more."""
    with joined(url) as queue:
        first = started(asked, url, "a")
        until(lambda: waiting(queue) == 1)
        second = started(asked, url, "a")
        queue.requests.enqueue_trial({}, {"key": "a", "wanted": {}})  # two asked at the same moment
        assert queue.answer_next(measured)
        assert first.result(PATIENCE_S) == second.result(PATIENCE_S) == asked(url, "a")
        assert queue.answer_next(_never)
        assert not queue.answer_next(_never)


def _never(_: Json) -> Json:
    raise AssertionError("it was measured")


def test_what_a_lost_cost_worker_had_is_measured_by_another(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes silent in mid-measurement; one that only takes long keeps what it has."""

    def takes_long(wanted: Json) -> Json:
        time.sleep(1.5 * PULSE.grace_s)
        return measured(wanted)

    with joined(url) as queue:
        wanted = started(asked, url, "a")
        until(lambda: waiting(queue) == 1)
        lost = queue.requests.ask()
        until(lambda: waiting(queue) == 1)
        assert queue.requests.trials[lost.number].state is TrialState.FAIL
        assert queue.answer_next(takes_long)
        assert [found["of"] for found in wanted.result(PATIENCE_S)] == ["a"]
        assert count(queue, TrialState.FAIL) == 1
    assert f"request {lost.number}: its cost worker is gone" in caplog.text


def test_a_request_that_no_cost_worker_can_measure_ends_its_search_worker(url: str) -> None:
    """Both say why; asked again later, it gets as many tries again."""

    def fails(_: Json) -> Json:
        raise SearchError("/tmp: no room")

    with joined(url) as queue:
        for _ in range(2):
            wanted = started(asked, url, "a")
            for _ in range(MAX_TRIES):
                until(lambda: waiting(queue) == 1)
                with pytest.raises(SearchError, match="no room"):
                    queue.answer_next(fails)
            with pytest.raises(
                SearchError, match=r"3 cost workers failed .* because: /tmp: no room"
            ):
                wanted.result(PATIENCE_S)


def test_a_stopped_cost_worker_gives_back_what_it_had(url: str) -> None:
    """At once, not after the time in which a lost one is missed."""

    def stopped(_: Json) -> Json:
        raise KeyboardInterrupt

    with joined(url) as queue:
        wanted = started(asked, url, "a")
        until(lambda: waiting(queue) == 1)
        with pytest.raises(KeyboardInterrupt):
            queue.answer_next(stopped)
        assert count(queue, TrialState.RUNNING) == 0
        until(lambda: queue.answer_next(measured))
        assert [found["of"] for found in wanted.result(PATIENCE_S)] == ["a"]


def test_search_workers_wait_for_the_first_cost_worker(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They say what to start; its kind of host is that of all cost workers."""
    with joined(url) as queue:
        host: Future[str] = started(lambda: queue.host)
        until(lambda: "bertier-optimize costs --study FILE --storage URL" in caplog.text)
        queue.join("one kind")
        assert host.result(PATIENCE_S) == "one kind"
        queue.join("one kind")
        with pytest.raises(SearchError, match="of one kind, this is another kind"):
            queue.join("another kind")


def test_a_search_worker_that_waits_in_vain_says_so(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And goes on when a cost worker comes; one that is at work is no reason to complain."""

    def slow(wanted: Json) -> Json:
        time.sleep(1.5 * PULSE.grace_s)
        return measured(wanted)

    with joined(url) as queue, caplog.at_level(logging.WARNING):
        queue.join("a host")
        wanted = started(asked, url, "a")
        until(lambda: "no cost worker is running" in caplog.text)
        caplog.clear()
        assert queue.answer_next(slow)
        assert wanted.result(PATIENCE_S)
        assert "no cost worker is running" not in caplog.text


def test_a_cost_gate_keeps_what_cost_workers_measured(url: str, tmp_path: Path) -> None:
    """Under the name of their host, for later searches; the shape arrives whole."""
    arrived: list[Wanted] = []

    def measure(request: Json) -> Json:
        arrived.append(WANTED.validate_python(request))
        return {"p95_ms": 1.5, "size_bytes": 2}

    candidate = Candidate((0, 1), 2, 32, precision=Precision.FP32)
    with joined(url) as queue:
        queue.join("another host")
        gate = CostGate(SHAPE, 64, tmp_path / "costs", queue=queue, patience_s=0)
        cost = started(gate.cost, candidate)
        until(lambda: waiting(queue) == 1)
        assert queue.answer_next(measure)
        assert cost.result(PATIENCE_S) == Cost(1.5, 2)
        assert arrived == [Wanted(graph_shape(SHAPE, candidate), Precision.FP32, 64, 0)]
        assert gate.host == "another host"
        assert len(list(gate.folder.iterdir())) == 1
        assert gate.cost(candidate) == Cost(1.5, 2)


def test_a_full_disk_ends_a_cost_worker_with_what_to_do(tmp_path: Path) -> None:
    """A model is written to be measured."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SearchError, match="make room, then run the same command again"):
            Wanted(SHAPE, Precision.FP32, 64, 0).measured()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_missing_storage_gives_a_cost_worker_one_line() -> None:
    """With what to do, and without the password."""
    with (
        pytest.raises(SearchError, match="the same command goes on") as raised,
        joined("postgresql://me:secret@127.0.0.1:9/none"),
    ):
        pass
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
