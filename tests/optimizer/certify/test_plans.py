"""Which share of delta each plan's floor gets, and what a plan costs: worked out by hand.

On the calibrate questions every answer is right. Hoeffding-Bentkus' floor is then the n-th root of its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gateway.catalog.schema import Cell, Decoding, Plan, Variant
from gateway.domain import Span
from gateway.qa.codec import Reading, answer_of
from optimizer.certify import cascades, certification, plans
from optimizer.certify.bounds import hoeffding_bentkus_floor
from optimizer.certify.certification import Evidence, QuestionSet, Shares
from optimizer.certify.plans import RatedPlan
from optimizer.certify.strata import rounded_down
from optimizer.data.question_sets import Example
from optimizer.study.config import CertifyConfig
from tests.fakes import make_plan, make_variant, with_loss

BY_SCORE = Decoding(score_weights=((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)))
N_SEARCH, N = 40, 6
SPENT = 0.08
MS = {"small": 2.0, "middle": 5.0, "large": 10.0}
SMALL, MIDDLE, LARGE = (
    replace(make_variant(name, ms, sha256=name), decoding=BY_SCORE) for name, ms in MS.items()
)
RIGHT_OF = {
    "small": 0.5,
    "middle": 0.8,
    "large": 1.0,
}  # share of the search questions, the same first


def question_set(name: str, n: int) -> QuestionSet:
    asked = [Example(f"{name}{i}", "q", f"{name} {i}", (), (), "") for i in range(n)]
    return QuestionSet(name, asked, np.full(n, 60), np.full(n, 64), np.full(n, 1))


def ask(name: str, asked: QuestionSet) -> tuple[list[Reading], list[float]]:
    """Return surer readings of the first questions; except for `calibrate`, only those are right."""
    n = len(asked.examples)
    right = n if asked.name == "calibrate" else RIGHT_OF[name] * n
    found = []
    for i in range(n):
        sure = 0.9 - 0.8 * i / n
        spans = Span("wrong", 0, 5, sure, 0.0), Span("other", 6, 11, 1 - sure, -1.0)
        found.append(Reading(spans, 1.0 if i < right else -1.0))
    return found, [MS[name] * 3] * n


def evidence(*reports: QuestionSet, calibrate: QuestionSet | None = None) -> Evidence:
    how = CertifyConfig(delta=0.1, method="hoeffding-bentkus")
    calibrate = calibrate or question_set("calibrate", N)
    return Evidence(question_set("search", N_SEARCH), calibrate, reports, ask, how, "", "", SPENT)


def share_of(plan: Plan, each: Shares) -> float:
    if len(plan.variants) > 1:
        return each.others
    return each.largest if plan.name == "large" else each.own


def check(found: Sequence[Plan], each: Shares) -> None:
    """Every floor of every plan is the sixth root of its share."""
    loss = 1 - 2 * hoeffding_bentkus_floor(np.full(N, 0.5), each.others)
    for plan in found:
        certificate = plan.certificate
        assert certificate.floor == rounded_down(share_of(plan, each) ** (1 / N)), plan.name
        assert {s.floor for s in certificate.strata} == {rounded_down(each.parts ** (1 / N))}
        assert certificate.model_sha256 == plan.variants
        assert certificate.paired is not None
        assert certificate.paired.to == "large"
        wanted = 0.0 if plan.name == "large" else certification.rounded_up(loss)
        assert certificate.paired.loss == wanted


@pytest.mark.parametrize("order", [(SMALL, MIDDLE, LARGE), (LARGE, SMALL, MIDDLE)])
def test_each_plan_is_certified_with_its_share(order: tuple[Variant, ...]) -> None:
    """The largest variant's is its own, wherever it stands; all plans looked at have one, kept or not."""
    found = plans.plans_of(order, evidence())
    kept = [rated.plan for rated in found.kept]
    n_cascades = found.n_looked_at - 3
    assert 0 < n_cascades <= cascades.CANDIDATES
    check(kept, certification.shares(3, n_cascades, SPENT, 2))
    assert {p.name for p in kept if len(p.variants) == 1} == {"small", "middle", "large"}


def test_a_cascade_is_named_by_ranks_of_cost_and_thresholds() -> None:
    """So that the same cascade has the same name in every order of the variants."""
    ranks = {"small": "1", "middle": "2", "large": "3"}
    for order in ((SMALL, MIDDLE, LARGE), (LARGE, SMALL, MIDDLE)):
        found = plans.plans_of(order, evidence(calibrate=question_set("as the search", 60))).kept
        several = [rated.plan for rated in found if rated.plan.thresholds]
        assert several
        for plan in several:
            stages = "-".join(ranks[name] for name in plan.variants)
            thresholds = "".join(f"-t{t:.4f}" for t in plan.thresholds)
            assert plan.name == f"cascade-{stages}{thresholds}"


