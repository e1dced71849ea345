"""The dashboard *Models*: what each variant does, waits for, and was predicted to do."""

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

HERE = 'variant=~"$variant", instance=~"$instance"'
ONE_IS_GOOD, ONE_IS_BAD = ((None, RED), (1, GREEN)), ((None, GREEN), (1, RED))
OFF, OPEN, REFUSED = "BertierPredictionCoverageOff", "BertierBreakerOpen", "BertierCatalogRefused"


def models() -> dashboard.Dashboard:
    """Return the dashboard."""
    description = "Each variant: throughput, windows, queue, padding, state, and latency predicted against actual."
    chosen = (choices.variant(), choices.instance())
    panels = (*_state(), *_checks(), *_servers(), *_work(), *_predictions())
    return page("bertier-models", "bertier / Models", description, chosen, panels)


def _state() -> Parts:
    return (
        row("State"),
        number(
            "Variants served",
            "Variants that all chosen gateways route to.",
            "short",
            Query(
                f"count(min by (variant) (sum by (instance, variant) (bertier_variant_up{{{HERE}}})) == 1) or vector(0)"
            ),
            steps=ONE_IS_GOOD,
            span=6,
            runbook=REFUSED,
        ),
        number(
            "Variants failing",
            "Variants whose circuit breaker is open or being probed at some gateway.",
            "short",
            Query(f"count(max by (variant) (bertier_breaker_open{{{HERE}}}) == 1) or vector(0)"),
            steps=ONE_IS_BAD,
            span=6,
            runbook=OPEN,
        ),
        number(
            "Gateways that refuse the catalog",
            "Gateways that do not serve the catalog published last; /readyz says why.",
            "short",
            Query('sum(bertier_catalog_refused{instance=~"$instance"})'),
            steps=ONE_IS_BAD,
            span=6,
            runbook=REFUSED,
        ),
        number(
            "Restarts of Triton",
            "Restarts of a supervised Triton, over the time shown.",
            "short",
            Query(
                'sum(increase(bertier_backend_restarts_total{instance=~"$instance"}[$__range]))',
                instant=True,
            ),
            steps=ONE_IS_BAD,
            span=6,
            runbook="BertierBackendDown",
            decimals=0,
        ),
    )


def _checks() -> Parts:
    return (
        stacked(
            "Trust",
            "Gateways that route to each variant, by trust in its certificate there: certified,"
            " transferred (other host), uncertified; none: not served.",
            "short",
            Query(
                f"sum by (variant, trust) (bertier_variant_up{{{HERE}}})", "{{variant}} {{trust}}"
            ),
            span=12,
            runbook=REFUSED,
        ),
        bars(
            "File matches the catalog",
            "1: on every gateway the variant's file in the model server has the catalog's sha256.",
            "short",
            Query(
                f"min by (variant) (bertier_variant_hash_matches{{{HERE}}})",
                "{{variant}}",
                instant=True,
            ),
            steps=ONE_IS_GOOD,
            span=6,
            runbook=REFUSED,
        ),
        lines(
            "Circuits opened",
            "Changes to open per hour: the variant failed and got no requests.",
            "short",
            Query(
                f'sum by (variant) (increase(bertier_breaker_changes_total{{{HERE}, state="open"}}[1h]))',
                "{{variant}}",
            ),
            span=6,
            runbook=OPEN,
        ),
    )


def _servers() -> Parts:
    return (
        lines(
            "Model servers ready",
            "1: the gateway's model server is ready.",
            "short",
            Query(
                'min by (instance, backend) (bertier_backend_up{instance=~"$instance"})',
                "{{instance}} {{backend}}",
            ),
            span=12,
            bounds=(0, 1),
            runbook="BertierBackendDown",
        ),
        lines(
            "Catalogs noticed",
            "New catalogs per hour: switched to, or refused.",
            "short",
            Query(
                'sum by (result) (increase(bertier_catalog_switches_total{instance=~"$instance"}[1h]))',
                "{{result}}",
            ),
            span=12,
            runbook=REFUSED,
        ),
    )


