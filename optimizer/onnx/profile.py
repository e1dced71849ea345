"""Latency of a model as served: one window at a time, one thread, every length bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gateway.backends.embedded import open_session, run, run_labels
from gateway.backends.protocol import LABEL_OUTPUTS
from gateway.catalog import host
from gateway.catalog.schema import Cell, Host, Precision, Profile
from gateway.qa.codec import LENGTH_BUCKETS
from optimizer.onnx.export import random_windows

RUNS = 60
WARM_UP = 5
VOCABULARY = 100  # ids to draw from; the time does not depend on them


def profile(
    model: Path,
    runs: int = RUNS,
    buckets: Sequence[int] = LENGTH_BUCKETS,
    precision: Precision = Precision.INT8_DYNAMIC,
) -> Profile:
    """Return p50, p95 and p99 per bucket on this host, in-process: one core, FP16 the GPU if any."""
    session = open_session(model, precision=precision)
    ask = [_question(session, bucket) for bucket in buckets]
    for _ in range(WARM_UP):
        for each in ask:
            each()
    # Interleaved: what else the host does for a while disturbs all lengths alike.
    times_ms = [[_time_ms(each) for each in ask] for _ in range(runs)]
    return Profile(here(), 1, _cells(buckets, np.array(times_ms)))


def here() -> Host:
    """Return this host with the engine that evaluates and profiles."""
    return host.describe(f"onnxruntime {ort.__version__}")


def _question(session: ort.InferenceSession, bucket: int) -> Callable[[], object]:
    windows = random_windows(1, bucket, VOCABULARY)
    of_labels = [output.name for output in session.get_outputs()] == list(LABEL_OUTPUTS)
    return partial(run_labels if of_labels else run, session, windows)


def _cells(buckets: Sequence[int], times_ms: np.ndarray) -> tuple[Cell, ...]:  # (runs, buckets)
    """Return the quantiles by length, shortest first, each capped at those of longer lengths."""
    measured = np.quantile(times_ms, (0.5, 0.95, 0.99), axis=0)  # (3, buckets)
    rising = np.minimum.accumulate(measured[:, ::-1], axis=1)[:, ::-1].round(3).tolist()
    p50_ms, p95_ms, p99_ms = rising
    return tuple(map(Cell, buckets, [1] * len(buckets), p50_ms, p95_ms, p99_ms))


def _time_ms(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1e3
