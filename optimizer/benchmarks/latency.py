"""Latencies that may be divided by each other: all models in one process, one after the other, round by round.

A profile is of its own minute; whatever else runs on the host then moves it. Here it moves all alike,
unless the host is so busy that long runs never go undisturbed: CPU time beside wall time shows that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gateway.backends.embedded import open_session, run
from gateway.domain import Windows
from gateway.qa.codec import bucket_of
from optimizer.benchmarks.results import Timing
from optimizer.onnx import export
from optimizer.onnx.profile import VOCABULARY
from optimizer.study.progress import Progress

LENGTHS = (128, 177, 384)  # tokens; SQuAD's mean is 177, which is served in the bucket of 192
WARM_UP = 3


def windows_of(n_tokens: int) -> Windows:
    """Return one window of so many random tokens, padded to its length bucket as when served."""
    windows = export.random_windows(1, bucket_of(n_tokens), VOCABULARY)
    for values in (windows.input_ids, windows.attention_mask, windows.token_type_ids):
        values[:, n_tokens:] = 0
    windows.is_context[:, n_tokens:] = False
    return windows


def interleaved(
    models: Mapping[str, Path], rounds: int, lengths: tuple[int, ...] = LENGTHS
) -> tuple[Timing, ...]:
    """Return minima and medians of every model at every length, in ms, in this one thread."""
    sessions = {name: open_session(path) for name, path in models.items()}
    asked = {n: windows_of(n) for n in lengths}
    cells = [(name, n) for n in lengths for name in models]
    times_ms: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    cpu_ms: dict[tuple[str, int], float] = dict.fromkeys(cells, float("inf"))
    order, progress = random.Random(0), Progress("latency", rounds + WARM_UP)
    for i in range(-WARM_UP, rounds):
        order.shuffle(cells)
        for name, n in cells:
            began, cpu_began = time.perf_counter(), time.thread_time()
            run(sessions[name], asked[n])
            took, cpu = time.perf_counter() - began, time.thread_time() - cpu_began
            if i >= 0:
                times_ms[name, n].append(took * 1e3)
                cpu_ms[name, n] = min(cpu_ms[name, n], cpu * 1e3)
        progress.step()
    return tuple(
        Timing(
            model=name,
            tokens=n,
            bucket=bucket_of(n),
            min_ms=round(min(found), 3),
            median_ms=round(float(np.median(found)), 3),
            cpu_ms=round(cpu_ms[name, n], 3),
        )
        for (name, n), found in sorted(times_ms.items(), key=lambda cell: cell[0][1])
    )
