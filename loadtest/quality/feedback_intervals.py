"""Do the live intervals of feedback cover the truth? Recorded answers, through the gateway's own estimator. Pure.

A stream is drawn from the recorded answers of a plan, whose mean F1 is the truth. Of a few answers, drawn at
random, the F1 is reported; some are compared with the largest variant's, as shadow answers are.

Legend: n questions, T answers of a stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gateway.monitoring.prediction_powered import Interval, Outcomes
from gateway.monitoring.sequential_tests import compare
from gateway.request.feedback import AGREED
from loadtest.lab.recording import Recording

STREAM = 1_000  # answers that are remembered


@dataclass(frozen=True, slots=True)
class Answers:
    """What is recorded of one plan."""

    f1: np.ndarray  # (n,)
    score: np.ndarray  # (n,)
    agrees: np.ndarray  # (n,) bool: with the largest variant

    @property
    def truth(self) -> float:
        return float(self.f1.mean())


@dataclass(frozen=True, slots=True)
class Case:
    """How many answers have feedback, and which share is compared with the largest variant's."""

    plan: str
    known: int
    shadow_share: float


@dataclass(frozen=True, slots=True)
class Counted:
    """What many streams showed; widths are means."""

    case: Case
    truth: float
    covered: float
    width: float
    covered_alone: float  # without predictions
    width_alone: float

    @property
    def worth(self) -> float:
        """How many answers with feedback one of them is worth, by the width of the interval."""
        return (self.width_alone / self.width) ** 2


def of_recording(recording: Recording, variant: str, reference: str) -> Answers:
    ours, theirs = recording.said[variant], recording.said[reference]
    agrees = [compare(a, b) in AGREED for a, b in zip(ours.answers, theirs.answers, strict=True)]
    return Answers(np.array(ours.f1), np.array(ours.confidence), np.array(agrees))


def predictions(answers: Answers, compared: np.ndarray) -> np.ndarray:  # (n,) bool -> (n,)
    """Return what the gateway predicts of each answer: see `Feedback.compared`."""
    return np.where(compared, (answers.score + answers.agrees) / 2, answers.score)


def count(answers: Answers, case: Case, streams: int, seed: int) -> Counted:
    """Return how often both intervals cover the truth, and how wide they are."""
    rng = np.random.default_rng(seed)
    pairs = [_stream(answers, case, rng) for _ in range(streams)]
    powered, alone = ([p for p, _ in pairs], [a for _, a in pairs])
    truth = answers.truth
    return Counted(
        case,
        truth,
        _covered(powered, truth),
        _width(powered),
        _covered(alone, truth),
        _width(alone),
    )


def _stream(answers: Answers, case: Case, rng: np.random.Generator) -> tuple[Interval, Interval]:
    """Return the intervals after one stream: with predictions, and without."""
    drawn = rng.integers(0, len(answers.f1), STREAM)
    predicted = predictions(
        Answers(answers.f1[drawn], answers.score[drawn], answers.agrees[drawn]),
        rng.random(STREAM) < case.shadow_share,
    ).tolist()
    outcomes, f1 = Outcomes(), answers.f1[drawn].tolist()
    for t in range(STREAM):  # the draw is random: so are its first ones
        if t < case.known:
            outcomes.add_known(f1[t], predicted[t])
        else:
            outcomes.add_other(predicted[t])
    powered, alone = outcomes.interval(), outcomes.of_known_alone()
    assert powered is not None  # a case has at least FEWEST known outcomes
    assert alone is not None
    return powered, alone


def _covered(found: Iterable[Interval], truth: float) -> float:
    return float(np.mean([each.low <= truth <= each.high for each in found]))


def _width(found: Iterable[Interval]) -> float:
    return float(np.mean([each.width for each in found]))
