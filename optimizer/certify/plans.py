"""The plans of a catalog: each variant alone, and the best cascades; all certified jointly.

Cascades and their thresholds are chosen on the search split. The calibrate split is used only to certify
them.

Legend: n questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gateway.catalog.schema import QA, Certificate, Paired, Plan, Variant
from gateway.domain import Answer
from optimizer.certify import cascades, certification, expected_agreement, strata
from optimizer.certify.cascades import Chain, VariantAnswers
from optimizer.certify.certification import Evidence, PlanScores, QuestionSet, Shares
from optimizer.certify.strata import Scored
from optimizer.data import clusters

MOST_CANDIDATES = 12  # cascades that version 1 of the method looked at
MAX_PLANS = 20  # with more, choosing a plan would take too much of a request's time


@dataclass(frozen=True, slots=True)
class RatedPlan:
    """A certified plan, with its cost relative to the largest variant."""

    plan: Plan
    cost: float  # from the latency profiles, on the search split; 1: as much
    cpu: Mapping[str, float]  # the same from measured CPU time, by name of the test data


@dataclass(frozen=True, slots=True)
class PlanSelection:
    """The plans that are kept, and the number of plans that delta is split over."""

    kept: list[RatedPlan]
    n_looked_at: int


@dataclass(frozen=True, slots=True)
class _Answered:
    """The answers of all variants to one question set."""

    questions: QuestionSet
    answers: tuple[VariantAnswers, ...]
    cpu_ms: Mapping[str, np.ndarray]  # by variant, where it is known


def plans_of(variants: Sequence[Variant], evidence: Evidence) -> PlanSelection:
    """Return the plans to publish, cheapest first.

    A cascade is left out when another plan beats it in cost, floor and loss at once. Delta is split over all
    plans looked at, including those left out.
    """
    parts = (evidence.search, evidence.calibrate, *evidence.reports)
    search, calibrate, *reports = (_ask(variants, questions, evidence) for questions in parts)
    alone = [Chain((variant.name,), ()) for variant in variants]
    chains = alone + _cascades(search, len(variants))
    outcomes = [_outcome(chain, calibrate, reports, evidence.hold_out) for chain in chains]
    largest = expected_agreement.largest(variants).name
    best = outcomes[alone.index(Chain((largest,), ()))]
    each = _shares(chains, best, evidence)
    found = []
    for chain, outcome in zip(chains, outcomes, strict=True):
        certificate = _certificate(chain, outcome, best, largest, variants, evidence, each)
        task = variants[0].task
        found.append(_rated(chain, certificate, search, reports, largest, task))
    return PlanSelection(sorted(unbeaten(found), key=lambda rated: rated.cost), len(found))


def certified_as_they_are(
    plans: Sequence[Plan],
    variants: Sequence[Variant],
    answers: Mapping[str, Sequence[Answer]],
    evidence: Evidence,
    n_cascades: int = 0,
) -> list[Plan]:
    """Return the same plans, certified again by the given answers; none is left out.

    `n_cascades`: those that were looked at on these questions before some were left out, if more than there are.
    """
    answered = _Answered(
        evidence.calibrate,
        tuple(_answers(v, answers[v.name], evidence.calibrate) for v in variants),
        {},
    )
    chains = [Chain(plan.variants, plan.thresholds) for plan in plans]
    outcomes = [_outcome(chain, answered, (), evidence.hold_out) for chain in chains]
    largest = expected_agreement.largest(variants).name
    best = outcomes[chains.index(Chain((largest,), ()))]
    each = _shares(chains, best, evidence, n_cascades)
    found = []
    for plan, chain, outcome in zip(plans, chains, outcomes, strict=True):
        certificate = _certificate(chain, outcome, best, largest, variants, evidence, each)
        played = cascades.play(chain, answered.answers)
        reach = tuple(round(share, 4) for share in played.reach) if chain.thresholds else ()
        found.append(replace(plan, certificate=certificate, reach=reach))
    return found


def most_cascades(n_variants: int) -> int:
    """Return how many cascades of so many variants any version may have looked at."""
    return 0 if n_variants < 2 else max(0, min(MOST_CANDIDATES, MAX_PLANS - n_variants))


def _shares(
    chains: Sequence[Chain], best: PlanScores, evidence: Evidence, n_cascades: int = 0
) -> Shares:
    n_alone = sum(not chain.thresholds for chain in chains)
    return certification.shares(
        n_alone,
        max(n_cascades, len(chains) - n_alone),
        evidence.budget,
        len(best.certified.strata),
    )


def _certificate(
    chain: Chain,
    outcome: PlanScores,
    best: PlanScores,
    largest: str,
    variants: Sequence[Variant],
    evidence: Evidence,
    each: Shares,
) -> Certificate:
    """Return a plan's certificate with its loss to the largest variant."""
    of_variant = each.largest if outcome is best else each.own
    share = each.others if chain.thresholds else of_variant
    sha256 = tuple(_named(variants, name).sha256 for name in chain.variants)
    certificate = certification.certificate_of(outcome, evidence, sha256, share, each.parts)
    paired = Paired(largest, 0.0, 0.0)
    if outcome is not best:
        paired = certification.paired_of(outcome, best, largest, evidence.how, each.others)
    return replace(certificate, paired=paired)


