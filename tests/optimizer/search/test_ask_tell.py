"""The search with the real Optuna on made-up objectives: samplers, limits, rungs, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from optuna.trial import TrialState, create_trial

from optimizer.search.ask_tell import MAX_TRIES, POPULATION, START_UP, Evaluators, Search
from optimizer.search.candidates import seeds, suggest
from optimizer.search.storage import opened, opened_among
from optimizer.search.subarchitecture import grid_of
from optimizer.study import trials
from optimizer.study.config import Sampler, SearchConfig
from optimizer.study.space import Candidate, Space
from optimizer.study.trials import Cost, Limits, Point
from optimizer.study.workers import Pulse, Watch, sending_heartbeats
from tests import searching
from tests.searching import PULSE, RUNGS, SPACE, STUDY, Judge, search

SMALL = Space(layers=((0, 1), (1,)), heads=(1, 2), ffn=(32, 96))
REFERENCE = searching.cost(SPACE.largest)


def how(sampler: Sampler = Sampler.RANDOM, n: int = 12, **more: float) -> SearchConfig:
    return SearchConfig.model_validate({"sampler": sampler, "trials": n, **more})


@dataclass
class Finished:
    """A search that has ended."""

    judge: Judge
    limits: Limits
    folder: Path
    points: list[Point]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A search under a limit that some candidates miss."""
    judge, wanted, folder = Judge(), how(n=30, max_size_mb=12), tmp_path_factory.mktemp("limited")
    return Finished(judge, wanted.limits, folder, search(folder, wanted, judge.evaluators))


@pytest.mark.parametrize("sampler", Sampler)
def test_every_sampler_searches_under_limits(sampler: Sampler, tmp_path: Path) -> None:
    """Past its start-up, where the model of the space decides, with limits and without a fault."""
    n = (POPULATION if sampler == Sampler.NSGA2 else START_UP) + 3
    limited = how(sampler, n, max_p95_ms=60, max_size_mb=18, min_f1=0.45)
    found = search(tmp_path, limited, Judge().evaluators)
    front = trials.front_of(found, limited.limits)
    assert len(found) == len({p.candidate for p in found}) == n
    assert front
    assert all(p.cost.p95_ms <= 60 and p.f1[RUNGS[-1]] >= 0.45 for p in front)
    with opened(None, tmp_path, STUDY) as study:
        complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
        assert all(len(t.constraints) == 3 and len(t.values) == 3 for t in complete)


def test_a_model_of_the_space_finds_more_than_chance(tmp_path: Path) -> None:
    """Why a sampler is worth its time."""

    def volume(sampler: Sampler) -> float:
        found = search(tmp_path / sampler, how(sampler, 40), Judge().evaluators)
        return trials.hypervolume([p for p in found if p.f1], REFERENCE)

    assert volume(Sampler.TPE) > volume(Sampler.RANDOM)


def test_a_grid_that_is_asked_whole_is_followed_by_others(tmp_path: Path) -> None:
    """More trials than Bort's grid has shapes are not an end: knobs that it leaves alone remain."""
    space = Space(layers=((0, 1), (1,)), heads=(1, 2), ffn=(32,), embedding_bits=(4, 8))
    found = search(tmp_path, how(Sampler.BORT, 8), Judge().evaluators, space=space)
    assert len({p.candidate for p in found}) == space.size == 8
    first = {p.candidate for p in found[:6]}
    assert {c for c in first if c.embedding_bits == 8} == set(grid_of(space))


def test_known_shapes_are_tried_first(tmp_path: Path) -> None:
    """Before a sampler knows anything."""
    found = search(tmp_path, how(n=9), Judge().evaluators)
    known = list(seeds(SPACE).values())
    assert [p.candidate for p in found][: len(known)] == known


def test_what_costs_too_much_is_never_scored(limited: Finished) -> None:
    """Its shape is enough to know; scoring takes a hundred times as long."""
    gated = [p for p in limited.points if p.cost.size_bytes > 12e6]
    assert gated
    scored = {candidate for candidate, _ in limited.judge.scored}
    assert not {p.candidate for p in gated} & scored
    assert all("size" in (limited.limits.reason(p) or "") for p in gated)


