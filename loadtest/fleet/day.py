"""A day's traffic, and the slices of it that are simulated.

The rate follows a cosine: the peak is at PEAK_HOUR, the valley twelve hours later at (1 - DEPTH) / (1 + DEPTH) of it.
A few times a day a crowd comes, CROWD times the rate for some minutes. A day of a large fleet has billions of
requests, so that slices stand for it: one for every few hours, and one with a crowd, each as long as the
number of requests allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi

import numpy as np

from loadtest.lab import traces
from loadtest.lab.arrivals import Times
from loadtest.lab.mixes import Mix
from loadtest.lab.recording import Recording
from loadtest.lab.traces import Trace

HOURS, EVERY_H = 24, 4
PEAK_HOUR, DEPTH = 16.0, 0.8
CROWD, CROWD_S = 3.0, 300.0  # times the rate; seconds that each lasts
LONGEST_S, CROWD_SLICE_S = 60.0, 12.0
WARM_UP = 0.25  # of a slice: not counted, while the fleet fills


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time with one rate."""

    seconds: float
    rate: float


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the day that is simulated, and the seconds of the day that it stands for."""

    name: str
    hour: float
    load: float  # 1: a host answers everything by the dearest variant
    stands_for_s: float
    segments: tuple[Segment, ...]
    counted_ms: tuple[float, float]  # requests that arrive then are counted

    @property
    def seconds(self) -> float:
        return sum(s.seconds for s in self.segments)

    def trace(self, mix: Mix, recording: Recording, seed: int) -> Trace:
        times = arrivals(self.segments, np.random.default_rng([seed, 1]))
        return traces.at_times(times, mix, recording, seed)


def relative(hour: float) -> float:
    """Return the rate at an hour, over that of the peak."""
    return (1 + DEPTH * cos(2 * pi * (hour - PEAK_HOUR) / HOURS)) / (1 + DEPTH)


def steady(
    name: str,
    load: float,
    capacity_per_s: float,
    requests: int,
    hour: float = PEAK_HOUR,
    every_h: int = EVERY_H,
) -> Slice:
    """Return a slice of steady load, at most as many requests long."""
    rate = load * capacity_per_s
    seconds = min(LONGEST_S, requests / rate)
    counted = (WARM_UP * seconds * 1e3, seconds * 1e3)
    return Slice(name, hour, load, every_h * 3600.0, (Segment(seconds, rate),), counted)


def hours(
    peak_load: float, capacity_per_s: float, requests: int, every_h: int = EVERY_H
) -> list[Slice]:
    """Return the day's steady slices, the peak hour's among them; their mean load is the day's."""
    return [
        steady(f"{h} h", peak_load * relative(h), capacity_per_s, requests, h, every_h)
        for h in range(0, HOURS, every_h)
    ]


def crowd(peak_load: float, capacity_per_s: float, requests: int, a_day: int) -> Slice:
    """Return the slice with a crowd in it, at the rate of the day's mean; the crowd alone stands for its minutes.

    At most as many requests long.
    """
    load = peak_load / (1 + DEPTH)
    calm, busy = load * capacity_per_s, CROWD * load * capacity_per_s
    quarter_s = min(CROWD_SLICE_S, requests / ((calm + busy) / 2)) / 4
    segments = (Segment(quarter_s, calm), Segment(2 * quarter_s, busy), Segment(quarter_s, calm))
    counted = (quarter_s * 1e3, 3 * quarter_s * 1e3)
    return Slice("crowd", PEAK_HOUR, CROWD * load, a_day * CROWD_S, segments, counted)


def arrivals(segments: Sequence[Segment], rng: np.random.Generator) -> Times:
    """Return a Poisson process whose rate is piecewise constant; ms."""
    parts, at = [], 0.0
    for segment in segments:
        n = rng.poisson(segment.rate * segment.seconds)
        parts.append(np.sort(rng.uniform(at, at + segment.seconds, n)))
        at += segment.seconds
    return np.concatenate(parts) * 1e3
