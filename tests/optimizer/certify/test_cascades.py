"""Which cascades are worth having, and that their floors hold."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from gateway.catalog.schema import Decoding, Plan
from gateway.domain import Span
from gateway.qa.codec import Reading, answer_of
from optimizer.certify import cascades, certification, plans
from optimizer.certify.bounds import betting_floor
from optimizer.certify.cascades import Chain, VariantAnswers
from optimizer.certify.certification import Evidence, QuestionSet
from optimizer.certify.plans import RatedPlan
from optimizer.certify.strata import Scored, split
from optimizer.data.question_sets import Example
from optimizer.study.config import CertifyConfig
from tests.fakes import make_plan, make_variant, with_loss

SMALL, LARGE = make_variant("small", 2), make_variant("large", 10)


def answers(name: str, f1: list[float], score: list[float], ms: float) -> VariantAnswers:
    return VariantAnswers(name, np.array(f1), np.array(score), np.full(len(f1), ms))


def test_a_cascade_takes_the_next_answer_where_it_doubts() -> None:
    """What is measured offline is what the gateway does: below the threshold, not at it."""
    small = answers("small", [1, 0, 0, 1], [0.9, 0.4, 0.5, 0.1], 2)
    large = answers("large", [0, 1, 1, 1], [0.9] * 4, 10)
    played = cascades.play(Chain(("small", "large"), (0.5,)), [large, small])
    assert played.f1.tolist() == [1, 1, 0, 1]
    assert played.cost_ms.tolist() == [2, 12, 2, 12]
    assert played.reach == (1.0, 0.5)


def test_a_third_stage_is_asked_only_of_what_the_second_doubts() -> None:
    """Reach never grows."""
    scores = {"a": [0.1, 0.1, 0.9], "b": [0.9, 0.1, 0.1], "c": [0.5] * 3}
    said = [answers(n, [0, 0, 0], s, 1) for n, s in scores.items()]
    played = cascades.play(Chain(("a", "b", "c"), (0.5, 0.5)), said)
    assert played.ran.tolist() == [[True] * 3, [True, True, False], [False, True, False]]


def population(n: int, seed: int) -> tuple[VariantAnswers, VariantAnswers, np.ndarray]:
    """Return answers of a small variant that knows when it is wrong and of a large one, and contexts."""
    rng = np.random.default_rng(seed)
    contexts = np.arange(n) // 3
    ease = rng.beta(2, 2, contexts.max() + 1)[contexts]
    small = (rng.random(n) < ease).astype(float)
    large = np.where(rng.random(n) < 0.3, 1.0, small) * (rng.random(n) < 0.97)
    score = np.clip(0.4 * small + 0.6 * rng.random(n), 0, 1)
    return (
        VariantAnswers("small", small, score, np.full(n, 2.0)),
        VariantAnswers("large", large, np.full(n, 0.7), np.full(n, 10.0)),
        contexts,
    )


def test_the_cascades_worth_certifying_are_no_dearer_than_the_dearest_variant() -> None:
    """And none is beaten on the questions that they were chosen by."""
    small, large, contexts = population(900, 0)
    weights = 1 / np.bincount(contexts)[contexts]
    chains = cascades.worth_certifying([small, large], weights / weights.sum(), 5)
    played = [cascades.play(chain, [small, large]) for chain in chains]
    costs = [float(p.cost_ms.mean()) for p in played]
    f1 = [float(p.f1.mean()) for p in played]
    assert len(chains) == 5
    assert max(costs) < 10
    assert np.all(np.diff(np.array(f1)[np.argsort(costs)]) > 0)


def evidence(seed: int, n: int, delta: float) -> Evidence:
    """Return questions whose readings carry what `population` says: a span is right, or it is not."""

    def questions(name: str, seed: int) -> tuple[QuestionSet, dict[str, VariantAnswers]]:
        small, large, contexts = population(n, seed)
        examples = [
            Example(f"{name}{i}", "q", f"{name} {c}", (), (), "") for i, c in enumerate(contexts)
        ]
        tokens, buckets, windows = (np.full(n, value) for value in (60, 64, 1))
        said = {"small": small, "large": large}
        return QuestionSet(name, examples, tokens, buckets, windows), said

    made = {name: questions(name, 2 * seed + i) for i, name in enumerate(("search", "calibrate"))}

    def ask(name: str, asked: QuestionSet) -> tuple[list[Reading], list[float]]:
        said = made[asked.name][1][name]
        found = [_reading(f1, score) for f1, score in zip(said.f1, said.score, strict=True)]
        return found, said.cost_ms.tolist()

    how = CertifyConfig(delta=delta)
    return Evidence(made["search"][0], made["calibrate"][0], (), ask, how, "test", "")


def _reading(f1: float, score: float) -> Reading:
    """Return what answers an unanswerable question rightly or not, and the more surely the higher the score."""
    spans = Span("wrong", 0, 5, score, 0.0), Span("other", 6, 11, 1 - score, -1.0)
    return Reading(spans, 1.0 if f1 else -1.0)


BY_SHARE = Decoding(score_weights=((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)))
VARIANTS = [replace(v, decoding=BY_SHARE) for v in (SMALL, LARGE)]


def served(answers: VariantAnswers) -> VariantAnswers:
    """Return the answers with the score that `_reading` and `BY_SHARE` make of theirs: sigmoid(log score)."""
    return replace(answers, score=answers.score / (1 + answers.score))


def test_all_floors_of_all_plans_hold_jointly() -> None:
    """Chosen on one half, certified on the other: at least 1 - delta of the times nothing is broken.

    The sample means, taken for promises, would be broken nearly every time: the test can tell.
    """
    delta, times = 0.2, 30
    broken = naive = 0
    truth_small, truth_large, contexts = population(60_000, 999_999)
    weights = 1 / np.bincount(contexts)[contexts]
    weights /= weights.sum()
    for seed in range(times):
        small, large, of = population(450, 2 * seed)
        w = 1 / np.bincount(of)[of]
        chains = cascades.worth_certifying([small, large], w / w.sum(), 3)
        chains = [Chain(("small",), ()), Chain(("large",), ()), *chains]
        each = certification.shares(2, len(chains) - 2, delta)
        others = each.others
        fails, naive_fails = [], []
        calibrate = population(450, 2 * seed + 1)
        best, best_truth = calibrate[1].f1, float(truth_large.f1 @ weights)
        for i, chain in enumerate(chains):
            f1 = cascades.play(chain, calibrate[:2]).f1
            truth = float(cascades.play(chain, [truth_small, truth_large]).f1 @ weights)
            outcome = _outcome(f1, calibrate[2])
            floor = _floor(outcome, (each.own, each.largest, *[others] * len(chains))[i])
            paired = certification.paired_of(
                outcome, _outcome(best, calibrate[2]), "large", CertifyConfig(), others
            )
            fails.append(
                floor > truth or (chain.variants != ("large",) and paired.loss < best_truth - truth)
            )
            naive_fails.append(float(outcome.certified.means.mean()) > truth)
        broken += any(fails)
        naive += any(naive_fails)
    assert broken <= delta * times
    assert naive > delta * times


def _outcome(f1: np.ndarray, contexts: np.ndarray) -> certification.PlanScores:
    examples = [Example(str(i), "q", f"calibrate {c}", (), (), "") for i, c in enumerate(contexts)]
    whole = Scored("calibrate", examples, np.full(len(f1), 60), f1)
    return certification.PlanScores(*split(whole), ())


def _floor(outcome: certification.PlanScores, share: float) -> float:
    return betting_floor(outcome.certified.means, share)


def test_a_loss_is_certified_more_tightly_than_a_floor() -> None:
    """The same questions: what both answer alike has no spread."""
    small, large, contexts = population(1500, 5)
    f1 = cascades.play(Chain(("small", "large"), (0.8,)), [small, large]).f1
    outcome, best = _outcome(f1, contexts), _outcome(large.f1, contexts)
    paired = certification.paired_of(outcome, best, "large", CertifyConfig(), 0.01)
    margin = paired.loss - paired.f1_loss
    assert 0 < margin < outcome.certified.means.mean() - _floor(outcome, 0.01)
    assert [check.data for check in paired.checks] == ["held-out contexts"]


@pytest.mark.parametrize(("n_variants", "n_cascades"), [(1, 0), (2, 0), (5, 12)])
def test_delta_is_spent_once(n_variants: int, n_cascades: int) -> None:
    """Every floor and every loss but the largest variant's to itself has its share."""
    each = certification.shares(n_variants, n_cascades, 0.02, n_parts=7)
    n_plans = n_variants + n_cascades
    spent = each.largest + each.own * (n_variants - 1) + each.others * (n_cascades + n_plans - 1)
    assert spent + each.parts * n_plans * 7 == pytest.approx(0.02)


