"""The search: Optuna's ask-and-tell loop over candidates.

A trial has stages: its cost, then its F1 on few questions, then on more. Optuna gets the F1 of the last
stage, latency, size, and the share by which each limit is missed. A candidate that ends at the cost gate
gets the F1 of the most similar scored candidate, so that the gate affects only what the sampler learns
about the limits.

A kill is safe at any moment: running trials are queued again, all others are kept. Optuna's heartbeat is
not used: it needs `optimize`, and misses a worker that dies while Optuna chooses its candidate. Only this
module, `cost_queue` and `storage` know Optuna.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState, create_trial
from pydantic import TypeAdapter

from optimizer.search import subarchitecture
from optimizer.search.candidates import is_ordered, parameters_of, seeds, suggest
from optimizer.search.storage import STORAGE_ERRORS
from optimizer.search.subarchitecture import Grid
from optimizer.study import trials, workers
from optimizer.study.config import Sampler, SearchConfig
from optimizer.study.space import Candidate, Space
from optimizer.study.trials import Cost, Point
from optimizer.study.workers import Pulse, Watch

log = logging.getLogger(__name__)

START_UP = 10  # random candidates before a sampler fits its model
POPULATION = 20  # of NSGA-II; Optuna's default of 50 is a quarter of a usual search
PATIENCE = 50  # the search ends after this many known suggestions in a row
MAX_TRIES = 3  # attempts at a trial whose workers die
POLL_S = 1.0  # between looks while other workers finish the last trials
LOOK_EVERY_S = 0.05  # between looks at whether other workers have chosen
HOPELESS = 0.25  # allowance for latencies measured too high

POINT, BEGUN = "point", "begun"  # attributes of a trial: its result, and what was known before it

_POINT = TypeAdapter(Point)

SAMPLERS: Mapping[Sampler, Callable[[int], BaseSampler]] = {
    Sampler.GP: lambda seed: GPSampler(
        seed=seed, n_startup_trials=START_UP, warn_independent_sampling=False
    ),
    Sampler.TPE: lambda seed: TPESampler(seed=seed, n_startup_trials=START_UP),
    Sampler.NSGA2: lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
    Sampler.RANDOM: lambda seed: RandomSampler(seed=seed),
}


class _GridSampler(BaseSampler):
    """Suggests the candidates that somebody else chooses; when there are none left, random ones."""

    def __init__(self, space: Space, choose: Callable[[], Candidate | None], seed: int) -> None:
        self._space, self._choose, self._random = space, choose, RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {
            name: IntDistribution(0, len(values) - 1)
            if is_ordered(values)
            else CategoricalDistribution(values)
            for name, values in self._space.knobs.items()
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if "fixed_params" in trial.system_attrs:
            return {}  # queued: chosen already
        found = self._choose()
        return {} if found is None else parameters_of(found, self._space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _judged(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of a study that have a point of their own."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if POINT in trial.user_attrs]


def _point_of(trial: FrozenTrial) -> Point:
    return _POINT.validate_python(trial.user_attrs[POINT])


def _is_given_up(trial: FrozenTrial) -> bool:
    """Return whether as many workers died of a failed trial as may."""
    return bool(trial.user_attrs.get("tries", 0) >= MAX_TRIES - 1)


def _begun(trial: Trial | FrozenTrial) -> Point | None:
    """Return what was known of a trial's candidate before it; None: nothing."""
    seen = trial.user_attrs.get(BEGUN)
    return None if seen is None else _POINT.validate_python(seen)


@dataclass(frozen=True, slots=True)
class Evaluators:
    """The slow evaluations of a candidate; deterministic for a candidate."""

    cost: Callable[[Candidate], Cost]
    f1: Callable[[Candidate, int], float]  # on so many questions


