"""The dashboard *Gateway*: API keys, files that serving depends on, and the processes."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from deploy.observability import choices
from deploy.observability.panels import (
    GREEN,
    ORANGE,
    RED,
    Parts,
    Query,
    lines,
    number,
    page,
    row,
    stacked,
)

HERE = 'instance=~"$instance"'
ENDS, REFUSED, LOST = "BertierTlsCertificateEnds", "BertierReloadRefused", "BertierLogLinesLost"
DAY_S = 86_400.0


def gateway() -> dashboard.Dashboard:
    """Return the dashboard."""
    description = "API keys and quotas, reloaded files, the TLS certificate, the log, the decision log, and each process."
    return page(
        "bertier-gateway",
        "bertier / Gateway",
        description,
        (choices.instance(),),
        (*_files(), *_access(), *_process()),
    )


def _files() -> Parts:
    bad = ((None, GREEN), (1, RED))
    return (
        row("What serving depends on"),
        number(
            "TLS certificate ends in",
            "Time until the first certificate of the chosen gateways expires; no data: none uses TLS.",
            "s",
            Query(f"min(bertier_certificate_end_timestamp_seconds{{{HERE}}} > 0) - time()"),
            steps=((None, RED), (2 * DAY_S, ORANGE), (14 * DAY_S, GREEN)),
            span=6,
            runbook=ENDS,
        ),
        number(
            "Files refused",
            "Files of keys and certificates that cannot be used; their previous contents stay in use.",
            "short",
            Query(f"sum(bertier_reload_refused{{{HERE}}})"),
            steps=bad,
            span=4,
            runbook=REFUSED,
        ),
        number(
            "Files reloaded",
            "Reloads of changed keys or certificates, over the time shown.",
            "short",
            Query(
                f'sum(increase(bertier_reloads_total{{{HERE}, result="loaded"}}[$__range]))',
                instant=True,
            ),
            span=4,
            decimals=0,
        ),
        number(
            "Log lines lost",
            "Lines of the log that could not be written, over the time shown.",
            "short",
            Query(f"sum(increase(bertier_log_lines_lost_total{{{HERE}}}[$__range]))", instant=True),
            steps=bad,
            span=5,
            runbook=LOST,
            decimals=0,
        ),
        number(
            "Decisions lost",
            "Lines of the decision log that could not be written, over the time shown: a full disk.",
            "short",
            Query(f"sum(increase(bertier_decisions_lost_total{{{HERE}}}[$__range]))", instant=True),
            steps=bad,
            span=5,
            decimals=0,
        ),
    )


def _access() -> Parts:
    keys = f"bertier_key_requests_total{{{HERE}"
    return (
        row("Who asks"),
        stacked(
            "Questions by key",
            "Admitted questions per second by API key.",
            "reqps",
            Query(
                f'sum by (key) (rate({keys}, outcome="admitted"}}[$__rate_interval]))', "{{key}}"
            ),
        ),
        stacked(
            "Beyond the quota",
            "Questions per second that were refused because their key exceeded its quota.",
            "reqps",
            Query(f'sum by (key) (rate({keys}, outcome="quota"}}[$__rate_interval]))', "{{key}}"),
        ),
        stacked(
            "Denied requests",
            "Requests without a key (missing), with an unknown key, or with a key that lacks the scope.",
            "reqps",
            Query(
                f"sum by (frontend, reason) (rate(bertier_denied_total{{{HERE}}}[$__rate_interval]))",
                "{{frontend}} {{reason}}",
            ),
            runbook=REFUSED,
        ),
    )


def _process() -> Parts:
    here = f'job="bertier", {HERE}'
    return (
        row("Processes"),
        lines(
            "CPU",
            "Cores used by each gateway, without its Triton. One event loop cannot use more than about one.",
            "short",
            Query(
                f"rate(process_cpu_seconds_total{{{here}}}[$__rate_interval])",
                "{{instance}}",
            ),
            limits=((1, RED),),
        ),
        lines(
            "Memory",
            "Resident memory of each gateway, without its Triton.",
            "bytes",
            Query(f"process_resident_memory_bytes{{{here}}}", "{{instance}}"),
        ),
        lines(
            "Open files",
            "Sockets and files of each gateway, as a share of its limit.",
            "percentunit",
            Query(
                f"process_open_fds{{{here}}} / process_max_fds{{{here}}}",
                "{{instance}}",
            ),
            bounds=(0, 1),
        ),
    )