def _work() -> Parts:
    tokens = f"bertier_tokens_total{{{HERE}"
    sent = f"{{{HERE}}}[$__rate_interval]"
    return (
        row("Work"),
        stacked(
            "Throughput",
            "Stages per second answered by each variant; a cascade asks several for one request.",
            "reqps",
            Query(
                f"sum by (variant) (rate(bertier_inference_duration_seconds_count{{{HERE}}}[$__rate_interval]))",
                "{{variant}}",
            ),
        ),
        lines(
            "Inference P95",
            "95 % of inferences took less, from sending the request to the model server to its logits,"
            " including its queue.",
            "s",
            Query(
                f"histogram_quantile(0.95, sum by (variant, le) (rate(bertier_inference_duration_seconds_bucket{{{HERE}}}[$__rate_interval])))",
                "{{variant}}",
            ),
        ),
        lines(
            "Windows per request to the server",
            "Mean number of windows in one request: 1 where answers depend on the batch, up to 8 elsewhere."
            " Triton's own batches are on the dashboard Triton.",
            "short",
            Query(
                f"sum by (variant) (rate(bertier_batch_windows_sum{sent})) / sum by (variant) (rate(bertier_batch_windows_count{sent}))",
                "{{variant}}",
            ),
        ),
        lines(
            "Windows pending",
            "Windows running or waiting at each variant, over the chosen gateways.",
            "short",
            Query(f"sum by (variant) (bertier_windows_pending{{{HERE}}})", "{{variant}}"),
            runbook="BertierQueueGrowth",
        ),
        lines(
            "Predicted wait",
            "Wait of a typical request behind the work in flight: the longest of the gateways.",
            "s",
            Query(f"max by (variant) (bertier_queue_wait_seconds{{{HERE}}})", "{{variant}}"),
            runbook="BertierQueueGrowth",
        ),
        lines(
            "Padding",
            "Share of the tokens sent that only pad to a length bucket: wasted compute.",
            "percentunit",
            Query(
                f'sum by (variant) (rate({tokens}, kind="padding"}}[$__rate_interval])) / sum by (variant) (rate({tokens}}}[$__rate_interval]))',
                "{{variant}}",
            ),
            limits=((0.5, ORANGE),),
            bounds=(0, 1),
        ),
    )


def _predictions() -> Parts:
    predicted = f"bertier_latency_predictions_total{{{HERE}"
    ratio = f"bertier_latency_prediction_ratio_bucket{{{HERE}}}[$__rate_interval]"
    return (
        row("Predicted against actual"),
        lines(
            "Within the predicted quantile",
            "Share of answers within the latency predicted for 95 and for 99 % of them. Below the nominal"
            " share SLOs are violated; far above it requests get smaller models than they need.",
            "percentunit",
            *(
                Query(
                    f"""1 - (sum by (variant) (rate({predicted}, quantile="{q}", outcome="beyond"}}[$__rate_interval]))
                          or 0 * sum by (variant) (rate({predicted}, quantile="{q}"}}[$__rate_interval])))
                      / sum by (variant) (rate({predicted}, quantile="{q}"}}[$__rate_interval]))""",
                    f"{{{{variant}}}} P{q[2:]}",
                )
                for q in ("0.95", "0.99")
            ),
            limits=((0.9, RED), (0.93, YELLOW)),
            bounds=(None, 1),
            runbook=OFF,
        ),
        lines(
            "Answered / predicted",
            "Time from the decision to the answer over its predicted P95: median and 95th percentile. The"
            " latter should be near 1.",
            "short",
            *(
                Query(
                    f"histogram_quantile({q}, sum by (variant, le) (rate({ratio})))",
                    f"{{{{variant}}}} P{round(100 * q)}",
                )
                for q in (0.5, 0.95)
            ),
            limits=((1, YELLOW),),
            runbook=OFF,
        ),
        heat(
            "Answered / predicted, all variants",
            "Number of answers by their share of the predicted P95; above 1 they took longer than predicted.",
            "short",
            f"sum by (le) (increase({ratio}))",
            span=8,
            runbook=OFF,
        ),
    )
