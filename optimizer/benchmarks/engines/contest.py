"""Engines beside each other on one checkpoint: what an answer costs, and what it is worth.

Latency is processor time of one thread: on a host that does other work a clock measures the waiting,
too. Engines take turns within a round, so what slows the host slows all of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gateway.domain import Floats, Logits
from gateway.qa import codec
from gateway.qa.codec import Reading, SpanEncoder
from optimizer.benchmarks import pairs
from optimizer.benchmarks.engines.openers import Ask, Feed, Opened
from optimizer.benchmarks.results import Pair
from optimizer.data import evaluate, question_sets
from optimizer.data.question_sets import DataError, Example, Split
from optimizer.evaluation import decoding
from optimizer.onnx import export
from optimizer.onnx.profile import VOCABULARY
from optimizer.search import scoring
from optimizer.study.progress import Progress

LEAST_ROUNDS = 5
RUNS = 2  # timed, in each round, after one that finds its weights in the caches again
CALIBRATION = 200  # questions


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one window, in ms; `cpu` is processor time, the others what a clock shows."""

    tokens: int
    cpu_min_ms: float
    cpu_median_ms: float
    min_ms: float
    median_ms: float
    speed_up: float  # over the first engine, by minima of processor time
    speed_up_median: float  # likewise, by medians


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of an engine."""

    size_bytes: int
    batch_variance: float  # largest change of a logit by other windows in its batch
    latency: tuple[Latency, ...]
    quality: Pair | None  # beside the first engine; None: no questions


@dataclass(frozen=True, slots=True)
class Task:
    """What engines are asked; no `source`, no questions."""

    encoder: SpanEncoder
    vocabulary: int
    source: str | None
    examples: Sequence[Example]
    tokens: Sequence[int]
    seconds: float  # of each length


def run(engines: Mapping[str, Opened], task: Task) -> dict[str, Result]:
    """Measure all engines; the first is what the others are held against."""
    times = [latencies(engines, tokens, task.seconds) for tokens in task.tokens]
    pairs = quality(engines, task.encoder, task.source, task.examples) if task.source else {}
    return {
        name: Result(
            engine.size_bytes,
            export.batch_variance(engine.ask, task.vocabulary),
            tuple(found[name] for found in times),
            pairs.get(name),
        )
        for name, engine in engines.items()
    }


def latencies(engines: Mapping[str, Opened], tokens: int, seconds: float) -> dict[str, Latency]:
    """Return each engine's latency at a length; the first is what the others are held against."""
    feed = export.feeds(export.random_windows(1, tokens, VOCABULARY))[0]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    turns, order, over_s = list(engines), random.Random(0), time.monotonic() + seconds
    while time.monotonic() < over_s or len(found[turns[0]]) < LEAST_ROUNDS * RUNS:
        order.shuffle(turns)
        for name in turns:
            engines[name].ask(feed)
            found[name] += [_times_ms(engines[name].ask, feed) for _ in range(RUNS)]
    times = {name: np.array(pairs) for name, pairs in found.items()}  # (runs, cpu and clock)
    first = times[next(iter(engines))][:, 0]
    return {name: _latency(tokens, values, first) for name, values in times.items()}


def _times_ms(ask: Ask, feed: Feed) -> tuple[float, float]:
    cpu, clock = time.process_time(), time.perf_counter()
    ask(feed)
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - clock) * 1e3


def _latency(tokens: int, times: Floats, first: Floats) -> Latency:  # (runs, 2), (runs,)
    (cpu_min, clock_min), (cpu_median, clock_median) = times.min(axis=0), np.median(times, axis=0)
    values = (cpu_min, cpu_median, clock_min, clock_median)
    ratios = (first.min() / cpu_min, np.median(first) / cpu_median)
    return Latency(tokens, *(round(float(v), 3) for v in (*values, *ratios)))


def parts(source: str, limit: int) -> tuple[list[Example], list[Example]]:
    """Return questions to calibrate on (of the training split) and to score (of the search split).

    Each in an order that has nothing to do with articles. Raises: DataError when a split is empty.
    """
    found: dict[Split, list[Example]] = {split: [] for split in Split}
    for example in question_sets.load(source):
        found[question_sets.split_of(example, by_article=True, certifies=True)].append(example)
    if not found[Split.TRAIN] or not found[Split.SEARCH]:
        raise DataError(f"{source}: too few articles for a training and a search split")
    calibration = scoring.sample(found[Split.TRAIN])[:CALIBRATION]
    return calibration, scoring.sample(found[Split.SEARCH])[:limit]


def quality(
    engines: Mapping[str, Opened], encoder: SpanEncoder, source: str, examples: Sequence[Example]
) -> dict[str, Pair]:
    """Return each engine beside the first, under thresholds of their own fitted on these questions."""
    readings = {name: _read(name, e.ask, encoder, examples) for name, e in engines.items()}
    answers = {
        name: evaluate.answers_of(said, decoding.fit(examples, said))
        for name, said in readings.items()
    }
    first = next(iter(engines))
    return {
        name: pairs.pair(
            (name, first),
            source,
            examples,
            (answers[name], answers[first]),
            (readings[name], readings[first]),
        )
        for name in engines
    }


def _read(name: str, ask: Ask, encoder: SpanEncoder, examples: Sequence[Example]) -> list[Reading]:
    """Return what an engine says to every question, each window alone."""
    progress, readings = Progress(f"ask {name}", len(examples)), []
    for example in examples:
        question = example.as_question()
        windows = encoder.encode(question)
        rows = [ask(feed) for feed in export.feeds(windows)]
        start, end = (np.concatenate(side) for side in zip(*rows, strict=True))
        readings.append(codec.read(windows, Logits(start, end), question))
        progress.step()
    return readings
