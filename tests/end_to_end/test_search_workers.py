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

import optuna
import pytest
from optuna.trial import TrialState

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
def workers(n: int, folder: Path, url: str) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    command = [sys.executable, "-m", "tests.searching", str(folder), str(TRIALS), url]
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
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "hanging").exists():
            assert time.monotonic() < deadline, "no worker got so far"
            time.sleep(0.1)
        victim = int((tmp_path / "hanging").read_text())
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
