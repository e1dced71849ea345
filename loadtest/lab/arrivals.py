"""When requests arrive: point processes with a given mean rate, as arrays of times in ms.

Every process has the mean `rate` over its length, so that "load" means the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
Process = Callable[[float, float, np.random.Generator], Times]  # rate per s, seconds, randomness

MMPP_HIGH, MMPP_LOW = 2.0, 0.5  # of the mean rate, in the two states
MMPP_DWELL_S = 4.0  # mean stay in the high state; the low one's follows from the mean
RAMP_DEPTH = 0.8  # of the mean: the rate goes from 0.2 to 1.8 of it and back
FLASH_FACTOR = 4.0  # rate in the crowd, over the rate before it
FLASH_BEGIN, FLASH_END = 0.4, 0.5  # of the length


def gamma(cv: float) -> Process:
    """Return the renewal process whose gaps are Gamma with this coefficient of variation.

    1: Poisson. More: clumps and silences.
    """
    shape = 1.0 / cv**2

    def draw(rate: float, seconds: float, rng: np.random.Generator) -> Times:
        expected = rate * seconds
        times = np.empty(0)
        last = 0.0
        while last < seconds:
            gaps = rng.gamma(shape, 1.0 / (rate * shape), max(64, int(expected)))
            more = last + np.cumsum(gaps)
            times, last = np.concatenate([times, more]), float(more[-1])
        return _ms(times, seconds)

    return draw


def mmpp(rate: float, seconds: float, rng: np.random.Generator) -> Times:
    """Return a Poisson process whose rate switches between two states at random times."""
    low_dwell_s = MMPP_DWELL_S * (MMPP_HIGH - 1) / (1 - MMPP_LOW)  # so that the mean is `rate`
    share_high = MMPP_DWELL_S / (MMPP_DWELL_S + low_dwell_s)
    high = bool(rng.random() < share_high)
    edges, rates, at = [0.0], [], 0.0
    while at < seconds:
        at += rng.exponential(MMPP_DWELL_S if high else low_dwell_s)
        edges.append(min(at, seconds))
        rates.append(rate * (MMPP_HIGH if high else MMPP_LOW))
        high = not high
    pieces = [
        rng.uniform(begin, end, rng.poisson(r * (end - begin)))
        for begin, end, r in zip(edges, edges[1:], rates, strict=False)
    ]
    return _ms(np.sort(np.concatenate(pieces)), seconds)


def ramp(rate: float, seconds: float, rng: np.random.Generator) -> Times:
    """Return one day in small: the rate follows a cosine from its valley over its peak back."""

    def at(t: Times) -> Times:
        return 1 - RAMP_DEPTH * np.cos(2 * np.pi * t / seconds)

    return _thinned(rate, 1 + RAMP_DEPTH, at, seconds, rng)


def flash(rate: float, seconds: float, rng: np.random.Generator) -> Times:
    """Return a calm process with a crowd of FLASH_FACTOR times the rate in a tenth of its length."""
    base = 1 / (1 + (FLASH_FACTOR - 1) * (FLASH_END - FLASH_BEGIN))

    def at(t: Times) -> Times:
        crowd = (t >= FLASH_BEGIN * seconds) & (t < FLASH_END * seconds)
        return np.where(crowd, base * FLASH_FACTOR, base)

    return _thinned(rate, base * FLASH_FACTOR, at, seconds, rng)


def _thinned(
    rate: float,
    peak: float,
    relative: Callable[[Times], Times],
    seconds: float,
    rng: np.random.Generator,
) -> Times:
    """Return an inhomogeneous Poisson process. Source: Lewis and Shedler 1979, thinning."""
    candidates = np.sort(rng.uniform(0, seconds, rng.poisson(rate * peak * seconds)))
    kept = rng.random(len(candidates)) < relative(candidates) / peak
    return _ms(candidates[kept], seconds)


def _ms(times_s: Times, seconds: float) -> Times:
    return times_s[times_s < seconds] * 1e3


PROCESSES: Mapping[str, Process] = {
    "poisson": gamma(1),
    "gamma2": gamma(2),
    "gamma4": gamma(4),
    "gamma8": gamma(8),
    "mmpp": mmpp,
    "ramp": ramp,
    "flash": flash,
}
