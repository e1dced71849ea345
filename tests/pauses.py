"""A clock of a test process that leaves out pauses: time in which the process could not run has not passed.

A host with many guests stops one of them for a second now and then. Between two lines of a test, that is enough for
an answer to be late or a circuit breaker to be tried again: the test fails, and nothing is wrong in the code.
Time in which C code keeps Python's global lock is left out, too: no test can ask how long that blocks an event loop.
Programs that a test starts have clocks of their own; what is asked of them is asked with room for a pause.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import SupportsIndex

TICK_S = 0.005  # how often a process that can run is seen to run
LONGEST_S = (
    0.02  # what passes between two ticks; of what is beyond, a thousandth: no clock stands still
)
SLOW = 1e-3
OF_THE_HOST = {"monotonic": time.monotonic, "perf_counter": time.perf_counter}  # with pauses


class Clock:
    """The time of `read`, s, as far as `tick` was called every `LONGEST_S`; one thread calls it."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        now_s = read()
        # One value: a reader in another thread sees both anew, or neither.
        self._last = now_s, now_s

    def now_s(self) -> float:
        return self._shown_s(self._read())

    def tick(self) -> None:
        read_s = self._read()
        self._last = read_s, self._shown_s(read_s)

    def _shown_s(self, read_s: float) -> float:
        last_s, shown_s = self._last
        passed_s = read_s - last_s
        if passed_s > LONGEST_S:
            passed_s = LONGEST_S + SLOW * (passed_s - LONGEST_S)
        return shown_s + passed_s


def leave_out() -> None:
    """Let `time.monotonic`, `time.perf_counter` and `time.sleep` of this process leave out its pauses."""
    clock, sleep = Clock(time.monotonic), time.sleep  # one clock, as both are on Linux

    def tick() -> None:
        while True:
            sleep(TICK_S)
            clock.tick()

    def sleep_on(seconds: SupportsIndex | float, /) -> None:
        ends_s = clock.now_s() + float(seconds)
        sleep(seconds)
        while (left_s := ends_s - clock.now_s()) > 0:
            sleep(left_s)

    time.monotonic, time.perf_counter, time.sleep = clock.now_s, clock.now_s, sleep_on

    def start() -> None:
        threading.Thread(target=tick, name="pauses", daemon=True).start()

    start()
    os.register_at_fork(after_in_child=start)  # a forked process has no thread of its parent's