def test_only_promising_candidates_reach_the_highest_rung(tmp_path: Path) -> None:
    """The front on few questions is asked more, the rest is not."""
    judge = Judge()
    found = search(tmp_path, how(n=40, promote=0.01), judge.evaluators)
    rungs = Counter(n for _, n in judge.scored)
    assert rungs[RUNGS[0]] == 40
    assert 0 < rungs[RUNGS[1]] < 30
    assert all(p.questions == RUNGS[1] for p in trials.front_of(found, how().limits))


def test_optuna_gets_the_f1_of_the_highest_rung(limited: Finished) -> None:
    """And of a candidate without one that of its likest, under a limit that is missed."""
    by_trial = {p.trial: p for p in limited.points}
    with opened(None, limited.folder, STUDY) as study:
        for trial in study.get_trials(states=(TrialState.COMPLETE,)):
            if "same_as" in trial.user_attrs:
                continue
            point = by_trial[trial.number]
            assert trial.values[1:] == [point.cost.p95_ms, point.cost.size_bytes]
            if point.f1:
                assert trial.values[0] == point.best_f1
            else:
                assert trial.constraints["max_size_mb"] > 0


def test_a_small_space_is_searched_once(tmp_path: Path) -> None:
    """No candidate is judged twice, and the search ends when all are known."""
    judge = Judge()
    found = search(tmp_path, how(n=1000), judge.evaluators, space=SMALL)
    assert len(found) == SMALL.size == 8
    assert max(Counter(judge.priced).values()) == max(Counter(judge.scored).values()) == 1


def test_limits_that_nothing_can_keep_end_the_search_at_once(tmp_path: Path) -> None:
    """The smallest candidate is tried first: what is too large for it is so for all."""
    judge, hopeless = Judge(), how(n=100, max_size_mb=1)
    found = search(tmp_path, hopeless, judge.evaluators)
    assert len(found) == 1
    nearest = trials.nearest(found, hopeless.limits)
    assert nearest is not None
    assert nearest.candidate == SPACE.smallest
    assert "max_size_mb 1" in (hopeless.limits.reason(nearest) or "")


def test_a_time_budget_ends_the_search(tmp_path: Path) -> None:
    """Counted in time of trials, so that a restart gives no more of it."""
    brief = how(n=10_000, time_budget_min=0.001)
    first = search(tmp_path, brief, Judge().evaluators)
    assert 0 < len(first) < 1000
    assert search(tmp_path, brief, Judge().evaluators) == first


def test_somebody_else_may_say_that_it_is_enough(tmp_path: Path) -> None:
    """A comparison charges its runs by an account of its own, and ends them by it."""
    judge = Judge()

    def enough() -> str | None:
        return "four were priced" if len(judge.priced) >= 4 else None

    with opened(None, tmp_path, STUDY) as study:
        worker = Search(study, SPACE, how(), RUNGS, judge.evaluators, seed=5, enough=enough)
        assert len(worker.run()) == 4


def test_a_finished_search_asks_nothing_again(tmp_path: Path) -> None:
    """The same command shows the same result."""
    first, again = Judge(), Judge()
    found = search(tmp_path, how(), first.evaluators)
    assert search(tmp_path, how(), again.evaluators) == found
    assert again.priced == []


def under(folder: Path, limited: SearchConfig, evaluators: Evaluators) -> list[Point]:
    """Search under limits that were moved since the last time."""
    name = repr(limited.limits)
    with opened_among(None, folder, name, "made-up") as (study, relatives):
        worker = Search(study, SPACE, limited, RUNGS, evaluators, seed=5)
        worker.adopt(relatives)
        return worker.run()


def test_a_looser_limit_goes_on_where_the_tighter_one_ended(tmp_path: Path) -> None:
    """What was too large is asked now, and what was measured or asked is not measured or asked again."""
    first, again = Judge(), Judge()
    tight, loose = how(n=20, max_size_mb=9), how(n=20, max_size_mb=16)
    before = under(tmp_path, tight, first.evaluators)
    found = under(tmp_path, loose, again.evaluators)
    gated = {p.candidate for p in before if not p.f1}
    opened_now = {c for c in gated if searching.cost(c).size_bytes <= 16e6}
    assert opened_now
    assert again.priced == []
    assert not set(again.scored) & set(first.scored)
    assert opened_now <= {p.candidate for p in found if p.f1}
    assert {p.candidate for p in found} == {p.candidate for p in before}
    assert len({p.trial for p in found}) == len(found)


