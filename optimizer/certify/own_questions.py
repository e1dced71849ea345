"""Certifies published variants on a user's own questions, or labelled texts: one file, no study, no training.

The no-answer threshold of each variant is fitted to the questions as well. It is cross-fitted: each question
is answered under a threshold that was fitted without it, so all questions can make floors. The gateway
serves the threshold that was fitted on all of them. The plans of the catalog do not change otherwise; a
classification has no such threshold, so nothing is fitted.

Legend: n questions, k clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gateway.catalog import store
from gateway.catalog.schema import QA, Decoding, Quality, Variant
from gateway.catalog.store import Catalog
from gateway.domain import Answer
from gateway.errors import RepositoryError
from gateway.qa import codec
from gateway.qa.codec import Reading, SpanEncoder
from optimizer.certify import bounds, certification, expected_agreement, looking, plans, strata
from optimizer.certify.certification import Evidence, QuestionSet
from optimizer.certify.expected_agreement import FloorQuestions
from optimizer.data import clusters, evaluate, labelled_texts, lineage, question_files
from optimizer.data.lineage import TrainedOnIt
from optimizer.data.question_sets import DataError, Example, sha256_of
from optimizer.evaluation import cached, decoding
from optimizer.onnx import profile
from optimizer.study.config import CertifyConfig, TaskConfig

FOLDS = 10
MIN_CLUSTERS = 10  # with fewer, floors are too low to be useful
TYPICAL_F1, TYPICAL_SPREAD = 0.65, 0.33  # of clusters, for the estimate before any model runs
STUDY = "your questions"


@dataclass(frozen=True, slots=True)
class OwnQuestions:
    """The questions of a file, or its labelled texts, with its name and hash."""

    name: str
    sha256: str
    examples: Sequence[Any]  # (n,) of Item
    task: str = QA

    @property
    def units(self) -> str:
        """What a cluster is, in words."""
        group, context = self.examples[0].units
        return f"{group}s or {context}s"

    @property
    def n_clusters(self) -> int:
        return len({clusters.cluster_of(e) for e in self.examples})


@dataclass(frozen=True, slots=True)
class FloorEstimate:
    """The floor to expect from a number of articles or contexts."""

    n_clusters: int
    floor: float


def read(path: Path, catalog: Catalog, columns: TaskConfig | None = None) -> OwnQuestions:
    """Return the questions of a file that count for floors, or its texts: of the catalog's only task.

    `columns`: of a file of labelled texts; None: it has questions.
    Raises: DataError when there are too few; TrainedOnIt when the models were trained on the file.
    """
    (task,) = catalog.task_names
    own = OwnQuestions(path.name, "", _examples(path, catalog, columns), task)
    sha256 = sha256_of(path)
    if named := [n for n in lineage.trained_on(catalog.origin, [sha256]) if _trained(catalog, n)]:
        raise TrainedOnIt(
            f"{path}: not certified: the published models were trained on it (as {', '.join(named)}), so"
            " it cannot show how they answer new questions; give questions that they have not seen"
        )
    counted = clusters.counted(own.examples)
    kept = [e for e, counts in zip(own.examples, counted, strict=True) if counts]
    found = replace(own, sha256=sha256, examples=kept)
    if found.n_clusters < MIN_CLUSTERS:
        raise DataError(
            f"{path}: its rows come from only {found.n_clusters} {found.units}; a floor needs at least"
            f" {MIN_CLUSTERS}: add rows from others"
        )
    return found


def _examples(path: Path, catalog: Catalog, columns: TaskConfig | None) -> Sequence[Any]:
    """Return the rows of a file; of labelled texts at most MOST_CERTIFYING, as a study takes. Raises: DataError."""
    if columns is None:
        return question_files.load(path)
    rows = labelled_texts.load(path, columns, catalog.tasks[0].labels)
    kept = set(clusters.shuffled({r.context for r in rows})[: labelled_texts.MOST_CERTIFYING])
    return [row for row in rows if row.context in kept]


def _trained(catalog: Catalog, name: str) -> bool:
    if catalog.origin.trained_on:
        return name in catalog.origin.trained_on
    reported = {quality.sha256 for v in catalog.variants for quality in v.quality}
    return catalog.origin.data_sha256[name] not in reported


def outlook(n_clusters: int, n_variants: int, delta: float) -> list[FloorEstimate]:
    """Return the floors to expect from 1, 2 and 4 times as many clusters at a typical mean F1."""
    a = TYPICAL_F1 * (TYPICAL_F1 * (1 - TYPICAL_F1) / TYPICAL_SPREAD**2 - 1)
    draws = np.random.default_rng(0).beta(a, a * (1 / TYPICAL_F1 - 1), 4 * n_clusters)
    return _floors(np.sort(draws)[::4], n_variants, delta)


def outlook_of(catalog: Catalog, values: np.ndarray, delta: float) -> list[FloorEstimate]:
    """Return the floors to expect from 1, 2 and 4 times as many values like these; values: (k,)."""
    return _floors(values, len(catalog.variants), delta)


def _floors(values: np.ndarray, n_variants: int, delta: float) -> list[FloorEstimate]:
    share = certification.shares(n_variants, 0, delta / 2).largest  # a first look spends half
    many = [np.tile(values, times) for times in (1, 2, 4)]
    mixed = [np.random.default_rng(0).permutation(v) for v in many]
    return [
        FloorEstimate(len(v), strata.rounded_down(bounds.betting_floor(v, share))) for v in mixed
    ]


def certified(
    published: Path, own: OwnQuestions, delta: float, folder: Path
) -> tuple[Catalog, np.ndarray]:
    """Return the catalog certified on the questions, and the best variant's F1 of each cluster, (k,).

    `folder` keeps the answers by model, file and host, so a killed run goes on. Raises: RepositoryError, DataError.
    """
    catalog = store.read(published)
    if problems := store.check_files(published, catalog):
        raise RepositoryError("not certified: " + "; ".join(problems))
    catalog = catalog.only(own.task)
    questions = _questions(own, published / store.TOKENIZER)
    readings = {v.name: _ask(published, v, questions, own, folder) for v in catalog.variants}
    refitted = catalog.variants
    if own.task == QA:
        refitted = tuple(fitted(v, own.examples, readings[v.name]) for v in refitted)
    answers = {v.name: _answers(own, v, readings[v.name]) for v in catalog.variants}
    evidence = Evidence(
        search=questions,
        calibrate=questions,
        reports=(),
        ask=lambda name, _: (readings[name], []),
        how=CertifyConfig(delta=delta),
        data=own.name,
        data_sha256=own.sha256,
        hold_out=False,
    )
    date = datetime.now(UTC).isoformat(timespec="seconds")
    evidence, looks = looking.spend(evidence, refitted, STUDY, date, catalog.looks)
    found = plans.certified_as_they_are(catalog.plans, refitted, answers, evidence)
    variants = tuple(
        replace(v, quality=(_quality(own, v, readings[v.name], answers[v.name]), *_others(v, own)))
        for v in refitted
    )
    catalog = replace(catalog, variants=variants, plans=tuple(found), looks=looks)
    expected = expected_agreement.with_expectations(
        catalog,
        FloorQuestions(own.examples, questions.tokens),
        answers,
        profile.here(),
        evidence.budget,
        len(found),
    )
    best = max(refitted, key=lambda v: expected.direct(v.name).certified_f1).name
    f1 = [e.value_of(a.text) for a, e in zip(answers[best], own.examples, strict=True)]
    return expected, clusters.means(own.examples, f1)


def _answers(own: OwnQuestions, variant: Variant, readings: Sequence[Any]) -> list[Answer]:
    if own.task == QA:
        return cross_fitted(variant, own.examples, readings)
    asked = zip(own.examples, readings, strict=True)
    return [example.answer_of(reading, variant.decoding) for example, reading in asked]


def cross_fitted(
    variant: Variant, examples: Sequence[Example], readings: Sequence[Reading]
) -> list[Answer]:
    """Return each question's answer under a threshold fitted without the fold of its cluster."""
    if not carry_threshold(examples):
        return [codec.answer_of(r, variant.decoding) for r in readings]
    folds = clusters.numbers(examples) % FOLDS
    hows: dict[int, Decoding] = {}
    for fold in np.unique(folds).tolist():
        rows = np.flatnonzero(folds != fold).tolist()
        part = _fitted(variant, [examples[i] for i in rows], [readings[i] for i in rows])
        hows[fold] = part.decoding
    return [codec.answer_of(r, hows[int(f)]) for r, f in zip(readings, folds, strict=True)]


