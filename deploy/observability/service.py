"""The dashboard *Service*: requests, their outcomes, and the SLOs that are met."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from deploy.observability import choices
from deploy.observability.panels import (
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Parts,
    Query,
    bars,
    heat,
    lines,
    number,
    page,
    row,
    stacked,
)

LATENCY, ACCURACY, QUEUE = (
    "BertierLatencyBudgetBurn",
    "BertierAccuracyBudgetBurn",
    "BertierQueueGrowth",
)
HERE = 'slo_class=~"$slo_class", instance=~"$instance"'
REQUESTS = f"bertier_requests_total{{{HERE}}}"
DURATION = f"bertier_request_duration_seconds_bucket{{{HERE}}}"
ATTAINMENT = ((None, RED), (0.95, YELLOW), (0.99, GREEN))
BOTH_OBJECTIVES = 'objective=~"latency|accuracy"'


def service() -> dashboard.Dashboard:
    """Return the dashboard."""
    description = (
        "Traffic, attainment and error budgets by SLO class, latency, decisions and refusals."
    )
    instance = choices.instance("Which gateways; error budgets are over all of them.")
    chosen = (choices.slo_class(), instance)
    panels = (
        *_now(),
        *_objectives(),
        *_traffic(),
        *_decisions(),
        *_savings(),
        *_refusals(),
        *_second_tries(),
    )
    return page("bertier-service", "bertier / Service", description, chosen, panels)


def _now() -> Parts:
    joint = f'bertier_slo_requests_total{{{HERE}, objective="joint"'
    return (
        number(
            "Requests/s",
            "Requests of any outcome, items of lists and streams counted one by one.",
            "reqps",
            Query(f"sum(rate({REQUESTS}[$__rate_interval]))"),
        ),
        number(
            "Joint attainment",
            "Share of requests, refused and failed ones included, that met both latency and floor, over"
            " the time shown.",
            "percentunit",
            Query(
                f"""sum(increase({joint}, outcome="met"}}[$__range]))
                  / (sum(increase({joint}}}[$__range])) > 0)""",
                instant=True,
            ),
            steps=ATTAINMENT,
            decimals=2,
        ),
        number(
            "P95 latency",
            "95 % of requests took less, failures included.",
            "s",
            Query(f"histogram_quantile(0.95, sum by (le) (rate({DURATION}[$__rate_interval])))"),
        ),
        number(
            "Refused or failed",
            "Share of requests without an answer because of load, the deadline or a model server.",
            "percentunit",
            Query(
                f"""(sum(rate(bertier_requests_total{{{HERE}, outcome=~"overloaded|deadline-exceeded|backend-.*|internal"}}[$__rate_interval])) or vector(0))
                  / sum(rate({REQUESTS}[$__rate_interval]))"""
            ),
            steps=((None, GREEN), (0.01, YELLOW), (0.05, RED)),
            runbook=LATENCY,
            decimals=2,
        ),
        number(
            "In flight",
            "Requests being answered now, on all gateways chosen.",
            "short",
            Query('sum(bertier_requests_in_flight{instance=~"$instance"})'),
            runbook=QUEUE,
        ),
        number(
            "Alerts firing",
            "Alerts of bertier that fire now, pages and tickets.",
            "short",
            Query(
                'count(ALERTS{alertname=~"Bertier.*", alertstate="firing"}) or vector(0)',
                instant=True,
            ),
            steps=((None, GREEN), (1, RED)),
        ),
    )


def _objectives() -> Parts:
    return (
        row("Service level objectives"),
        lines(
            "Attainment by class",
            "Share of requests that met the objective, over five minutes and all gateways. Joint: both"
            " latency and floor.",
            "percentunit",
            Query(
                '1 - bertier:slo_violated:ratio_rate5m{slo_class=~"$slo_class"}',
                "{{slo_class}} {{objective}}",
            ),
            bounds=(None, 1),
            runbook=LATENCY,
        ),
        bars(
            "Error budget left, 30 days",
            "What is left of the requests that may miss the objective, by"
            " deploy/prometheus/rules/objectives.yml. Below 0: the objective is missed.",
            "percentunit",
            Query(
                f'1 - bertier:slo_burn:ratio_rate30d{{slo_class=~"$slo_class", {BOTH_OBJECTIVES}}}',
                "{{slo_class}} {{objective}}",
                instant=True,
            ),
            steps=((None, RED), (0, ORANGE), (0.25, GREEN)),
            bounds=(-1, 1),
            runbook=LATENCY,
        ),
        lines(
            "Burn rate, one hour",
            "How many times too fast the budget is used: 1 lasts a month. The dashed lines are the limits for"
            " a ticket (1, over days) and for a page (6 over six hours, 14.4 over one).",
            "short",
            Query(
                f'bertier:slo_burn:ratio_rate1h{{slo_class=~"$slo_class", {BOTH_OBJECTIVES}}}',
                "{{slo_class}} {{objective}}",
            ),
            limits=((1, YELLOW), (6, ORANGE), (14.4, RED)),
            runbook=ACCURACY,
        ),
    )


def _traffic() -> Parts:
    per_stage = 'bertier_stage_duration_seconds_{}{{instance=~"$instance"}}[$__rate_interval]'
    return (
        row("Traffic and latency"),
        stacked(
            "Traffic by class",
            "Requests per second by SLO class and frontend.",
            "reqps",
            Query(
                f"sum by (slo_class, frontend) (rate({REQUESTS}[$__rate_interval]))",
                "{{slo_class}} {{frontend}}",
            ),
        ),
        stacked(
            "Requests by outcome",
            "ok, gone (the caller left), or the kind of failure: docs/reference/api.md, Failures.",
            "reqps",
            Query(f"sum by (outcome) (rate({REQUESTS}[$__rate_interval]))", "{{outcome}}"),
            runbook=LATENCY,
        ),
        stacked(
            "Time per stage",
            "Mean time of an answered request by stage. queue: waiting in the gateway; Triton's"
            " own queue is in infer.",
            "s",
            Query(
                f"sum by (stage) (rate({per_stage.format('sum')})) / sum by (stage) (rate({per_stage.format('count')}))",
                "{{stage}}",
            ),
        ),
        heat(
            "Latency",
            "Number of requests by duration, failures included.",
            "s",
            f"sum by (le) (increase({DURATION}[$__rate_interval]))",
            runbook=LATENCY,
        ),
        lines(
            "Latency by class",
            "P50, P95 and P99 of the requests of each class, failures included.",
            "s",
            *(
                Query(
                    f"histogram_quantile({q}, sum by (slo_class, le) (rate({DURATION}[$__rate_interval])))",
                    f"{{{{slo_class}}}} P{round(100 * q)}",
                )
                for q in (0.5, 0.95, 0.99)
            ),
            span=12,
            runbook=LATENCY,
        ),
        stacked(
            "Traffic by task",
            "Requests per second by task: qa, or a classification; unknown: failed before it was known.",
            "reqps",
            Query(f"sum by (task) (rate({REQUESTS}[$__rate_interval]))", "{{task}}"),
            span=12,
        ),
        lines(
            "P95 latency by task",
            "95 % of the requests of the task took less, failures included.",
            "s",
            Query(
                f"histogram_quantile(0.95, sum by (task, le) (rate({DURATION}[$__rate_interval])))",
                "{{task}}",
            ),
            span=12,
            runbook=LATENCY,
        ),
    )


def _decisions() -> Parts:
    decided = f"bertier_decisions_total{{{HERE}}}"
    chosen = f'bertier_decisions_total{{{HERE}, plan!="none"}}'
    return (
        row("Decisions"),
        stacked(
            "Decisions by reason",
            "Why a plan was chosen or the request refused. All but meets_slo are fallbacks or refusals:"
            " docs/explanation/routing.md, What is chosen.",
            "reqps",
            Query(f"sum by (reason) (rate({decided}[$__rate_interval]))", "{{reason}}"),
            runbook=ACCURACY,
        ),
        stacked(
            "Plan mix",
            "Shares of the plans that answer. Smaller ones take over as load grows.",
            "reqps",
            Query(f"sum by (plan) (rate({chosen}[$__rate_interval]))", "{{plan}}"),
            share=True,
        ),
        stacked(
            "SLO violations",
            "Answers that did not meet their SLO, by violation; an answer with two counts twice.",
            "reqps",
            Query(
                f'sum by (outcome) (rate(bertier_slo_outcomes_total{{{HERE}, outcome!="met"}}[$__rate_interval]))',
                "{{outcome}}",
            ),
            runbook=ACCURACY,
        ),
    )


def _savings() -> Parts:
    compute, largest = (
        f"sum by (slo_class) (rate(bertier_{name}_seconds_total{{{HERE}}}[$__rate_interval]))"
        for name in ("compute", "largest_compute")
    )
    cached = 'bertier_cache_requests_total{instance=~"$instance"}'
    return (
        row("What smaller models save"),
        lines(
            "Compute saved",
            "Share of the compute that the largest variant would have needed for the same answers.",
            "percentunit",
            Query(f"1 - {compute} / ({largest} > 0)", "{{slo_class}}"),
        ),
        lines(
            "Cores saved",
            "Cores that would be busy with the largest variant, less those that are.",
            "short",
            Query(f"{largest} - {compute}", "{{slo_class}}"),
        ),
        stacked(
            "Response cache",
            "Questions at the response cache, if it is on: answered from it, answered by a model, or past it.",
            "reqps",
            Query(f"sum by (outcome) (rate({cached}[$__rate_interval]))", "{{outcome}}"),
        ),
    )


def _refusals() -> Parts:
    refused = f'bertier_decisions_total{{{HERE}, plan="none"}}'
    return (
        stacked(
            "Refused by the policy",
            "Requests refused once their size was known: shed and busy under load, infeasible when no idle"
            " system could meet a strict SLO, too_late and unavailable otherwise.",
            "reqps",
            Query(
                f"sum by (slo_class, reason) (rate({refused}[$__rate_interval]))",
                "{{slo_class}} {{reason}}",
            ),
            runbook=QUEUE,
        ),
        stacked(
            "Refused by admission control",
            "Requests refused before their bodies were read: full (too many in flight), strict (cannot be met"
            " now), unreachable (no plan is predicted to answer by the deadline).",
            "reqps",
            Query(
                'sum by (frontend, reason) (rate(bertier_sheds_total{instance=~"$instance"}[$__rate_interval]))',
                "{{frontend}} {{reason}}",
            ),
            runbook=QUEUE,
        ),
    )


def _second_tries() -> Parts:
    return (
        stacked(
            "Retries",
            "Requests whose first variant failed: retried with another, or not, because no plan or no retry budget"
            " was left.",
            "reqps",
            Query(
                'sum by (outcome) (rate(bertier_retries_total{instance=~"$instance"}[$__rate_interval]))',
                "{{outcome}}",
            ),
            runbook="BertierBreakerOpen",
        ),
        stacked(
            "Partial answers",
            "Answers from a part of a long context, because there was no time for all of it.",
            "reqps",
            Query(
                f"sum by (slo_class) (rate(bertier_partial_answers_total{{{HERE}}}[$__rate_interval]))",
                "{{slo_class}}",
            ),
            span=24,
            runbook=ACCURACY,
        ),
    )