def rated(name: str, cost: float, floor: float, loss: float, stages: int = 2) -> RatedPlan:
    plan = with_loss(make_plan(SMALL, floor), loss)
    variants = ("small", "large")[:stages]
    return RatedPlan(Plan(name, variants, (0.5,) * (stages - 1), plan.certificate), cost, {})


def test_a_cascade_that_another_plan_beats_is_left_out() -> None:
    """A variant alone stays: it has to be there to be pinned."""
    found = plans.unbeaten(
        [
            rated("small", 0.2, 0.40, 0.15, stages=1),
            rated("large", 1.0, 0.60, 0.0, stages=1),
            rated("beaten variant", 1.1, 0.39, 0.16, stages=1),
            rated("cheap", 0.5, 0.55, 0.05),
            rated("dear", 0.6, 0.55, 0.06),
            rated("closer", 0.6, 0.54, 0.04),
        ]
    )
    assert [r.plan.name for r in found] == ["small", "large", "beaten variant", "cheap", "closer"]


def test_the_plans_of_a_catalog_are_chosen_and_certified() -> None:
    """Cheapest first, variants among them, with reach, floors, losses and measured cost."""
    found = plans.plans_of(VARIANTS, evidence(3, 450, 0.1)).kept
    costs = [r.cost for r in found]
    assert costs == sorted(costs)
    direct = {r.plan.name: r.plan for r in found if len(r.plan.variants) == 1}
    assert set(direct) == {"small", "large"}
    assert direct["large"].certified_loss == 0
    several = [r.plan for r in found if len(r.plan.variants) > 1]
    assert several
    for plan in several:
        assert plan.reach[0] == 1 > plan.reach[1] > 0
        assert plan.certificate.model_sha256 == (SMALL.sha256, LARGE.sha256)
        assert plan.certificate.paired is not None
        assert plan.certificate.paired.to == "large"


