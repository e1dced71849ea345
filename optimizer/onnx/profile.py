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
    cells = tuple(_measure(session, bucket, runs) for bucket in buckets)
    return Profile(here(), 1, cells)


def here() -> Host:
    """Return this host with the engine that evaluates and profiles."""
    return host.describe(f"onnxruntime {ort.__version__}")


def _measure(session: ort.InferenceSession, bucket: int, runs: int) -> Cell:
    windows = random_windows(1, bucket, VOCABULARY)
    of_labels = [output.name for output in session.get_outputs()] == list(LABEL_OUTPUTS)
    ask = partial(run_labels if of_labels else run, session, windows)
    for _ in range(WARM_UP):
        ask()
    times_ms = [_time_ms(ask) for _ in range(runs)]
    p50, p95, p99 = np.quantile(times_ms, (0.5, 0.95, 0.99))
    return Cell(bucket, 1, round(float(p50), 3), round(float(p95), 3), round(float(p99), 3))


def _time_ms(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1e3
