"""Pauses of a test process do not count, and all other time does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pauses import LONGEST_S, SLOW, Clock

PAUSED = """
import os, signal, subprocess, time
from tests import pauses

real = time.monotonic
pauses.leave_out()
began, shown = real(), time.monotonic()
me = os.getpid()
goes_on = subprocess.Popen(["sh", "-c", f"for i in 1 2 3 4 5 6 7 8 9; do sleep 1.5; kill -CONT {me}; done"])
os.kill(me, signal.SIGSTOP)
goes_on.kill()
time.sleep(0.5)
print(real() - began, time.monotonic() - shown)
"""


def test_time_in_which_nobody_ticked_does_not_pass() -> None:
    """After a pause the time goes on from where it stood, and it never stands still."""
    reads = iter((10.0, 10.0, 10.01, 13.0, 13.01, 13.02, 13.03))
    clock = Clock(lambda: next(reads))
    shown = [clock.now_s() for _ in range(4)]
    clock.tick()
    shown.append(clock.now_s())
    late = 10 + LONGEST_S + SLOW * (3.0 - LONGEST_S)
    assert shown == pytest.approx([10, 10.01, late, late + 1e-5, late + 2e-5 + 0.01], abs=1e-9)
    assert shown == sorted(set(shown))


def test_a_process_that_is_stopped_misses_the_time_of_its_stop() -> None:
    """A sleep lasts as long as it should have lasted without the stop."""
    done = subprocess.run(
        [sys.executable, "-c", PAUSED],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    real_s, shown_s = map(float, done.stdout.split())
    assert 0.5 <= shown_s < real_s - 1