def test_the_reach_of_a_cascade_is_the_share_of_unsure_answers() -> None:
    """Compute is counted by it; a single variant is always asked, and has none."""
    asked = evidence(calibrate=question_set("as the search", 60))
    for rated in plans.plans_of((SMALL, LARGE), asked).kept:
        plan = rated.plan
        scores = [answer_of(r, BY_SCORE).score for r in ask(plan.variants[0], asked.search)[0]]
        unsure = [float(np.mean([s < t for s in scores])) for t in plan.thresholds]
        assert plan.reach == ((1.0, *unsure) if unsure else ())
    names = [rated.plan.name for rated in plans.plans_of((SMALL, LARGE), asked).kept]
    assert any(name.startswith("cascade") for name in names)


def test_plans_certified_again_share_delta_among_themselves_or_as_was_looked_at() -> None:
    """With `n_cascades` that were looked at the floors are lower; fewer than there are change nothing."""
    alone = [make_plan(variant, 0.5) for variant in (SMALL, LARGE)]
    pair = ("small", "large")
    kept = [
        *alone,
        *(replace(alone[0], name=f"{t}", variants=pair, thresholds=(t,)) for t in (0.2, 0.4)),
    ]
    asked = evidence()
    said = {
        v.name: [answer_of(r, v.decoding) for r in ask(v.name, asked.calibrate)[0]]
        for v in (SMALL, LARGE)
    }
    for n_cascades, counted in ((0, 2), (1, 2), (12, 12)):
        again = plans.certified_as_they_are(kept, (SMALL, LARGE), said, asked, n_cascades)
        assert [plan.name for plan in again] == [plan.name for plan in kept]
        check(again, certification.shares(2, counted, SPENT, 2))


@pytest.mark.parametrize(
    ("n_variants", "n_cascades"), [(0, 0), (1, 0), (2, 12), (8, 12), (9, 11), (20, 0), (25, 0)]
)
def test_what_an_earlier_version_may_have_looked_at(n_variants: int, n_cascades: int) -> None:
    """Twelve cascades, twenty plans at most; of one variant none."""
    assert plans.most_cascades(n_variants) == n_cascades


def test_a_plan_costs_its_buckets_and_windows() -> None:
    """Of a short question and one of three windows: (1 + 3 * 4) / 2 beside (10 + 3 * 10) / 2."""
    cells = (Cell(64, 1, 1.0, 2.0, 3.0), Cell(384, 1, 4.0, 5.0, 6.0))
    small = replace(SMALL, profile=replace(SMALL.profile, cells=cells))
    search = replace(
        question_set("search", 2), buckets=np.array([64, 384]), windows=np.array([1, 3])
    )
    found = plans.plans_of((small, LARGE), replace(evidence(), search=search)).kept
    cost = {rated.plan.name: rated.cost for rated in found}
    assert cost["small"] == pytest.approx(6.5 / 20)
    assert cost["large"] == 1.0


def test_cpu_time_is_relative_to_the_largest_and_needs_every_stage() -> None:
    """An engine that does not count the small one's time leaves the large one's alone."""
    report, calibrate = question_set("report", N), question_set("as the search", 60)
    for known in (True, False):

        def some(
            name: str, asked: QuestionSet, known: bool = known
        ) -> tuple[list[Reading], list[float]]:
            readings, cpu_ms = ask(name, asked)
            return readings, cpu_ms if known or name != "small" else []

        found = plans.plans_of(
            (SMALL, LARGE), replace(evidence(report, calibrate=calibrate), ask=some)
        ).kept
        cpu = {rated.plan.name: dict(rated.cpu) for rated in found}
        assert cpu["large"] == {"report": 1.0}
        assert cpu["small"] == ({"report": pytest.approx(0.2)} if known else {})
        assert {bool(of) for name, of in cpu.items() if "-" in name} == {known}


def test_a_cascade_without_a_certified_loss_counts_as_one_that_loses_all() -> None:
    """It is beaten by an equal one whose loss is known, and beats none by it."""
    plan = make_plan(SMALL, 0.5)

    def rated(name: str, certificate_of: Plan) -> RatedPlan:
        cascade = Plan(name, ("small", "large"), (0.5,), certificate_of.certificate)
        return RatedPlan(cascade, 0.5, {})

    unknown, known = rated("unknown", plan), rated("known", with_loss(plan, 0.9))
    worst = rated("worst", with_loss(plan, 1.0))
    assert plans.unbeaten([unknown, known]) == [known]
    assert plans.unbeaten([unknown, worst]) == [
        unknown,
        worst,
    ]  # equal plans do not beat each other