def test_plans_are_named_by_rank_and_cost_what_they_reach() -> None:
    """Relative to the largest variant: by the profiles on the search split, by measured CPU elsewhere."""
    asked = evidence(3, 450, 0.1)
    found = plans.plans_of(VARIANTS, replace(asked, reports=(asked.calibrate,)))
    assert 2 < len(found.kept) <= found.n_looked_at <= plans.MAX_PLANS
    for rated_plan in found.kept:
        plan = rated_plan.plan
        if len(plan.variants) == 1:
            cost = {"small": 0.2, "large": 1.0}[plan.name]
            assert plan.reach == ()
            assert rated_plan.cost == pytest.approx(cost)
            assert rated_plan.cpu == {"calibrate": pytest.approx(cost)}
            continue
        (threshold,) = plan.thresholds
        assert plan.name == f"cascade-1-2-t{threshold:.4f}"
        assert rated_plan.cost == pytest.approx(0.2 + plan.reach[1], abs=1e-3)
        small, large = map(served, population(450, 7)[:2])  # those of the calibrate split
        played = cascades.play(Chain(plan.variants, plan.thresholds), [small, large])
        assert rated_plan.cpu == {"calibrate": pytest.approx(0.2 + played.reach[1])}


def test_measured_cpu_time_is_given_only_where_it_is_known() -> None:
    """Of engines that do not count it there is none."""
    asked = evidence(3, 300, 0.1)

    def ask(name: str, questions: QuestionSet) -> tuple[list[Reading], list[float]]:
        return asked.ask(name, questions)[0], []

    silent = replace(asked, reports=(asked.calibrate,), ask=ask)
    assert {len(rated.cpu) for rated in plans.plans_of(VARIANTS, silent).kept} == {0}


