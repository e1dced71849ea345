"""Pauses of a test process do not count, and all other time does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pauses import LONGEST_S, Clock

PAUSED = """
import os, signal, subprocess, time
from tests import pauses

real = time.monotonic
pauses.leave_out()
began, shown = real(), time.monotonic()
me = os.getpid()
subprocess.run(["sh", "-c", f"(sleep .1; kill -STOP {me}; sleep 1.5; kill -CONT {me}) >/dev/null 2>&1 &"], check=True)
time.sleep(0.5)
print(real() - began, time.monotonic() - shown)
"""


def test_time_in_which_nobody_ticked_does_not_pass() -> None:
    """After a pause the time goes on from where it stood."""
    reads = iter((10.0, 10.01, 13.0, 13.0, 13.01))
    clock = Clock(lambda: next(reads))
    assert [clock.now_s() for _ in range(3)] == pytest.approx(
        [10.01, 10 + LONGEST_S, 10.01 + LONGEST_S]
    )


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
