"""Certificates of plans: floors and paired losses from clusters of the calibrate split.

Each floor is checked on held-out clusters and on the test data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gateway.catalog.schema import (
    ANSWERABLE,
    UNANSWERABLE,
    Bound,
    Certificate,
    LossCheck,
    Paired,
    Quality,
    ScopeLoss,
    Variant,
)
from gateway.catalog.store import sha256_of
from gateway.qa.codec import SpanEncoder
from optimizer.certify import bounds, strata
from optimizer.certify.strata import ALL, Scored
from optimizer.data import clusters, evaluate, lineage
from optimizer.data import question_sets as data
from optimizer.data.items import Item
from optimizer.data.question_sets import DataError, Example, Split
from optimizer.data.splits import StudyQuestions
from optimizer.onnx import profile
from optimizer.students.exported import Exported
from optimizer.students.study import Study
from optimizer.study import provenance
from optimizer.study.config import CertifyConfig, StudyConfig

SEARCH, CALIBRATE = "search", "calibrate"
VERSION = 2  # of what makes floors: the bounds, the shares of delta, the clusters held out
METHOD = (
    "{} over clusters: {article} where its {named} is known ({most} {text}s of it at most), a {text} elsewhere. What"
    " this look at the data spends of delta is split over all plans looked at: a quarter for the largest variant's"
    " floor, a quarter for those of the other variants, a quarter for those of cascades and the losses, a quarter"
    " for those of the parts; each over its scopes, inversely to their numbers of clusters"
)


def method_of(how: CertifyConfig) -> str:
    """Return the method that makes floors, with its version."""
    return f"{bounds.TITLES[how.method]} lower bound, version {VERSION}"


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions that variants are evaluated on; `name` as in the run folder and the catalog."""

    name: str
    examples: Sequence[Any]  # Item
    tokens: np.ndarray  # (n,) int, of question and context together
    buckets: np.ndarray  # (n,) int, of a window, padded
    windows: np.ndarray  # (n,) int
    sha256: str = ""  # empty: a split, not a file


