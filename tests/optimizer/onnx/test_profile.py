"""Latency profiles: every length in turns, times that rise with length."""

from __future__ import annotations

import numpy as np

from optimizer.onnx import profile

BUCKETS = (64, 128, 256)
RUNS = 100


def test_a_disturbed_length_takes_no_longer_than_a_longer_one() -> None:
    times_ms = np.tile([2.0, 9.0, 8.0], (RUNS, 1))
    times_ms[-10:, 0] = 30.0  # a tenth of the shortest texts' runs
    shortest, disturbed, longest = profile._cells(BUCKETS, times_ms)
    assert (shortest.p50_ms, shortest.p95_ms) == (2.0, 8.0)
    assert (disturbed.p50_ms, disturbed.p99_ms) == (8.0, 8.0)
    assert (longest.bucket, longest.batch, longest.p50_ms) == (256, 1, 8.0)
