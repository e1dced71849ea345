"""The dashboard *Accuracy*: whether certificates hold for the questions that are asked."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from deploy.observability import choices
from deploy.observability.panels import (
    GREEN,
    RED,
    YELLOW,
    Parts,
    Query,
    bars,
    lines,
    number,
    page,
    row,
    stacked,
    variable,
)

PLAN = 'plan=~"$plan", instance=~"$instance"'
VARIANT = 'variant=~"$variant", instance=~"$instance"'
BUDGET, BROKEN = "BertierAccuracyBudgetBurn", "BertierCertificateBroken"
SHIFTED = "BertierConfidenceShifted"
BEYOND_DOUBT = ((None, GREEN), (1, RED))


def accuracy() -> dashboard.Dashboard:
    """Return the dashboard."""
    description = "Certified floors, answers below them, cascades, shadow answers, and evidence against certificates."
    chosen = (
        choices.slo_class(),
        variable(
            "plan",
            "Plan",
            "Plans of the catalog.",
            "label_values(bertier_plan_certified_f1, plan)",
        ),
        choices.variant(),
        choices.instance(),
    )
    panels = (*_floors(), *_cascades(), *_shadows(), *_confidence(), *_rollouts())
    return page("bertier-accuracy", "bertier / Accuracy", description, chosen, panels)


def _floors() -> Parts:
    return (
        row("Floors"),
        bars(
            "Certified floor",
            "F1 that each plan is certified for, as served; jointly for all plans at the confidence in the"
            " catalog.",
            "percentunit",
            Query(f"max by (plan) (bertier_plan_certified_f1{{{PLAN}}})", "{{plan}}", instant=True),
            steps=((None, GREEN),),
        ),
        lines(
            "Floor met",
            "Share of requests answered by a plan certified for the floor asked for, by class, over five"
            " minutes and all gateways; failures count as missed.",
            "percentunit",
            Query(
                '1 - bertier:slo_violated:ratio_rate5m{slo_class=~"$slo_class", objective="accuracy"}',
                "{{slo_class}}",
            ),
            bounds=(None, 1),
            runbook=BUDGET,
        ),
        stacked(
            "Below the floor, or uncertified here",
            "Answers per second whose plan was not certified for the floor asked for, or not on this host.",
            "reqps",
            Query(
                'sum by (slo_class, outcome) (rate(bertier_slo_outcomes_total{slo_class=~"$slo_class",'
                ' instance=~"$instance", outcome=~"below-floor|uncertified|escalation-cut"}[$__rate_interval]))',
                "{{slo_class}} {{outcome}}",
            ),
            runbook=BUDGET,
        ),
    )


def _cascades() -> Parts:
    left = f"bertier_escalations_total{{{PLAN}"
    return (
        row("Cascades"),
        stacked(
            "Stages completed",
            "Stages of cascades per second: kept (the score was high enough), escalated (the next variant was"
            " asked), cut (the score was low, but there was no time or the variant failed).",
            "reqps",
            Query(
                f"sum by (plan, outcome) (rate({left}}}[$__rate_interval]))", "{{plan}} {{outcome}}"
            ),
            span=12,
            runbook=BUDGET,
        ),
        lines(
            "Low scores",
            "Share of stages whose score was below the threshold: what escalation costs. A jump means that"
            " the questions changed.",
            "percentunit",
            Query(
                f'sum by (plan) (rate({left}, outcome!="kept"}}[$__rate_interval])) / sum by (plan) (rate({left}}}[$__rate_interval]))',
                "{{plan}}",
            ),
            span=12,
            bounds=(0, 1),
        ),
    )


def _shadows() -> Parts:
    answered = f"bertier_shadow_total{{{PLAN}"
    return (
        row("Shadow answers: a sample asked of the largest variant, too"),
        number(
            "Certificates broken",
            "Plans that agree significantly less with the largest variant than certified. They are not"
            " trusted until they are certified again.",
            "short",
            Query(f"count(max by (plan) (bertier_certificate_broken{{{PLAN}}}) == 1) or vector(0)"),
            steps=BEYOND_DOUBT,
            runbook=BROKEN,
        ),
        lines(
            "Evidence against certificates",
            "log10 of the e-value that a plan agrees less than certified: 0 is none, 2 is 100 to 1. The"
            " alarm is at `alarm_at` of /v1/variants.",
            "short",
            Query(f"max by (plan) (bertier_certificate_evidence{{{PLAN}}})", "{{plan}}"),
            bounds=(None, None),
            limits=((1, YELLOW), (2, RED)),
            span=10,
            runbook=BROKEN,
        ),
        lines(
            "Agreement",
            "Share of shadow answers that agree with the largest variant, including where neither answers.",
            "percentunit",
            Query(
                f'sum by (plan) (rate({answered}, outcome=~"agreed|both_silent"}}[$__rate_interval]))'
                f' / sum by (plan) (rate({answered}, outcome=~"agreed|both_silent|disagreed"}}[$__rate_interval]))',
                "{{plan}}",
            ),
            bounds=(None, 1),
            span=10,
            runbook=BROKEN,
        ),
        stacked(
            "Shadow requests",
            "Sampled requests per second by result; dropped: no capacity for the shadow answer.",
            "reqps",
            Query(f"sum by (outcome) (rate({answered}}}[$__rate_interval]))", "{{outcome}}"),
            span=24,
        ),
    )


def _confidence() -> Parts:
    return (
        row("Confidence: is what is asked like what was certified on?"),
        number(
            "Variants shifted",
            "Variants whose confidence differs significantly from the certified data: the questions or texts"
            " have changed. Routing does not change.",
            "short",
            Query(
                f"count(max by (variant) (bertier_confidence_shifted{{{VARIANT}}}) == 1) or vector(0)"
            ),
            steps=BEYOND_DOUBT,
            runbook=SHIFTED,
        ),
        lines(
            "Evidence of a shift",
            "log10 of the e-value that a variant's confidence differs from the certified data: 0 is none, 2 is"
            " 100 to 1.",
            "short",
            Query(f"max by (variant) (bertier_confidence_shift{{{VARIANT}}})", "{{variant}}"),
            bounds=(None, None),
            limits=((1, YELLOW), (2, RED)),
            span=20,
            runbook=SHIFTED,
        ),
    )


def _rollouts() -> Parts:
    answered = 'bertier_rollout_duration_seconds_count{instance=~"$instance"'
    return (
        row("Candidate catalog, while one is tried"),
        lines(
            "SLO met",
            "Share of requests that met their SLO, by the catalog that answered; both met the same load.",
            "percentunit",
            Query(
                f'sum by (catalog) (rate({answered}, outcome="met"}}[$__rate_interval]))'
                f" / sum by (catalog) (rate({answered}}}[$__rate_interval]))",
                "{{catalog}}",
            ),
            bounds=(None, 1),
            span=12,
        ),
        lines(
            "Evidence",
            "log10 of the e-value that the candidate is worse, or no worse by more than the margin. Worse:"
            " withdrawn at 1.8 (`shown_at` of /readyz); no worse in all rates: shown at 1.3.",
            "short",
            Query(
                'max by (rate, claim) (bertier_rollout_evidence{instance=~"$instance"})',
                "{{rate}} {{claim}}",
            ),
            bounds=(None, None),
            limits=((1.3, YELLOW), (1.8, RED)),
            span=12,
        ),
    )