def test_a_tighter_limit_judges_what_is_finished(tmp_path: Path) -> None:
    """The front is within it, and so is what the sampler learns; back under the old one nothing is lost."""
    judge = Judge()
    loose, tight = how(n=30, promote=1.0), how(n=30, promote=1.0, max_p95_ms=40, min_f1=0.5)
    before = under(tmp_path, loose, judge.evaluators)
    asked = len(judge.scored)
    found = under(tmp_path, tight, judge.evaluators)
    assert len(judge.scored) == asked
    assert trials.front_of(found, tight.limits) == [
        p for p in trials.front_of(found, tight.limits) if p.cost.p95_ms <= 40
    ]
    with opened_among(None, tmp_path, repr(tight.limits), "made-up") as (study, _):
        for trial in study.get_trials(states=(TrialState.COMPLETE,)):
            assert set(trial.constraints) == {"max_p95_ms", "min_f1"}
            assert trial.constraints["max_p95_ms"] == pytest.approx(trial.values[1] / 40 - 1)
    assert under(tmp_path, loose, judge.evaluators) == before
    assert len(judge.scored) == asked


def test_moved_limits_leave_trials_for_new_candidates(tmp_path: Path) -> None:
    """More trials than were made are new ones, chosen under the limits in force."""
    judge = Judge()
    under(tmp_path, how(n=12), judge.evaluators)
    found = under(tmp_path, how(n=20, max_size_mb=14), judge.evaluators)
    assert len(found) == len({p.candidate for p in found}) == 20
    assert Counter(judge.priced).most_common(1)[0][1] == 1


def test_a_reopened_candidate_whose_worker_was_stopped_is_not_begun_anew(tmp_path: Path) -> None:
    """What was known before it is kept, however often it is tried."""
    first, again = Judge(), Judge()
    under(tmp_path, how(n=20, max_size_mb=9), first.evaluators)

    def stop(_candidate: Candidate, _n: int) -> float:
        raise KeyboardInterrupt

    loose = how(n=20, max_size_mb=16)
    with pytest.raises(KeyboardInterrupt):
        under(tmp_path, loose, Evaluators(again.cost, stop))
    under(tmp_path, loose, again.evaluators)
    assert again.priced == []


def test_a_stopped_trial_is_tried_again(tmp_path: Path) -> None:
    """Control-C loses the running trial and nothing else."""
    judge, left = Judge(), [12]

    def f1(candidate: Candidate, n: int) -> float:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return judge.f1(candidate, n)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, how(), Evaluators(judge.cost, f1))
    stopped = judge.priced[-1]
    finished = [c for c in judge.priced if c != stopped]
    found = search(tmp_path, how(), judge.evaluators)
    assert len(found) == 12
    priced = Counter(judge.priced)
    assert priced[stopped] == 2
    assert all(priced[candidate] == 1 for candidate in finished)


def test_a_candidate_that_always_fails_is_given_up(tmp_path: Path) -> None:
    """It must not stop every worker for ever."""
    judge, bad = Judge(), list(seeds(SPACE).values())[2]

    def cost(candidate: Candidate) -> Cost:
        if candidate == bad:
            raise OSError("no space left on device")
        return judge.cost(candidate)

    for _ in range(MAX_TRIES):
        with pytest.raises(OSError, match="no space left"):
            search(tmp_path, how(n=8), Evaluators(cost, judge.f1))
    found = search(tmp_path, how(n=8), Evaluators(cost, judge.f1))
    assert len(found) == 8
    assert bad not in {p.candidate for p in found}


