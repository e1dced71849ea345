"""What a Locust run asks for and was worth. Pure; loadtest.locust.locustfile is what knows Locust.

In Locust's statistics a request that missed its deadline is a failure, so that the failure
share of a class is what its attainment lacks; F1 and floor are averages of entries of their own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from gateway.errors import BertierError

SHAPES = ("steady", "ramp", "spike", "soak")
RAMP_FLOOR, SPIKE_FLOOR, SOAK_RISE = 0.1, 0.25, 0.1
SPIKE_BEGIN, SPIKE_END = 0.4, 0.6


class BadWeights(BertierError):
    """Weights of classes that cannot be read; the message shows the form."""


def users_at(shape: str, at: float, users: int) -> int:
    """Return how many users there are at a share of the run's length, 0 to 1.

    ramp: from a tenth up to all; spike: a quarter, all of them in the middle fifth; soak: all, after
    a slow start; steady: all.
    """
    if shape == "ramp":
        share = RAMP_FLOOR + (1 - RAMP_FLOOR) * at
    elif shape == "spike":
        share = 1.0 if SPIKE_BEGIN <= at < SPIKE_END else SPIKE_FLOOR
    elif shape == "soak":
        share = min(1.0, 0.1 + at / SOAK_RISE)
    else:
        share = 1.0
    return max(1, round(share * users))


def weights(text: str) -> dict[str, float]:
    """Return the weight of each class, `interactive=2,standard=3`. Raises: BadWeights."""
    found = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            found[name] = float(weight)
        except ValueError as exc:
            raise BadWeights(f"{part!r}: give classes as interactive=2,standard=3,batch=1") from exc
        if not name or not 0 <= found[name] < float("inf"):
            raise BadWeights(f"{part!r}: a weight is a number from 0 on, of a class with a name")
    if not sum(found.values()):
        raise BadWeights(f"{text!r}: one class at least needs a weight above 0")
    return found


def gap_s(arrivals: str, rate: float, rng: random.Random) -> float:
    """Return the time to a user's next request: `constant`, or `open`: as a Poisson process draws it."""
    return rng.expovariate(rate) if arrivals == "open" else 1.0 / rate


@dataclass(frozen=True, slots=True)
class Counted:
    """One class in Locust's statistics."""

    n: int
    failures: int  # late, or not answered
    f1: float = nan  # mean of the answers
    floor: float = nan  # mean of what they were asked to keep

    @property
    def in_time(self) -> float:
        return (self.n - self.failures) / self.n if self.n else nan

    @property
    def keeps_floor(self) -> bool:
        return not isnan(self.f1) and self.f1 >= self.floor

    @property
    def joint(self) -> float:
        return self.in_time if self.keeps_floor else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run was good; `reason`: why not, empty when it was."""

    attained: float
    reason: str

    @property
    def exit_code(self) -> int:
        return 1 if self.reason else 0


def judge(classes: Mapping[str, Counted], least: float, broken: str, *, busy: bool) -> Verdict:
    """Return the verdict on a run; `busy`: Locust saw its own CPU full."""
    n = sum(c.n for c in classes.values())
    attained = sum(c.joint * c.n for c in classes.values() if c.n) / n if n else nan
    if broken:
        return Verdict(nan, f"the run broke and has no figures: {broken}")
    if not n:
        return Verdict(nan, "no request was sent")
    if busy:
        return Verdict(attained, "not valid: Locust's own CPU was full; give it more processes")
    if attained < least:
        return Verdict(attained, f"attainment {attained:.4f} is below {least:g}")
    return Verdict(attained, "")


def as_json(classes: Mapping[str, Counted], verdict: Verdict) -> dict[str, Any]:
    """Return the run as its last line tells it."""
    by_class = {
        name: {
            "n": c.n,
            "in_time": _known(c.in_time),
            "f1": _known(c.f1),
            "floor": _known(c.floor),
            "joint": _known(c.joint),
        }
        for name, c in classes.items()
    }
    return {"classes": by_class, "attained": _known(verdict.attained), "reason": verdict.reason}


def _known(value: float) -> float | None:
    return None if isnan(value) else round(value, 4)
