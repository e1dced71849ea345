"""Three workers on one study in a real PostgreSQL, one of them killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from optimizer.search import cost_queue
from optimizer.search.ask_tell import Evaluators
from optimizer.search.storage import SearchError, claims, opened
from optimizer.study.config import Sampler, SearchConfig
from optimizer.study.space import Candidate
from optimizer.study.workers import Claim
from tests import local_postgres
from tests.searching import STUDY, Judge, search

TRIALS = 40
PATIENCE_S = 200.0
HOLD = """\
import sys, time
from pathlib import Path
from optimizer.search.storage import claims
with claims(sys.argv[1], Path(sys.argv[2])) as claim, claim("a") as mine:
    print(mine, flush=True)
    time.sleep(3600)
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server that no test stops."""
    with local_postgres.server() as running:
        yield running.url


@contextmanager
def workers(
    n: int, folder: Path, url: str, kind: tuple[str, ...] = (str(TRIALS),)
) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    what, *more = kind
    command = [sys.executable, "-m", "tests.searching", str(folder), what, url, *more]
    started = {p.pid: p for p in [subprocess.Popen(command) for _ in range(n)]}
    try:
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_a_killed_worker_loses_one_trial_that_another_repeats(tmp_path: Path, url: str) -> None:
    """Workers join at once on an empty database, and go on when one of them is gone."""
    (tmp_path / "hang").touch()
    with workers(3, tmp_path, url) as started:
        victim = hanging_in(tmp_path)
        os.kill(victim, signal.SIGKILL)
        codes = {pid: process.wait(PATIENCE_S) for pid, process in started.items()}
    assert codes.pop(victim) == -signal.SIGKILL
    assert list(codes.values()) == [0, 0]

    trials = trials_at(url, tmp_path)
    retried = [t for t in trials if "retry_of" in t.user_attrs]
    assert len(retried) == 1
    lost = trials[retried[0].user_attrs["retry_of"]]
    assert (lost.state, retried[0].state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert lost.params == retried[0].params
    judged = [t for t in trials if "point" in t.user_attrs]
    assert len(judged) >= TRIALS
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    lines = (tmp_path / "judged.txt").read_text().splitlines()
    twice = [line for line, n in Counter(lines).items() if n > 1]
    assert not twice


def hanging_in(folder: Path) -> int:
    """Return the pid of the worker that hangs, as soon as one does."""
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "hanging").exists():
        assert time.monotonic() < deadline, "no worker got so far"
        time.sleep(0.1)
    return int((folder / "hanging").read_text())


def test_a_killed_cost_worker_loses_one_measurement_that_another_repeats(
    tmp_path: Path,
) -> None:
    """Two search workers ask one cost worker; a second takes over what it had, and no latency is lost."""
    (tmp_path / "hang").touch()
    with local_postgres.server() as running:
        url = running.url
        with (
            workers(2, tmp_path, url, ("12", "queued")) as searching,
            workers(1, tmp_path, url, ("costs",)) as first,
        ):
            victim = hanging_in(tmp_path)
            assert list(first) == [victim]
            os.kill(victim, signal.SIGKILL)
            with workers(1, tmp_path, url, ("costs",)):
                codes = [process.wait(PATIENCE_S) for process in searching.values()]
        assert codes == [0, 0]
        assert len([t for t in trials_at(url, tmp_path) if "point" in t.user_attrs]) >= 12
        with cost_queue.opened(url, STUDY) as queue:
            requests = queue.requests.trials
    assert {t.state for t in requests} == {TrialState.FAIL, TrialState.COMPLETE}
    keys = [t.user_attrs["key"] for t in requests if t.state is TrialState.COMPLETE]
    assert len(set(keys)) == len(keys) >= 12
    assert requests[0].state is TrialState.FAIL
    assert requests[0].user_attrs["key"] in keys


def test_a_member_is_finished_by_one_worker_at_a_time(tmp_path: Path, url: str) -> None:
    """A worker takes what no other has; what a lost one had is free at once."""
    command = [sys.executable, "-c", HOLD, url, str(tmp_path)]
    with (
        claims(url, tmp_path) as claim,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker,
    ):
        assert worker.stdout is not None
        assert worker.stdout.readline() == "True\n"
        with claim("a") as mine:
            assert not mine
        with claim("b") as mine:
            assert mine
        worker.kill()
        deadline = time.monotonic() + PATIENCE_S
        while not is_free(claim, "a"):
            assert time.monotonic() < deadline, "the database keeps what a killed worker had"
            time.sleep(0.1)


def is_free(claim: Claim, name: str) -> bool:
    with claim(name) as mine:
        return mine


def test_a_lost_database_ends_a_worker_that_finishes(tmp_path: Path) -> None:
    """The message says that finished members are kept."""
    with local_postgres.server() as running:
        with pytest.raises(SearchError, match="finished members are kept") as raised:
            claim_after(running.stop, running.url, tmp_path)
        assert "password" not in str(raised.value)
        running.start()
    with pytest.raises(SearchError, match="postgresql://"):
        claim_after(running.stop, "mysql://user:password@host/database", tmp_path)


def test_a_lost_database_ends_a_cost_worker() -> None:
    """What it measured before is kept, and what it had is there for the next one."""
    with local_postgres.server() as running:

        def lose(wanted: dict[str, Any]) -> dict[str, Any]:
            if wanted["shape"] == "b":
                running.stop()
            return {"p95_ms": 1.5}

        with pytest.raises(SearchError, match="finished measurements are kept"):
            answer_two(running.url, lose)
        running.start()
        with cost_queue.opened(running.url, STUDY) as queue:
            states = [t.state for t in queue.requests.trials]
            assert states == [TrialState.COMPLETE, TrialState.RUNNING]
            assert queue.ask("a", {}) == {"p95_ms": 1.5}


def answer_two(url: str, measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with cost_queue.opened(url, STUDY) as queue:
        for shape in ("a", "b"):
            queue.requests.enqueue_trial({}, {"key": shape, "wanted": {"shape": shape}})
        while queue.answer_next(measure):
            pass


def claim_after(event: Callable[[], None], url: str, folder: Path) -> None:
    with claims(url, folder) as claim:
        event()
        with claim("a") as mine:
            assert mine


def trials_at(url: str, folder: Path) -> list[optuna.trial.FrozenTrial]:
    with opened(url, folder, STUDY) as study:
        return study.trials


def test_a_database_that_goes_away_loses_no_finished_trial(tmp_path: Path) -> None:
    """The worker says so in one line and ends; back again, all but the running trial is there."""
    judge = Judge()
    with local_postgres.server() as running:

        def f1(candidate: Candidate, n: int) -> float:
            if len(judge.priced) == 10:
                running.stop()
            return judge.f1(candidate, n)

        how = SearchConfig(sampler=Sampler.RANDOM, trials=20)
        with pytest.raises(SearchError, match="the same command goes on") as raised:
            search(tmp_path, how, Evaluators(judge.cost, f1), url=running.url)
        assert "\n" not in str(raised.value)
        running.start()
        kept = [t for t in trials_at(running.url, tmp_path) if "point" in t.user_attrs]
        assert len(kept) == 9
