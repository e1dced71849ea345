"""Latencies that search workers ask cost workers for, through the storage of trials.

A request is a trial of an Optuna study of its own. A search worker has one request at a time, and cost
workers take the earliest, so search workers take turns. Whoever waits also watches: the request of a cost
worker that went silent fails, and is made again. What was measured once is never asked for again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from optimizer.search.storage import (
    HOST,
    STORAGE_ERRORS,
    SearchError,
    opened_requests,
    same_host,
)
from optimizer.study import workers
from optimizer.study.workers import Pulse, Watch

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5  # between two looks at the queue
MAX_TRIES = 3  # cost workers that may fail at a request

KEY, WANTED, FOUND, FAULT = "key", "wanted", "found", "fault"  # attributes of a request
HEARTBEAT = "heartbeat"

NOBODY = (
    "waiting: no cost worker is running; start one on a host that will serve: bertier-optimize costs"
    " --study FILE --storage URL"
)


@contextmanager
def opened(url: str, study: str, pulse: Pulse = Pulse()) -> Iterator[CostQueue]:  # noqa: B008 - frozen
    """Join the queue of a study. Raises: SearchError, also when the database is lost later."""
    with opened_requests(url, f"{study}-costs") as requests:
        yield CostQueue(requests, pulse)


@dataclass(frozen=True)
class CostQueue:
    """The requests of all search workers of a study."""

    requests: optuna.Study
    pulse: Pulse

    # A search worker

    @cached_property
    def host(self) -> str:
        """The kind of host that cost workers run on; waits for the first one."""
        said_s = -self.pulse.grace_s
        while (found := self.requests.user_attrs.get(HOST)) is None:
            if time.monotonic() - said_s > self.pulse.grace_s:
                log.warning(NOBODY)
                said_s = time.monotonic()
            time.sleep(LOOK_EVERY_S)
        return str(found)

    def ask(self, key: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return what a cost worker measured; equal keys are one request. Waits as long as it takes.

        Raises: SearchError when several cost workers failed at it.
        """
        failed_before = len(_failed(self._of(key)))
        watch, taken_s = Watch(self.pulse.grace_s), time.monotonic()
        while True:
            found = self._of(key)
            if complete := [t for t in found if t.state is TrialState.COMPLETE]:
                measured: dict[str, Any] = complete[0].user_attrs[FOUND]
                return measured
            failed = _failed(found)
            if len(failed) - failed_before >= MAX_TRIES:
                raise _refused(failed[-1])
            if len(failed) == len(found):
                self.requests.enqueue_trial({}, {KEY: key, WANTED: wanted})
            if self._is_any_measured(watch):
                taken_s = time.monotonic()
            elif time.monotonic() - taken_s > self.pulse.grace_s:
                log.warning(NOBODY)
                taken_s = time.monotonic()
            time.sleep(LOOK_EVERY_S)

    def _of(self, key: str) -> list[FrozenTrial]:
        found = self.requests.get_trials(deepcopy=False)
        return [t for t in found if t.user_attrs.get(KEY) == key]

    def _is_any_measured(self, watch: Watch) -> bool:
        """Return whether a cost worker is at work; fail the requests of those that went silent."""
        running = self.requests.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        heartbeats = {t.number: t.user_attrs.get(HEARTBEAT, 0) for t in running}
        stopped = watch.stopped(heartbeats, time.monotonic())
        for number in stopped:
            log.warning("request %d: its cost worker is gone", number)
            self._fail(number)
        return len(running) > len(stopped)

    # A cost worker

    def join(self, host: str) -> None:
        """Raises: SearchError when the others run on another kind of host."""
        same_host(self.requests, host)

    def answer_next(self, measure: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        """Measure the earliest request; return whether there was one."""
        if not self.requests.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return False
        request = self.requests.ask()
        if KEY not in request.user_attrs:  # another cost worker was faster: this one is new
            self._fail(request.number)
            return False
        try:
            with workers.sending_heartbeats(partial(request.set_user_attr, HEARTBEAT), self.pulse):
                self._answer(request, measure)
        except UpdateFinishedTrialError:
            log.warning("request %d: this worker was considered dead", request.number)
        except BaseException as exc:
            with suppress(*STORAGE_ERRORS, UpdateFinishedTrialError):
                request.set_user_attr(FAULT, str(exc) or type(exc).__name__)
                self._fail(request.number)
            raise
        return True

    def _answer(self, request: Trial, measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        attributes = request.user_attrs
        same = [t for t in self._of(attributes[KEY]) if t.state is TrialState.COMPLETE]
        found = same[0].user_attrs[FOUND] if same else measure(attributes[WANTED])
        request.set_user_attr(FOUND, found)
        self.requests.tell(request, found["p95_ms"])
        log.info("request %d: %.1f ms", request.number, found["p95_ms"])

    def _fail(self, number: int) -> None:
        with suppress(ValueError, UpdateFinishedTrialError):  # it came to an end meanwhile
            self.requests.tell(number, state=TrialState.FAIL)


def _failed(found: list[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in found if t.state is TrialState.FAIL]


def _refused(last: FrozenTrial) -> SearchError:
    fault = last.user_attrs.get(FAULT, "it was killed, or lost its connection")
    return SearchError(
        f"request {last.number}: {MAX_TRIES} cost workers failed to measure its latency, the last because:"
        f" {fault}; repair those hosts, then run the same command again: finished trials are kept"
    )
