"""Certificates of plans: floors and paired losses from four fifths of the calibrate split, and what became
of them on the fifth and on the test data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gateway.catalog import sha256_of
from gateway.published import Bound, Certificate, LossCheck, Paired, Quality, Variant
from gateway.spans import Reading, SpanEncoder
from optimizer import certify, data, evaluate, lineage, profiling, provenance, strata
from optimizer.config import CertifyConfig, StudyConfig
from optimizer.data import DataError, Example, Split
from optimizer.exported import Exported
from optimizer.questions import Questions as StudyQuestions
from optimizer.strata import ALL, Scored
from optimizer.study import Study

SEARCH, CALIBRATE = "search", "calibrate"
METHOD = (
    "{} lower bound over context means; half of delta is split over the variants' floors, half over those"
    " of cascades and the losses"
)


@dataclass(frozen=True, slots=True)
class Questions:
    """A data set that variants are asked, under its name in the run folder and the catalog."""

    name: str
    examples: Sequence[Example]
    tokens: np.ndarray  # (n,) int, of question and context together
    buckets: np.ndarray  # (n,) int, of a window, padded
    windows: np.ndarray  # (n,) int
    sha256: str = ""  # empty: a split, not a file


# What a variant's logits say to questions as served, and the CPU time of each, ms, where it is known.
Ask = Callable[[str, Questions], tuple[list[Reading], list[float]]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What cascades are chosen by, floors are made from and checked on, and the way to the answers."""

    search: Questions
    calibrate: Questions
    reports: tuple[Questions, ...]
    ask: Ask
    how: CertifyConfig
    data: str
    data_sha256: str


def evidence_of(study: Study) -> Evidence:
    """Return the evidence of a study's own variants. Raises: DataError."""
    lineage.check_study(study.config)

    def ask(name: str, questions: Questions) -> tuple[list[Reading], list[float]]:
        return Exported(study, name).timed_readings(questions.name, questions.examples)

    return gather(study.config, study.questions, study.tokenizer, ask)


def gather(config: StudyConfig, questions: StudyQuestions, tokenizer: Path, ask: Ask) -> Evidence:
    """Return a study's questions; which are long is found out here, once for all variants.

    Raises: DataError when there are none to certify with.
    """
    encoder = SpanEncoder.from_file(tokenizer)
    certifying = questions.certifying(Split.CALIBRATE)
    if all(strata.is_fresh(e.context) for e in certifying):
        raise DataError(
            "the calibrate split of the sources that certify holds no context to make floors from;"
            " let a larger [[data]] certify"
        )
    names = [Path(d.source).name for d in config.data if d.certifies]
    hashes = questions.hashes()
    return Evidence(
        search=_questions(encoder, SEARCH, questions.certifying(Split.SEARCH)),
        calibrate=_questions(encoder, CALIBRATE, certifying),
        reports=tuple(_report(encoder, questions.path(source)) for source in config.report),
        ask=ask,
        how=config.certify,
        data=", ".join(f"{name} (calibrate split)" for name in names),
        data_sha256=", ".join(hashes.get(name, "") for name in names),
    )


def _report(encoder: SpanEncoder, where: str) -> Questions:
    path = data.path_of(where)
    sha256 = sha256_of(path) if path.exists() else ""
    return _questions(encoder, Path(where).name.split(".")[0], data.load(where), sha256)


def _questions(
    encoder: SpanEncoder, name: str, examples: Sequence[Example], sha256: str = ""
) -> Questions:
    encoded = [encoder.encode(e.as_question()) for e in examples]
    return Questions(
        name,
        examples,
        np.array([w.n_tokens for w in encoded], dtype=int),
        np.array([w.input_ids.shape[1] for w in encoded], dtype=int),
        np.array([w.n_windows for w in encoded], dtype=int),
        sha256,
    )


def qualities_of(variant: Variant, evidence: Evidence) -> tuple[Quality, ...]:
    """Return the scores on what the floor is made from and on the study's test data."""
    found = []
    for questions in (evidence.calibrate, *evidence.reports):
        readings, _ = evidence.ask(variant.name, questions)
        asked = list(zip(questions.examples, readings, strict=True))
        if questions is evidence.calibrate:
            asked = [(e, r) for e, r in asked if not strata.is_fresh(e.context)]
        examples, readings = [e for e, _ in asked], [r for _, r in asked]
        name, sha256 = questions.name, questions.sha256
        found.append(evaluate.quality(name, sha256, examples, readings, variant.decoding))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan scored on everything that it is certified and checked with."""

    calibrate: Scored
    reports: tuple[Scored, ...]


def certificate_of(
    outcome: Outcome, evidence: Evidence, sha256: tuple[str, ...], share: float, joint: float
) -> Certificate:
    """Return the floors of a plan: its own at 1 - `share`, those of the strata jointly at 1 - `joint`.

    `sha256`: of the plan's model files, in its order.
    """
    how = evidence.how
    bound = certify.METHODS[how.method]
    certified, fresh = strata.split(outcome.calibrate)
    means = certified.means
    bounds = {
        name: strata.rounded_down(method(means, share)) for name, method in certify.METHODS.items()
    }
    parts = strata.strata_of(certified, bound, joint)
    floors = {ALL: bounds[how.method]} | {part.name: part.floor for part in parts}
    return Certificate(
        floor=floors[ALL],
        delta=how.delta,
        method=METHOD.format(certify.TITLES[how.method]),
        n_contexts=len(means),
        n_questions=len(certified.examples),
        f1=float(means.mean()),
        data=evidence.data,
        data_sha256=evidence.data_sha256,
        model_sha256=sha256,
        host=profiling.here(),
        bounds=tuple(Bound(certify.TITLES[name], floor) for name, floor in bounds.items()),
        strata=parts,
        checks=tuple(
            check
            for other in (fresh, *outcome.reports)
            if len(other.examples)  # few contexts may leave no fifth
            for check in strata.checks_of(certified, other, floors, bound, joint)
        ),
        commit=provenance.commit(),
    )


def paired_of(
    outcome: Outcome, largest: Outcome, to: str, how: CertifyConfig, share: float
) -> Paired:
    """Return how much F1 a plan loses at most to the largest variant, at 1 - `share`.

    The bound is on the mean over contexts of (difference + 1) / 2: questions that both answer alike, by far
    the most, have no spread.
    """
    bound = certify.METHODS[how.method]
    certified, fresh = strata.split(_gain(outcome.calibrate, largest.calibrate))
    loss = _loss(bound(certified.means, share))
    reports = [_gain(a, b) for a, b in zip(outcome.reports, largest.reports, strict=True)]
    checks = [
        LossCheck(
            data=other.name,
            n_contexts=len(other.means),
            n_questions=len(other.examples),
            loss=_loss(float(other.means.mean())),
            loss_low=_loss(certify.ceiling(bound, other.means, share)),
            certified=rounded_up(loss),
        )
        for other in (fresh, *reports)
        if len(other.examples)
    ]
    return Paired(to, rounded_up(loss), _loss(float(certified.means.mean())), tuple(checks))


def _gain(plan: Scored, largest: Scored) -> Scored:
    """Return the differences of two plans on the same questions, from -1..1 to 0..1."""
    return replace(plan, f1=(plan.f1 - largest.f1 + 1) / 2)


def _loss(gain: float) -> float:
    return 1 - 2 * gain


def rounded_up(loss: float) -> float:
    return min(1.0, round(loss + 5e-5, 4))