def fitted(variant: Variant, examples: Sequence[Example], readings: Sequence[Reading]) -> Variant:
    """Return the variant with its no-answer threshold fitted; the calibration of scores does not change.

    With few answerable or few unanswerable questions the threshold stays as published.
    """
    return _fitted(variant, examples, readings) if carry_threshold(examples) else variant


def carry_threshold(examples: Sequence[Example]) -> bool:
    """Say whether there are enough questions of both kinds: a threshold would serve a single one alone."""
    n_answerable = sum(e.answerable for e in examples)
    return min(n_answerable, len(examples) - n_answerable) >= decoding.MIN_OF_A_KIND


def _fitted(variant: Variant, examples: Sequence[Example], readings: Sequence[Reading]) -> Variant:
    has = np.array([e.answerable for e in examples])
    difference = np.array([min(r.difference, 1e3) for r in readings])
    best = evaluate.forced_answers(readings)
    f1 = np.array([evaluate.f1(a, e.answers) for a, e in zip(best, examples, strict=True)])
    threshold = decoding.best_threshold(difference, has, f1)
    return replace(variant, decoding=replace(variant.decoding, null_threshold=threshold))


def _questions(own: OwnQuestions, tokenizer: Path) -> QuestionSet:
    encoder = SpanEncoder.from_file(tokenizer)
    return certification.questions_of(encoder, own.name, own.examples, own.sha256)


def _ask(
    published: Path, variant: Variant, questions: QuestionSet, own: OwnQuestions, folder: Path
) -> list[Any]:  # readings
    file = store.model_path(published, variant)
    model = cached.Model(file, variant.sha256, published / store.TOKENIZER, variant.precision)
    part = f"own-{own.sha256[:12]}"
    return cached.readings(model, folder / variant.name, part, questions.examples)[0]


def _quality(
    own: OwnQuestions, variant: Variant, readings: Sequence[Any], answers: Sequence[Answer]
) -> Quality:
    if own.task != QA:
        return evaluate.quality(own.name, own.sha256, own.examples, readings, variant.decoding)
    texts = [answer.text for answer in answers]
    return evaluate.quality_of(own.name, own.sha256, own.examples, texts, readings)


def _others(variant: Variant, own: OwnQuestions) -> tuple[Quality, ...]:
    return tuple(q for q in variant.quality if q.sha256 != own.sha256)


def worse_than_constant(catalog: Catalog) -> Mapping[str, float]:
    """Return the variants no better than always giving "no answer", or the most frequent label, with the F1 of that."""
    found = {v.name: catalog.direct(v.name).certificate for v in catalog.variants}
    return {n: c.constant_f1 for n, c in found.items() if c.constant_f1 and c.f1 <= c.constant_f1}
