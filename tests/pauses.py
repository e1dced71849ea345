"""Clocks of a test process that leave out pauses: time in which the process could not run has not passed.

A host with many guests stops one of them for a second now and then. Between two lines of a test, that is enough for
an answer to be late or a circuit breaker to be tried again: the test fails, and nothing is wrong in the code.
Programs that a test starts have clocks of their own; what is asked of them is asked with room for a pause.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import SupportsIndex

TICK_S = 0.005  # how often a process that can run is seen to run
LONGEST_S = 0.02  # no more passes between two ticks
OF_THE_HOST = {"monotonic": time.monotonic, "perf_counter": time.perf_counter}  # with pauses


class Clock:
    """The time of `read`, s, as far as `tick` or `now_s` was called every `LONGEST_S`."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        now_s = read()
        # One value: a reader in another thread sees both anew, or neither.
        self._last = now_s, now_s

    def now_s(self) -> float:
        read_s, shown_s = self._last
        passed_s = self._read() - read_s
        return shown_s + passed_s if passed_s < LONGEST_S else self.tick()

    def tick(self) -> float:
        read_s, shown_s = self._last
        now_s = self._read()
        shown_s += min(now_s - read_s, LONGEST_S)
        self._last = now_s, shown_s
        return shown_s


def leave_out() -> None:
    """Let `time.monotonic`, `time.perf_counter` and `time.sleep` of this process leave out its pauses."""
    monotonic, perf_counter = (Clock(read) for read in OF_THE_HOST.values())
    sleep = time.sleep

    def tick() -> None:
        while True:
            sleep(TICK_S)
            monotonic.tick()
            perf_counter.tick()

    def sleep_on(seconds: SupportsIndex | float, /) -> None:
        ends_s = monotonic.now_s() + float(seconds)
        sleep(seconds)
        while (left_s := ends_s - monotonic.now_s()) > 0:
            sleep(left_s)

    time.monotonic, time.perf_counter, time.sleep = monotonic.now_s, perf_counter.now_s, sleep_on

    def start() -> None:
        threading.Thread(target=tick, name="pauses", daemon=True).start()

    start()
    os.register_at_fork(after_in_child=start)  # a forked process has no thread of its parent's
