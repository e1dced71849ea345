"""Where a plan's answer to a recorded question comes from, and what an answer from there is worth.

A cascade stops at the first variant that is sure enough; where time runs out it is cut before. Pure.

Legend: N questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.catalog.schema import Plan
from loadtest.lab.recording import Recording
from optimizer.certify.cascades import last_stages

Worth = dict[int, float]  # mean F1 by length bucket


class End(NamedTuple):
    """How a plan came to its answer."""

    plan: str
    stage: int  # the variant that gave the answer, by its place
    cut: bool  # it was doubted, and the next variant not asked


def stops(plan: Plan, recording: Recording) -> npt.NDArray[np.int64]:
    """Return the stage at which each question's answer is no longer doubted: (N,)."""
    confidences = [np.array(recording.said[name].confidence) for name in plan.variants]
    return last_stages(confidences, plan.thresholds)


def worth(plan: Plan, recording: Recording) -> Mapping[End, Worth]:
    """Return the mean recorded F1 of the answers of each end, by length bucket.

    Where no recorded question of a bucket ends so, it is that of the variant's answers there.
    """
    buckets, stop = np.array([size.bucket for size in recording.sizes]), stops(plan, recording)
    found: dict[End, Worth] = {}
    for stage, variant in enumerate(plan.variants):
        f1 = np.array(recording.said[variant].f1)
        for cut in (False, True) if stage + 1 < len(plan.variants) else (False,):
            ends = stop > stage if cut else stop == stage
            found[End(plan.name, stage, cut)] = {
                int(b): float(f1[_or_all(ends & (buckets == b), buckets == b)].mean())
                for b in np.unique(buckets)
            }
    return found


def _or_all(some: npt.NDArray[np.bool_], every: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return some if some.any() else every