# (variant, questions) -> its readings, decoded as served, and the CPU ms of each (empty: unknown).
Ask = Callable[[str, QuestionSet], tuple[list[Any], list[float]]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The questions of a certification, and how to get a variant's readings of them."""

    search: QuestionSet  # cascades are chosen by it
    calibrate: QuestionSet  # floors are made from it
    reports: tuple[QuestionSet, ...]  # floors are checked on them
    ask: Ask
    how: CertifyConfig
    data: str
    data_sha256: str
    spent: float | None = (
        None  # part of delta that this look at the data may spend; None: all of it
    )
    hold_out: bool = True  # keep a fifth of the clusters to check the floors

    @property
    def budget(self) -> float:
        """The chance that any floor of this look may be wrong."""
        return self.how.delta if self.spent is None else self.spent


def evidence_of(study: Study) -> Evidence:
    """Return the evidence of a study's own variants. Raises: DataError."""
    lineage.check_study(study.config)

    def ask(name: str, questions: QuestionSet) -> tuple[list[Any], list[float]]:
        return Exported(study, name).timed_readings(questions.name, questions.examples)

    return gather(study.config, study.questions, study.tokenizer, ask)


def gather(config: StudyConfig, questions: StudyQuestions, tokenizer: Path, ask: Ask) -> Evidence:
    """Return the evidence of a study; questions are encoded here, once for all variants.

    Of the calibrate split only questions that count are asked: few contexts of an article say as much
    as all. Raises: DataError when there are no questions to certify with.
    """
    encoder = SpanEncoder.from_file(tokenizer)
    calibrate = questions.certifying(Split.CALIBRATE)
    certifying = [
        e for e, counts in zip(calibrate, clusters.counted(calibrate), strict=True) if counts
    ]
    if not certifying or strata.held_out(certifying).all():
        raise DataError(
            "the calibrate split of the certifying sources has no article or context (of labelled texts: no"
            " group or text) to make floors from; let a larger [[data]] certify"
        )
    names = [Path(d.source).name for d in config.data if d.certifies]
    hashes = questions.hashes()
    return Evidence(
        search=questions_of(encoder, SEARCH, questions.certifying(Split.SEARCH)),
        calibrate=questions_of(encoder, CALIBRATE, certifying),
        reports=tuple(_report(encoder, questions, source) for source in config.report),
        ask=ask,
        how=config.certify,
        data=", ".join(f"{name} (calibrate split)" for name in names),
        data_sha256=", ".join(hashes.get(name, "") for name in names),
    )


def _report(encoder: SpanEncoder, questions: StudyQuestions, source: str) -> QuestionSet:
    where = questions.path(source)
    path = data.path_of(where)
    sha256 = sha256_of(path) if path.exists() else ""
    name = Path(where).name.split(".")[0]
    return questions_of(encoder, name, questions.report(source), sha256)


def questions_of(
    encoder: SpanEncoder, name: str, examples: Sequence[Item], sha256: str = ""
) -> QuestionSet:
    encoded = [e.windows(encoder) for e in examples]
    return QuestionSet(
        name,
        examples,
        np.array([w.n_tokens for w in encoded], dtype=int),
        np.array([w.input_ids.shape[1] for w in encoded], dtype=int),
        np.array([w.n_windows for w in encoded], dtype=int),
        sha256,
    )


def qualities_of(variant: Variant, evidence: Evidence) -> tuple[Quality, ...]:
    """Return the scores on the questions that floors are made from, and on the test data."""
    found = []
    for questions in (evidence.calibrate, *evidence.reports):
        readings, _ = evidence.ask(variant.name, questions)
        scored = list(zip(questions.examples, readings, strict=True))
        if questions is evidence.calibrate:
            made = strata.makes_floors(questions.examples, hold_out=evidence.hold_out)
            scored = [pair for pair, keep in zip(scored, made, strict=True) if keep]
        examples, readings = [e for e, _ in scored], [r for _, r in scored]
        name, sha256 = questions.name, questions.sha256
        found.append(evaluate.quality(name, sha256, examples, readings, variant.decoding))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class PlanScores:
    """The scores of a plan on the questions that certify it and on those that check it."""

    certified: Scored
    held_out: Scored
    reports: tuple[Scored, ...]


@dataclass(frozen=True, slots=True)
class Shares:
    """The part of delta that each claim of a catalog may spend, over all its scopes."""

    largest: float  # the floor of the largest variant
    own: float  # the floor of another variant
    others: float  # a floor of a cascade or a loss
    parts: float  # a floor of a stratum


def shares(n_variants: int, n_cascades: int, delta: float, n_parts: int = 5) -> Shares:
    """Return delta split over all claims about all plans looked at, including plans left out later.

    Half goes to the variants' floors: half of that to the largest variant, which limits what requests may ask
    for. A quarter goes to the cascades' floors and the losses, a quarter to the floors of the strata;
    `n_parts`: of one plan.
    """
    n_plans = n_variants + n_cascades
    n_others = n_cascades + n_plans - 1  # all but the largest variant have a loss
    of_floors = delta / 2 if n_others else 3 * delta / 4
    alone = n_variants == 1
    return Shares(
        largest=of_floors if alone else of_floors / 2,
        own=0.0 if alone else of_floors / 2 / (n_variants - 1),
        others=delta / 4 / n_others if n_others else 0.0,
        parts=delta / 4 / max(1, n_plans * n_parts),
    )


def certificate_of(
    outcome: PlanScores, evidence: Evidence, sha256: tuple[str, ...], share: float, parts: float
) -> Certificate:
    """Return the floors of a plan: the whole at 1 - `share`, each stratum at 1 - `parts`, over all scopes.

    `sha256`: of the plan's model files, in its order.
    """
    how, certified = evidence.how, outcome.certified
    bound = bounds.METHODS[how.method]
    lowest = {
        name: strata.floor_of(certified, method, share) for name, method in bounds.METHODS.items()
    }
    each = strata.floors_of(certified, bound, share)
    scopes = tuple(
        strata.stratum_of(name, part, each[name]) for name, part in certified.scopes.items()
    )
    whole, of_parts = scopes[0], strata.strata_of(certified, bound, parts)
    floors = {ALL: min(lowest[how.method], whole.f1)} | {p.name: p.floor for p in of_parts}
    return Certificate(
        floor=floors[ALL],
        delta=how.delta,
        method=_described(how, certified.examples[0]),
        n_contexts=whole.n_contexts,
        n_questions=whole.n_questions,
        f1=whole.f1,
        data=evidence.data,
        data_sha256=evidence.data_sha256,
        model_sha256=sha256,
        host=profile.here(),
        bounds=tuple(Bound(bounds.TITLES[name], floor) for name, floor in lowest.items()),
        strata=of_parts,
        checks=tuple(
            check
            for other in (outcome.held_out, *outcome.reports)
            if len(other.examples)  # with few clusters none may be held out
            for check in strata.checks_of(certified, other, floors, bound, evidence.budget)
        ),
        commit=provenance.commit(),
        scopes=scopes,
        n_clusters=whole.n_clusters,
        constant_f1=constant_f1(certified),
        spent=evidence.budget,
    )


def _described(how: CertifyConfig, item: Item) -> str:
    """Return in words how floors on such items are made."""
    of_questions = item.units == Example.units
    article, named = ("an article", "title") if of_questions else ("a group", "name")
    text = item.units[1]
    return METHOD.format(
        method_of(how), article=article, named=named, most=item.most_contexts, text=text
    )


def constant_f1(scored: Scored) -> float:
    """Return the F1 of always answering that there is no answer, over clusters; of labels, of the best constant one."""
    kinds = scored.kinds
    constants = set(kinds.tolist()) - {ANSWERABLE, UNANSWERABLE} or {UNANSWERABLE}
    return max(float(np.mean(clusters.means(scored.examples, kinds == c))) for c in constants)


def paired_of(
    outcome: PlanScores, largest: PlanScores, to: str, how: CertifyConfig, share: float
) -> Paired:
    """Return an upper bound on the F1 that a plan loses to the largest variant, at 1 - `share`.

    The bound is on the mean over clusters of (difference + 1) / 2. Most questions get the same answer from
    both, so the differences vary little.
    """
    bound = bounds.METHODS[how.method]
    certified = _gain(outcome.certified, largest.certified)
    mean = _loss(float(certified.means.mean()))
    each = strata.scope_shares(certified, share)
    scopes = certified.scopes
    losses = tuple(
        ScopeLoss(name, rounded_up(_loss(bound(part.means, each[name]))))
        for name, part in scopes.items()
    )
    loss = max(rounded_up(mean), *(scope.loss for scope in losses))
    pairs = zip(outcome.reports, largest.reports, strict=True)
    reports = [strata.capped(_gain(a, b)) for a, b in pairs]
    checks = [
        LossCheck(
            data=other.name,
            n_contexts=other.n_contexts,
            n_questions=len(other.examples),
            loss=_loss(float(other.means.mean())),
            loss_low=_loss(bounds.ceiling(bound, other.means, share)),
            certified=loss,
        )
        for other in (_gain(outcome.held_out, largest.held_out), *reports)
        if len(other.examples)
    ]
    return Paired(to, loss, mean, tuple(checks), losses)


def _gain(plan: Scored, largest: Scored) -> Scored:
    """Return the differences of two plans on the same questions, from -1..1 to 0..1."""
    return replace(plan, f1=(plan.f1 - largest.f1 + 1) / 2)


def _loss(gain: float) -> float:
    return 1 - 2 * gain


def rounded_up(loss: float) -> float:
    return min(1.0, round(loss + 5e-5, 4))
