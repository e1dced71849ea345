"""Rules and alerts: valid, reachable, documented, and firing on what they must and on nothing else."""

from __future__ import annotations

import pytest

from gateway.slo import STANDARD_CLASSES
from tests.deploy.prometheus_files import (
    ALERTMANAGER,
    PROMETHEUS,
    RUNBOOKS,
    Rule,
    alerts,
    checked,
    rules,
)

ALERTS = [pytest.param(alert, id=alert["alert"]) for alert in alerts()]
FASTEST_BURN = 14.4
WHERE = "{{ $externalLabels.runbooks }}"


def test_prometheus_takes_its_configuration_and_every_rule() -> None:
    """A rule with a mistake would keep Prometheus from starting."""
    said = checked("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert "4 rule files found" in said


@pytest.mark.parametrize("name", ["budgets", "parts"])
def test_alerts_fire_on_what_they_must_and_on_nothing_else(name: str) -> None:
    """A burst pages, a blip does not: the series are in the file, with what is to come of them."""
    checked("promtool", "test", "rules", PROMETHEUS / "tests" / f"{name}.yml")


def test_every_alert_has_series_that_fire_it() -> None:
    """An alert without a test is a hope."""
    tested = "".join(f.read_text() for f in (PROMETHEUS / "tests").glob("*.yml"))
    assert [a["alert"] for a in alerts() if f'alertname="{a["alert"]}"' not in tested] == []


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_urgent_it_is_what_it_means_and_where_to_read_on(alert: Rule) -> None:
    """Whoever is woken by it knows nothing yet."""
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert all(alert["annotations"][text] for text in ("summary", "description"))
    assert alert["annotations"]["runbook_url"] == f"{WHERE}/{alert['alert']}.md"


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_runbook_with_what_to_look_at_and_what_to_do(alert: Rule) -> None:
    """A link to nothing costs the first minutes of an outage."""
    page = (RUNBOOKS / f"{alert['alert']}.md").read_text()
    assert page.startswith(f"# {alert['alert']}\n")
    assert "**Look at**" in page
    assert "**Do**" in page


def test_a_runbook_without_an_alert_is_gone() -> None:
    """Pages of alerts that no longer exist mislead."""
    assert {f.stem for f in RUNBOOKS.glob("*.md")} == {alert["alert"] for alert in alerts()}


def test_every_shipped_class_has_an_objective_for_latency_and_accuracy() -> None:
    """The default is for classes that somebody adds."""
    given = {
        (rule["labels"]["slo_class"], rule["labels"]["objective"])
        for rule in rules()
        if rule.get("record") == "bertier:slo_objective:set"
    }
    assert given == {(name, p) for name in STANDARD_CLASSES for p in ("latency", "accuracy")}


def test_every_objective_can_be_missed_fast_enough_to_page() -> None:
    """At an objective of 0.9 even total failure burns at 10 times the budget only, and nobody is paged."""
    objectives = [
        float(rule["expr"].removeprefix("vector(").removesuffix(")"))
        for rule in rules()
        if rule.get("record", "").startswith("bertier:slo_objective:")
        and rule["expr"].startswith("vector(")
    ]
    assert len(objectives) == 7
    assert all(FASTEST_BURN * (1 - objective) < 1 for objective in objectives)


def test_alertmanager_takes_its_configuration() -> None:
    """It refuses to start with a mistake in it."""
    assert "SUCCESS" in checked("amtool", "check-config", ALERTMANAGER)


@pytest.mark.parametrize(("severity", "receiver"), [("page", "pager"), ("ticket", "tickets")])
def test_pages_and_tickets_go_to_different_receivers(severity: str, receiver: str) -> None:
    """Who gets up at night is not who reads tickets by day."""
    route = ("config", "routes", "test", f"--config.file={ALERTMANAGER}")
    assert checked("amtool", *route, f"severity={severity}", "alertname=X").split() == [receiver]