class Search:
    """One worker of a search."""

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        how: SearchConfig,
        rungs: tuple[int, ...],
        evaluators: Evaluators,
        *,
        seed: int,
        shared: bool = False,
        pulse: Pulse = Pulse(),  # noqa: B008 - frozen
        watch_progress: Callable[[Point, list[Point]], None] = lambda _point, _points: None,
        enough: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`rungs`: number of questions of each, ascending. `shared`: other workers may join the study.

        `enough`: returns a further reason to stop; None: go on.
        """
        self._study, self._space, self._how, self._rungs = study, space, how, rungs
        self._evaluators, self._shared, self._pulse = evaluators, shared, pulse
        self._watch, self._said, self._enough = Watch(pulse.grace_s), watch_progress, enough
        self._limits = how.limits
        self._known_in_a_row = 0
        self._read: dict[int, Point] = {}  # by trial; a finished one never changes
        study.sampler = self._sampler(self._seed(seed))

    def _sampler(self, seed: int) -> BaseSampler:
        if self._how.sampler is Sampler.BORT:
            return _GridSampler(self._space, self._next_of_grid, seed)
        return SAMPLERS[self._how.sampler](seed)

    def _next_of_grid(self) -> Candidate | None:
        """Return the shape that Bort's algorithm asks next; None: it has asked all."""
        grid = self._grid
        errors = {p.candidate: 1 - p.best_f1 for p in self.points() if p.best_f1 is not None}
        asked = {p.candidate for p in self.points()}
        others = self._trials(TrialState.RUNNING, TrialState.WAITING)
        others += [t for t in self._trials(TrialState.FAIL) if _is_given_up(t)]
        found = grid.following(errors, asked | {c for t in others if (c := self._of(t))})
        if found is not None and errors:
            short = 100 * grid.shortfall(errors)
            log.info(
                "search: the best W is at most %.0f %% short of the grid's, by its bound", short
            )
        return found

    def _of(self, trial: FrozenTrial) -> Candidate | None:
        """Return the candidate of a trial that is not over; None: it was not chosen yet."""
        chosen = trial.params or trial.system_attrs.get("fixed_params", {})
        if len(chosen) < len(self._space.knobs):
            return None
        return suggest(FixedTrial(chosen), self._space)

    @cached_property
    def _grid(self) -> Grid:
        """The grid with its costs: minutes to measure, so not while a trial waits for its candidate."""
        shapes = subarchitecture.grid_of(self._space)
        log.info("search: measuring the costs of %d shapes", len(shapes))
        costs = {shape: self._evaluators.cost(shape) for shape in shapes}
        beyond = {
            shape
            for shape, cost in costs.items()
            if any(excess > 0 for excess in self._limits.excess(cost, None).values())
        }
        return Grid.of(costs, self._how.trials, beyond)

    def _seed(self, seed: int) -> int:
        """Go on differently after a restart, and beside others: else all would ask for the same."""
        parts = [seed, len(self._trials()), os.getpid() if self._shared else 0]
        return int(np.random.SeedSequence(parts).generate_state(1)[0])

    def run(self) -> list[Point]:
        """Try candidates until the study has enough; return every one that was judged."""
        self._queue_seeds()
        if not self._shared:
            for trial in self._trials(TrialState.RUNNING):
                self._retire(trial)
        if self._how.sampler is Sampler.BORT:
            log.info("search: W on a grid of %d shapes", len(self._grid.shapes))
        while not (why := self._over()):
            if self._shared:
                self._retire_stopped()
            if self._shared and self._enough_under_way():
                time.sleep(POLL_S)
            else:
                self._one_trial()
        log.info("search: over, %s", why)
        return self.points()

    def points(self) -> list[Point]:
        """Return what was judged, by any worker, each candidate once."""
        for trial in self._trials(TrialState.COMPLETE):
            if trial.number not in self._read and POINT in trial.user_attrs:
                self._read[trial.number] = replace(_point_of(trial), trial=trial.number)
        latest_first = sorted(self._read.values(), key=lambda p: -p.trial)
        return sorted({p.candidate: p for p in latest_first}.values(), key=lambda p: p.trial)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    # Trials of other limits

    def adopt(self, relatives: Iterable[optuna.Study]) -> None:
        """Take over what was judged under other limits, and judge it by these.

        A candidate that is asked no more counts as it is. Another one is queued, and goes on from where
        it ended.
        """
        known = {p.candidate for p in self.points()}
        known |= {begun.candidate for t in self._trials() if (begun := _begun(t))}
        found: dict[Candidate, tuple[FrozenTrial, Point]] = {}
        for trial in (t for study in relatives for t in _judged(study)):
            point = _point_of(trial)
            best = found.get(point.candidate)
            if point.candidate not in known and (best is None or len(best[1].f1) < len(point.f1)):
                found[point.candidate] = trial, point
        points = [*self.points(), *(point for _, point in found.values())]
        for trial, point in found.values():
            self._take_over(trial, point, [p for p in points if p is not point])
        if found:
            log.info("search: %d candidates were judged under other limits", len(found))

    def _take_over(self, trial: FrozenTrial, point: Point, others: Sequence[Point]) -> None:
        seen = _POINT.dump_python(point, mode="json")
        if trials.is_unfinished(point, others, self._limits, self._rungs, self._how.promote):
            self._study.enqueue_trial(trial.params, {BEGUN: seen})
            return
        f1 = trial.values[0] if point.best_f1 is None else point.best_f1
        again = create_trial(
            values=trial.values,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={POINT: seen},
            constraints=self._limits.excess(point.cost, f1),
        )
        again.datetime_start = trial.datetime_start  # its minutes count
        again.datetime_complete = trial.datetime_complete
        self._study.add_trial(again)

    # When to stop

    def _over(self) -> str | None:
        """Return why the search has come to its end; None: it has not."""
        points = self.points()
        reasons = {
            f"{len(points)} candidates tried": (
                len(points) >= self._how.trials and not self._are_begun()
            ),
            "every candidate tried": len(points) >= self._space.size,
            "the time budget is used up": self._spent_min() >= (self._how.time_budget_min or 1e9),
            "the sampler finds nothing new": self._known_in_a_row >= PATIENCE,
            "even the smallest candidate is too large or too slow": self._hopeless(points),
        }
        return next((reason for reason, true in reasons.items() if true), self._enough())

    def _are_begun(self) -> bool:
        """Return whether candidates wait that ended too early for these limits."""
        return any(BEGUN in trial.user_attrs for trial in self._trials(TrialState.WAITING))

    def _spent_min(self) -> float:
        """Return the minutes that trials took, of all workers together.

        One that was given up counts as the longest that was judged at most: between its worker's death and
        that, nobody worked on it.
        """
        judged = [
            t.duration.total_seconds() for t in self._trials(TrialState.COMPLETE) if t.duration
        ]
        failed = [t.duration.total_seconds() for t in self._trials(TrialState.FAIL) if t.duration]
        longest = max(judged, default=0.0)
        return (sum(judged) + sum(min(span, longest) for span in failed)) / 60

    def _hopeless(self, points: list[Point]) -> bool:
        """Return whether even the smallest candidate misses a limit."""
        smallest = next((p for p in points if p.candidate == self._space.smallest), None)
        if smallest is None:
            return False
        excess = self._limits.excess(smallest.cost, None)
        return excess.get("max_size_mb", 0) > 0 or excess.get("max_p95_ms", 0) > HOPELESS

    def _enough_under_way(self) -> bool:
        """Return whether the running trials suffice; then this worker waits, in case one dies."""
        running = len(self._trials(TrialState.RUNNING))
        waiting = len(self._trials(TrialState.WAITING))
        return not waiting and len(self.points()) + running >= self._how.trials

    # Trials that nobody works on

    def _queue_seeds(self) -> None:
        if "seeds" in self._study.user_attrs:
            return
        found = seeds(self._space)
        for name, candidate in found.items():
            parameters = parameters_of(candidate, self._space)
            self._study.enqueue_trial(parameters, {"seed": name}, skip_if_exists=True)
        self._study.set_user_attr("seeds", list(found))

    def _retire_stopped(self) -> None:
        running = {t.number: t for t in self._trials(TrialState.RUNNING)}
        heartbeats = {
            number: trial.user_attrs.get("heartbeat", 0) for number, trial in running.items()
        }
        for number in self._watch.stopped(heartbeats, time.monotonic()):
            log.warning("trial %d: its worker is gone", number)
            self._retire(running[number])

    def _retire(self, trial: FrozenTrial, *, blame: bool = True) -> None:
        """Fail a trial and queue it again, at most MAX_TRIES times if it is to `blame`."""
        wanted = trial.params or trial.system_attrs.get("fixed_params")
        begun = {key: value for key, value in trial.user_attrs.items() if key == BEGUN}
        tries = trial.user_attrs.get("tries", 0) + blame
        try:
            self._study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):
            return  # it came to an end, or another worker was faster
        if wanted and tries < MAX_TRIES:
            again = {"tries": tries, "retry_of": trial.number}
            self._study.enqueue_trial(wanted, again | begun)
        elif wanted:
            log.error("trial %d: %d workers died of %s; given up", trial.number, tries, wanted)

    # One trial

    def _one_trial(self) -> None:
        trial = self._study.ask()
        try:
            if self._shared:
                with workers.sending_heartbeats(
                    partial(trial.set_user_attr, "heartbeat"), self._pulse
                ):
                    self._judge_and_tell(trial)
            else:
                self._judge_and_tell(trial)
        except UpdateFinishedTrialError:
            log.warning("trial %d: was considered dead and given to another worker", trial.number)
        except BaseException as exc:
            with suppress(*STORAGE_ERRORS):
                blame = isinstance(exc, Exception)  # otherwise the worker was stopped
                self._retire(self._trials()[trial.number], blame=blame)
            raise

    def _judge_and_tell(self, trial: Trial) -> None:
        candidate = suggest(trial, self._space)
        other = self._elsewhere(trial)  # before `points`: the other trial may finish meanwhile
        before = self.points()
        known = next((p for p in before if p.candidate == candidate), None)
        self._known_in_a_row = self._known_in_a_row + 1 if known else 0
        if known:
            trial.set_user_attr("same_as", known.trial)
            self._tell(trial, known, before)
        elif other is not None:
            trial.set_user_attr("same_as", other)
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            point = self._judge(trial.number, candidate, _begun(trial))
            trial.set_user_attr(POINT, _POINT.dump_python(point, mode="json"))
            self._tell(trial, point, before)
            self._said(point, self.points())

    def _elsewhere(self, trial: Trial) -> int | None:
        """Return the trial in which another worker is evaluating the same candidate.

        Of two such trials the earlier one goes on. So this waits until all earlier trials have chosen their
        candidate, but not for silent ones, whose worker may be dead.
        """
        if not self._shared:
            return None
        watch = Watch(self._pulse.grace_s)
        while True:
            running = self._trials(TrialState.RUNNING)
            others = [t for t in running if t.number < trial.number]
            same = next((t.number for t in others if t.params == trial.params), None)
            choosing = {
                t.number: t.user_attrs.get("heartbeat", 0)
                for t in others
                if len(t.params) < len(trial.params)
            }
            silent = watch.stopped(choosing, time.monotonic())
            if same is not None or len(silent) == len(choosing):
                return same
            time.sleep(LOOK_EVERY_S)

    def _judge(self, number: int, candidate: Candidate, begun: Point | None) -> Point:
        """Evaluate the candidate: its cost, then rung by rung while it is promising.

        `begun`: what is known of it already.
        """
        began = time.monotonic()
        point = begun or Point(number, candidate, self._evaluators.cost(candidate))
        point = replace(point, trial=number)
        for n in self._rungs:
            if self._limits.reason(point):
                break
            if n in point.f1:
                continue
            if point.f1 and not self._goes_on(point):
                break
            f1 = self._evaluators.f1(candidate, n)
            point = replace(point, f1=point.f1 | {n: f1})
        return replace(point, seconds=round(point.seconds + time.monotonic() - began, 3))

    def _goes_on(self, point: Point) -> bool:
        return trials.goes_on(point, self.points(), self._limits, self._how.promote)

    def _tell(self, trial: Trial, point: Point, before: Sequence[Point]) -> None:
        f1 = point.best_f1
        if f1 is None:
            f1 = trials.guess_f1(point.candidate, before, otherwise=self._limits.min_f1 or 0.0)
        for name, excess in self._limits.excess(point.cost, f1).items():
            trial.set_constraint(name, excess)
        values: list[Any] = [f1, point.cost.p95_ms, point.cost.size_bytes]
        self._study.tell(trial, values)