def unbeaten(found: Sequence[RatedPlan]) -> list[RatedPlan]:
    """Return all variants alone, and the cascades that no plan beats in cost, floor and loss at once."""
    points = {rated.plan.name: _badness(rated) for rated in found}
    return [
        rated
        for rated in found
        if len(rated.plan.variants) == 1
        or not any(_beats(other, points[rated.plan.name]) for other in points.values())
    ]


def _badness(rated: RatedPlan) -> tuple[float, float, float]:
    loss = rated.plan.certified_loss
    return rated.cost, -rated.plan.certified_f1, 1.0 if loss is None else loss


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _ask(variants: Sequence[Variant], questions: QuestionSet, evidence: Evidence) -> _Answered:
    answers, cpu = [], {}
    for variant in variants:
        readings, cpu_ms = evidence.ask(variant.name, questions)
        asked = zip(questions.examples, readings, strict=True)
        said = [item.answer_of(reading, variant.decoding) for item, reading in asked]
        answers.append(_answers(variant, said, questions))
        if cpu_ms:
            cpu[variant.name] = np.array(cpu_ms)
    return _Answered(questions, tuple(answers), cpu)


def _answers(variant: Variant, said: Sequence[Answer], questions: QuestionSet) -> VariantAnswers:
    f1 = [item.value_of(a.text) for item, a in zip(questions.examples, said, strict=True)]
    score = np.array([answer.score for answer in said])
    return VariantAnswers(variant.name, np.array(f1), score, _cost_ms(variant, questions))


def _cost_ms(variant: Variant, questions: QuestionSet) -> np.ndarray:  # (n,)
    """Return the expected time of each question on one core, as the gateway estimates it."""
    p50_ms = {int(b): variant.profile.cell(int(b)).p50_ms for b in np.unique(questions.buckets)}
    each_ms = np.array([p50_ms[int(b)] for b in questions.buckets])
    return np.asarray(each_ms * questions.windows)


def _cascades(search: _Answered, n_variants: int) -> list[Chain]:
    count = min(cascades.CANDIDATES, MAX_PLANS - n_variants)
    if n_variants < 2 or count < 1 or not len(search.questions.examples):
        return []
    weights = clusters.weights(search.questions.examples)
    return cascades.worth_certifying(search.answers, weights, count)


def _outcome(
    chain: Chain, calibrate: _Answered, reports: Sequence[_Answered], hold_out: bool
) -> PlanScores:
    certified, held_out = strata.split(_scored(chain, calibrate), hold_out=hold_out)
    return PlanScores(certified, held_out, tuple(_scored(chain, r) for r in reports))


def _scored(chain: Chain, answered: _Answered) -> Scored:
    questions, played = answered.questions, cascades.play(chain, answered.answers)
    return Scored(questions.name, questions.examples, questions.tokens, played.f1)


def _rated(
    chain: Chain,
    certificate: Certificate,
    search: _Answered,
    reports: Sequence[_Answered],
    largest: str,
    task: str,
) -> RatedPlan:
    played = cascades.play(chain, search.answers)
    reach = tuple(round(share, 4) for share in played.reach) if chain.thresholds else ()
    name = _name(chain, search, task)
    plan = Plan(name, chain.variants, chain.thresholds, certificate, reach)
    whole_ms = float(cascades.play(Chain((largest,), ()), search.answers).cost_ms.mean())
    cpu = {
        answered.questions.name: _cpu_ms(chain, answered) / _cpu_ms(Chain((largest,), ()), answered)
        for answered in reports
        if all(name in answered.cpu_ms for name in (*chain.variants, largest))
    }
    return RatedPlan(plan, float(played.cost_ms.mean()) / whole_ms, cpu)


def _cpu_ms(chain: Chain, answered: _Answered) -> float:
    """Return the mean CPU time of a question over all stages that it reaches."""
    measured = [
        replace(a, cost_ms=answered.cpu_ms.get(a.name, a.cost_ms)) for a in answered.answers
    ]
    return float(cascades.play(chain, measured).cost_ms.mean())


def _name(chain: Chain, search: _Answered, task: str) -> str:
    """Return the variant's name, or a cascade name of the stages' ranks by cost and the thresholds.

    Names of plans are unique in a repository: that of a classification's cascade begins with its task.
    """
    if not chain.thresholds:
        return chain.variants[0]
    by_cost = sorted(search.answers, key=lambda a: float(a.cost_ms.mean()))
    places = [str(1 + [a.name for a in by_cost].index(name)) for name in chain.variants]
    kind = ("cascade",) if task == QA else (task, "cascade")
    return "-".join((*kind, *places, *(f"t{threshold:.4f}" for threshold in chain.thresholds)))


def _named(variants: Sequence[Variant], name: str) -> Variant:
    return next(v for v in variants if v.name == name)
