"""Certificates of a study's variants: floors from four fifths of the calibrate split, and what became of
them on the fifth and on the test data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.catalog import sha256_of
from gateway.published import Bound, Certificate, Quality, Variant
from gateway.spans import SpanEncoder
from optimizer import certify, data, evaluate, strata
from optimizer.data import DataError, Example, Split
from optimizer.strata import ALL, Scored
from optimizer.study import Study

CALIBRATE = "calibrate"
METHOD = "{} lower bound over context means, delta split over the plans"


@dataclass(frozen=True, slots=True)
class Questions:
    """A data set that variants are asked, under its name in the run folder and the catalog."""

    name: str
    examples: Sequence[Example]
    tokens: np.ndarray  # (n,) int, of question and context together
    sha256: str = ""  # empty: a split, not a file


@dataclass(frozen=True, slots=True)
class Evidence:
    """What floors are made from and checked on."""

    calibrate: Questions
    reports: tuple[Questions, ...]


def evidence_of(study: Study) -> Evidence:
    """Return the study's questions; which are long is found out here, once for all variants.

    Raises: DataError when there are none to certify with.
    """
    encoder = SpanEncoder.from_file(study.tokenizer)
    if all(strata.is_fresh(e.context) for e in study.questions.certifying(Split.CALIBRATE)):
        raise DataError(
            "the calibrate split of the sources that certify holds no context to make floors from;"
            " let a larger [[data]] certify"
        )
    calibrate = _questions(encoder, CALIBRATE, study.questions.certifying(Split.CALIBRATE))
    return Evidence(calibrate, tuple(_report(study, encoder, s) for s in study.config.report))


def _report(study: Study, encoder: SpanEncoder, source: str) -> Questions:
    where = study.questions.path(source)
    path = data.path_of(where)
    sha256 = sha256_of(path) if path.exists() else ""
    return _questions(encoder, Path(source).name.split(".")[0], data.load(where), sha256)


def _questions(
    encoder: SpanEncoder, name: str, examples: Sequence[Example], sha256: str = ""
) -> Questions:
    tokens = np.array([encoder.encode(e.as_question()).n_tokens for e in examples], dtype=int)
    return Questions(name, examples, tokens, sha256)


def qualities_of(study: Study, variant: Variant, evidence: Evidence) -> tuple[Quality, ...]:
    """Return the scores on what the floor is made from and on the study's test data."""
    found = []
    for questions in (evidence.calibrate, *evidence.reports):
        readings = study.exported(variant.name).readings(questions.name, questions.examples)
        asked = list(zip(questions.examples, readings, strict=True))
        if questions is evidence.calibrate:
            asked = [(e, r) for e, r in asked if not strata.is_fresh(e.context)]
        examples, readings = [e for e, _ in asked], [r for _, r in asked]
        name, sha256 = questions.name, questions.sha256
        found.append(evaluate.quality(name, sha256, examples, readings, variant.decoding))
    return tuple(found)


def certificate_of(study: Study, variant: Variant, evidence: Evidence, delta: float) -> Certificate:
    """Return the floors of a variant at 1 - delta, its own and those of the strata."""
    config = study.config.certify
    certified, fresh = strata.split(_scored(study, variant, evidence.calibrate))
    means, bound = certified.means, certify.METHODS[config.method]
    bounds = {
        name: strata.rounded_down(method(means, delta)) for name, method in certify.METHODS.items()
    }
    parts = strata.strata_of(certified, bound, delta)
    floors = {ALL: bounds[config.method]} | {part.name: part.floor for part in parts}
    others = [fresh, *(_scored(study, variant, questions) for questions in evidence.reports)]
    names = [Path(d.source).name for d in study.config.data if d.certifies]
    hashes = study.questions.hashes()
    return Certificate(
        floor=floors[ALL],
        delta=config.delta,
        method=METHOD.format(certify.TITLES[config.method]),
        n_contexts=len(means),
        n_questions=len(certified.examples),
        f1=float(means.mean()),
        data=", ".join(f"{name} (calibrate split)" for name in names),
        data_sha256=", ".join(hashes.get(name, "") for name in names),
        model_sha256=(variant.sha256,),
        host=variant.profile.host,
        bounds=tuple(Bound(certify.TITLES[name], floor) for name, floor in bounds.items()),
        strata=parts,
        checks=tuple(
            check
            for other in others
            if len(other.examples)  # few contexts may leave no fifth
            for check in strata.checks_of(certified, other, floors, bound, delta)
        ),
    )


def _scored(study: Study, variant: Variant, questions: Questions) -> Scored:
    examples = questions.examples
    readings = study.exported(variant.name).readings(questions.name, examples)
    answers = evaluate.answers_of(readings, variant.decoding)
    f1 = [evaluate.f1(a, e.answers) for a, e in zip(answers, examples, strict=True)]
    return Scored(questions.name, examples, questions.tokens, np.array(f1))