def test_plans_that_are_certified_again_get_what_they_had() -> None:
    """By answers in place of readings; nothing is chosen, and delta is shared by these plans alone."""
    asked = evidence(3, 450, 0.1)
    kept = [rated_plan.plan for rated_plan in plans.plans_of(VARIANTS, asked).kept]
    said = {
        v.name: [answer_of(r, v.decoding) for r in asked.ask(v.name, asked.calibrate)[0]]
        for v in VARIANTS
    }
    again = plans.certified_as_they_are(kept, VARIANTS, said, asked)
    assert [plan.name for plan in again] == [plan.name for plan in kept]
    small, large = map(served, population(450, 7)[:2])
    for before, after in zip(kept, again, strict=True):
        ours, theirs = after.certificate, before.certificate
        assert (ours.f1, ours.n_contexts, ours.model_sha256) == (
            theirs.f1,
            theirs.n_contexts,
            theirs.model_sha256,
        )
        assert theirs.floor <= ours.floor < ours.f1
        assert ours.paired is not None
        assert theirs.paired is not None
        assert (ours.paired.to, ours.paired.f1_loss) == ("large", theirs.paired.f1_loss)
        assert after.certified_loss == 0 or after.name != "large"
        played = cascades.play(Chain(after.variants, after.thresholds), [small, large])
        assert after.reach == (
            tuple(round(share, 4) for share in played.reach) if after.thresholds else ()
        )


def test_one_variant_has_no_cascades() -> None:
    """Nor have more variants than there is room for plans."""
    found = plans.plans_of(VARIANTS[1:], evidence(3, 300, 0.1))
    assert [rated_plan.plan.name for rated_plan in found.kept] == ["large"]
    assert found.n_looked_at == 1


def test_cascades_run_from_cheap_to_dear_with_thresholds_at_quantiles() -> None:
    """Rounded to what a catalog says; equal thresholds are one cascade."""
    scores = [k / 10_000 for k in range(0, 10_001, 625)]  # quantiles are exact
    dear, cheap, middle = (
        VariantAnswers(name, np.zeros(17), np.array(scores), np.full(17, ms))
        for name, ms in (("dear", 9.0), ("cheap", 1.0), ("middle", 5.0))
    )
    found = list(cascades.chains([dear, cheap, middle]))
    stages = {chain.variants for chain in found}
    pairs = {("cheap", "middle"), ("cheap", "dear"), ("middle", "dear")}
    assert stages == pairs | {("cheap", "middle", "dear")}
    for names in stages:
        levels = [round(float(np.quantile(scores, q)), 4) for q in cascades.SHARES[len(names)]]
        thresholds = [chain.thresholds for chain in found if chain.variants == names]
        assert thresholds == list(product(sorted(set(levels)), repeat=len(names) - 1))
    same = [replace(a, score=np.full(17, 0.5)) for a in (dear, cheap)]
    assert list(cascades.chains(same)) == [Chain(("cheap", "dear"), (0.5,))]


def test_a_cascade_as_dear_as_the_dearest_variant_is_not_worth_certifying() -> None:
    """Asking twice of half of the questions would be best, and costs as much as `dear` alone."""
    good = answers("good", [1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1], 2)
    dear = answers("dear", [0, 0, 1, 1], [0.5] * 4, 4)
    for ms, best in ((2.0, 0.75), (1.9, 1.0)):
        said = [replace(good, cost_ms=np.full(4, ms)), dear]
        found = cascades.worth_certifying(said, np.full(4, 0.25), 30)
        played = [cascades.play(chain, said) for chain in found]
        assert {chain.variants for chain in found} == {("good", "dear")}
        assert max(p.f1.mean() for p in played) == best
        assert all(p.cost_ms.mean() < 4 for p in played)
    assert cascades.worth_certifying([good, dear], np.full(4, 0.25), 0) == []