def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    """kill -9 in the middle of a trial: all finished ones are there, that one is tried again."""
    (tmp_path / "hang").touch()
    command = [sys.executable, "-m", "tests.searching", str(tmp_path), "12"]
    with subprocess.Popen(command) as process:
        pid = _wait_for(tmp_path / "hanging", process)
        os.kill(pid, signal.SIGKILL)
    before = (tmp_path / "judged.txt").read_text().splitlines()
    judge = Judge()
    found = search(tmp_path, how(promote=0.1), judge.evaluators)
    with opened(None, tmp_path, STUDY) as study:
        failed = study.get_trials(states=(TrialState.FAIL,))
        retried = [t for t in study.trials if "retry_of" in t.user_attrs]
    assert len(found) == 12
    assert [t.user_attrs["retry_of"] for t in retried] == [t.number for t in failed]
    assert judge.priced[0] == next(p.candidate for p in found if p.trial == retried[0].number)
    assert not {f"{c.label} on {n}" for c, n in judge.scored} & set(before)


def test_a_trial_whose_worker_died_is_tried_again(tmp_path: Path) -> None:
    """Even one that died before it gave any sign of life, while Optuna chose for it."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with opened(url, tmp_path, STUDY) as study:
        worker = Search(
            study, SPACE, how(), RUNGS, Judge().evaluators, seed=1, shared=True, pulse=PULSE
        )
        worker._queue_seeds()
        dead = study.ask()
    judge = Judge()
    rare = Pulse(every_s=60, grace_s=0.5)  # a file has no room for many signs of life
    found = search(tmp_path, how(n=8), judge.evaluators, url=url, pulse=rare)
    assert SPACE.smallest in judge.priced
    with opened(url, tmp_path, STUDY) as study:
        assert study.trials[dead.number].state == TrialState.FAIL
    assert len(found) == 8


def test_the_downtime_of_a_dead_worker_is_no_time_of_the_search(tmp_path: Path) -> None:
    """Somebody who goes on the next morning has not used up a budget of hours."""
    with opened(None, tmp_path, STUDY) as study:
        worker = Search(study, SPACE, how(n=4), RUNGS, Judge().evaluators, seed=1)
        worker.run()
        spent = worker._spent_min()
        began = datetime.now() - timedelta(hours=9)  # noqa: DTZ005 (as Optuna counts)
        dead = create_trial(state=TrialState.RUNNING, system_attrs={})
        dead.datetime_start = began
        study.add_trial(dead)
        number = len(study.trials) - 1
        worker._retire(study.trials[number])
        assert study.trials[number].state == TrialState.FAIL
        duration = study.trials[number].duration
        assert duration is not None
        assert duration > timedelta(hours=8)
        assert worker._spent_min() <= 2 * spent


def test_a_worker_waits_for_others_to_choose_while_they_live(tmp_path: Path) -> None:
    """A Gaussian process may think for long: who does not wait tries the same candidate again."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    pulse = Pulse(every_s=0.1, grace_s=1.0)
    with opened(url, tmp_path, STUDY) as study:
        worker = Search(
            study, SPACE, how(), RUNGS, Judge().evaluators, seed=1, shared=True, pulse=pulse
        )
        slow, quick = study.ask(), study.ask()
        suggest(quick, SPACE)
        found: list[int | None] = []
        waiting = Thread(target=lambda: found.append(worker._elsewhere(quick)))
        with sending_heartbeats(partial(slow.set_user_attr, "heartbeat"), pulse):
            waiting.start()
            waiting.join(3 * pulse.grace_s)  # longer than a silent one is waited for
            assert waiting.is_alive(), "the other one still chooses"
        waiting.join(30)
        assert found == [None], "the other one fell silent"


def test_a_silent_trial_counts_as_stopped_after_the_grace() -> None:
    """By the watcher's clock alone: the clocks of hosts differ."""
    watch = Watch(grace_s=10)
    assert watch.stopped({1: 5, 2: 0}, 100.0) == []
    assert watch.stopped({1: 6, 2: 0}, 109.0) == []
    assert watch.stopped({1: 6, 2: 0}, 111.0) == [2]
    assert watch.stopped({1: 6}, 120.0) == [1]
    assert watch.stopped({}, 130.0) == []


def _wait_for(path: Path, process: subprocess.Popen[bytes], patience_s: float = 120.0) -> int:
    deadline = time.monotonic() + patience_s
    while not path.exists():
        assert process.poll() is None, "the worker ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(path.read_text())
