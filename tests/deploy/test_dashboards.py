"""The dashboards that are committed: made by the code, whole, and about metrics that exist."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import yaml

from deploy.observability import generate
from gateway.observability.metrics import Metrics
from tests.deploy.prometheus_files import (
    DASHBOARDS,
    PROMETHEUS,
    RUNBOOKS,
    Json,
    dashboards,
    panels,
    rules,
)
from tests.fakes import ROOT

PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
NAMES = re.compile(r"\bbertier[_:][a-zA-Z0-9_:]+")
SERIES_OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")
GRID_WIDTH = 24
every_dashboard = pytest.mark.parametrize("name", sorted(dashboards()))
every_panel = pytest.mark.parametrize("panel", [pytest.param(p, id=i) for i, p in panels()])


def test_the_files_are_what_the_code_makes() -> None:
    """Who changes the code runs `make dashboards`; a file by hand would be lost with the next run."""
    committed = {f.name: f.read_text() for f in DASHBOARDS.glob("*.json")}
    assert committed == dict(generate.files())


@every_panel
def test_a_panel_says_what_it_shows_in_which_unit(panel: Json) -> None:
    """A graph that only its author can read helps nobody at night."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert all(target["expr"] for target in panel["targets"])
    if panel["type"] in ("timeseries", "bargauge") and len(panel["targets"]) > 1:
        assert all(target["legendFormat"] for target in panel["targets"])


@every_panel
def test_a_panel_links_to_a_runbook_that_exists(panel: Json) -> None:
    """The way from what is red to what to do is one click."""
    for link in panel.get("links", []):
        base, _, page = link["url"].rpartition("/")
        assert base == "${runbooks}"
        assert (RUNBOOKS / page).is_file()


@every_dashboard
def test_a_dashboard_has_links_to_runbooks(name: str) -> None:
    """Else the test above would pass on none."""
    assert any(panel.get("links") for panel in dashboards()[name]["panels"])


@every_dashboard
def test_no_row_is_empty_and_none_has_a_gap(name: str) -> None:
    """What is missing on a page looks like a fault."""
    found = dashboards()[name]["panels"]
    for panel, following in pairwise([*found, {"type": "row"}]):
        assert not (panel["type"] == following["type"] == "row"), panel["title"]
    widths: dict[int, int] = {}
    for panel in found:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(widths.values()) == {GRID_WIDTH}


@every_dashboard
def test_every_choice_can_be_all_of_nothing(name: str) -> None:
    """Before the first request a variable has no value; `.*` is valid all the same."""
    choices = [v for v in dashboards()[name]["templating"]["list"] if v["type"] == "query"]
    assert choices
    assert all(choice["includeAll"] and choice["allValue"] == ".*" for choice in choices)


@every_dashboard
def test_catalog_switches_are_marked(name: str) -> None:
    """What changed when a catalog did is the first question."""
    (mark,) = dashboards()[name]["annotations"]["list"]
    assert "bertier_catalog_loaded_timestamp_seconds" in mark["expr"]
    assert mark["useValueForTime"]


def test_every_name_in_dashboards_rules_and_tests_is_a_metric_or_a_rule() -> None:
    """A renamed metric leaves empty panels and alerts that never fire."""
    files = [*DASHBOARDS.glob("*.json"), *PROMETHEUS.rglob("*.yml")]
    used = {name for file in files for name in NAMES.findall(_without_comments(file.read_text()))}
    declared = {each.name for each in Metrics().declared}
    histograms = {n + part for n in declared for part in SERIES_OF_A_HISTOGRAM}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert used - declared - histograms - recorded == set()


def test_runbooks_name_dashboards_and_panels_that_exist() -> None:
    """Who is sent to a graph that was renamed loses minutes."""
    pages = "".join(page.read_text().replace("**", "") for page in RUNBOOKS.glob("*.md"))
    titles = {made["title"].removeprefix("bertier / ") for made in dashboards().values()}
    titles |= {panel["title"] for _, panel in panels()}
    named = set(re.findall(r"\*([^*\n]+)\*", pages))
    assert named
    assert named - titles == set()


def test_dashboards_and_provisioning_agree() -> None:
    """Else a fresh Grafana shows a page of errors, or rates over less than a scrape."""
    (source,) = _provisioned("datasources/prometheus.yml")["datasources"]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    for made in dashboards().values():
        chosen = {v["name"]: v for v in made["templating"]["list"]}
        assert chosen["datasource"]["current"]["value"] == source["uid"]
        assert chosen["runbooks"]["query"] in config["global"]["external_labels"]["runbooks"]
    assert len({made["uid"] for made in dashboards().values()}) == len(dashboards())
    assert _provisioned("dashboards/bertier.yml")["providers"]


def _provisioned(name: str) -> Any:
    return yaml.safe_load((PROVISIONING / name).read_text())


def _without_comments(text: str) -> str:
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
