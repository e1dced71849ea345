"""Every query of dashboards, rules, choices and marks, asked of the real Prometheus of a running system."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import tritonclient.grpc

from gateway import api_keys
from gateway.api_keys import ApiKey
from gateway.catalog import store
from gateway.catalog.store import Catalog
from loadtest.faults import fleet
from loadtest.stack import Stack, free_ports, fresh_stack
from tests.deploy.prometheus_files import RUNBOOKS, alerts, dashboards, panels, rules
from tests.end_to_end.conftest import REPOSITORY
from tests.local_prometheus import Prometheus, prometheus

pytestmark = pytest.mark.end_to_end

# What nothing on one host with one Triton and the shipped catalog is sure to show, and what it needs.
NEEDS = {
    "bertier_replica_": "several Tritons",
    "bertier_rollout_": "a candidate catalog",
    "nv_gpu_": "a GPU",
    "bertier_certificate_end_timestamp_seconds": "TLS",
    "bertier_escalations_total": "a cascade in the catalog, and a request that gets it",
}
OF_A_CATALOG = {
    "bertier_shadow_total": "how plans agree with the largest variant, in the catalog",
    "bertier_certificate_": "the same",
    "bertier_confidence_shift": "how confidences are spread, in the catalog",
}
MAX_IN_FLIGHT = 3
KEY, KEY_WITH_QUOTA = "key-of-an-app", "key-of-a-batch"
PATIENCE_S = 120.0
PAUSE_S = 1.0  # Prometheus looks once a second
N_SMALL = 2  # variants beside the largest, with which they are compared
TEXT = {"question": "Who slept?", "context": "The old dog slept by the stove all winter."}
REQUEST_HEADERS: tuple[Mapping[str, str], ...] = (
    {"SLO-Class": "interactive", "SLO-Min-F1": "0.3"},
    {"SLO-Class": "standard"},
    {"SLO-Class": "batch"},
    {"SLO-Min-F1": "0.99", "SLO-Policy": "prefer-latency"},  # below its floor
    {"SLO-Latency-Ms": "1", "SLO-Policy": "strict"},  # infeasible
    {"x-envoy-expected-rq-timeout-ms": "2"},  # shed
)
FAILING = {"SLO-Class": "batch", "SLO-Min-F1": "0.3"}  # the cheapest plan answers
GRAFANA = {"$__rate_interval": "20s", "$__interval": "20s", "$__range": "1m", "$datasource": "x"}
VARIABLE = re.compile(r"\$(\w+)")


@dataclass(frozen=True)
class Observed:
    """A system under a little load, and the Prometheus that watches it."""

    stack: Stack
    repository: Path
    prometheus: Prometheus
    client: httpx2.Client

    def ask(self) -> None:
        """Ask one question of each kind, then more at once than the gateway lets in."""
        for headers in REQUEST_HEADERS:
            self.ask_one(headers)
        for key in ("of-nobody", KEY_WITH_QUOTA, KEY_WITH_QUOTA):
            self.ask_one({}, key)
        with ThreadPoolExecutor(3 * MAX_IN_FLIGHT) as crowd:
            list(crowd.map(self.ask_one, [{}] * 3 * MAX_IN_FLIGHT))

    def ask_one(self, headers: Mapping[str, str], key: str = KEY) -> None:
        self._post("answer", headers, key)

    def trusts(self) -> bool:
        """Say whether the shipped certificates hold here; a host without VNNI computes other logits."""
        url, headers = f"{self.stack.http_url}/v1/variants", {"Authorization": f"Bearer {KEY}"}
        variants = self.client.get(url, headers=headers).json()["variants"]
        return all(variant["trust"] != "uncertified" for variant in variants)

    def planned(self) -> str:
        """Return the plan that would answer the request that is made to fail."""
        return str(self._post("plan", FAILING, KEY).json()["plan"])

    def _post(self, what: str, headers: Mapping[str, str], key: str) -> httpx2.Response:
        url, sent = (
            f"{self.stack.http_url}/v1/{what}",
            {"Authorization": f"Bearer {key}", **headers},
        )
        return self.client.post(url, json=TEXT, headers=sent)

    def ask_until(self, fact: Callable[[], bool], details: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not fact():
            assert time.monotonic() < deadline, details()
            self.ask()
            time.sleep(PAUSE_S)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    repository = folder / "model_repository"
    fleet.publish(REPOSITORY, repository, few_variants())
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BERTIER_SHADOW_SHARE", "1")
        environment.setenv("BERTIER_MAX_IN_FLIGHT", str(MAX_IN_FLIGHT))
        (port,) = free_ports(1)
        secured = ("--api-keys-file", str(file_of_keys(folder)), "--metrics-port", str(port))
        with fresh_stack(repository, *secured) as stack:
            file_of_keys(folder, more=(entry("newcomer", "key-of-a-newcomer"),))  # read again
            targets = {
                "gateway": f"127.0.0.1:{port}",
                "triton": urlsplit(stack.triton_metrics_url).netloc,
            }
            with prometheus(folder, targets) as watching, httpx2.Client(timeout=30) as client:
                yield Observed(stack, repository, watching, client)


def few_variants() -> Catalog:
    """Return the shipped catalog with the smallest variants and the largest alone."""
    by_size = sorted(store.read(REPOSITORY).variants, key=lambda v: v.size_bytes)
    return fleet.only(REPOSITORY, {v.name for v in (*by_size[:N_SMALL], by_size[-1])})


def file_of_keys(folder: Path, more: tuple[str, ...] = ()) -> Path:
    """Write who may ask; return where."""
    path = folder / "keys.toml"
    known = (entry("app", KEY), entry("batch", KEY_WITH_QUOTA, requests_per_s=1))
    path.write_text("\n".join((*known, *more)))
    return path


def entry(name: str, key: str, requests_per_s: float | None = None) -> str:
    return api_keys.entry(name, ApiKey(sha256=api_keys.digest(key), requests_per_s=requests_per_s))


def filled(expr: str, choice: str = ".*") -> str:
    """Return an expression as Grafana sends it with this choice of every variable."""
    for name, value in GRAFANA.items():
        expr = expr.replace(name, value)
    return VARIABLE.sub(choice, expr)


def queries() -> dict[str, str]:
    """Return every expression of panels, marks and recording rules by where it stands."""
    asked = {
        f"{where} {target['refId']}": target["expr"]
        for where, panel in panels()
        for target in panel["targets"]
    }
    for name, made in dashboards().items():
        asked |= {f"{name}: mark {m['name']}": m["expr"] for m in made["annotations"]["list"]}
    recorded = (rule for rule in rules() if "record" in rule)
    return asked | {
        f"rule {rule['record']} {rule.get('labels', '')}": rule["expr"] for rule in recorded
    }


@pytest.fixture(scope="module")
def excuses(observed: Observed) -> dict[str, str]:
    """Return what is needed for the metrics that need not be here; a newer catalog has fewer."""
    shipped = store.read(REPOSITORY)
    agreement = any(plan.agreement is not None for plan in shipped.plans)
    confidence = any(variant.confidence is not None for variant in shipped.variants)
    has = {
        "bertier_shadow_total": agreement and observed.trusts(),
        "bertier_certificate_": agreement,
    }
    has["bertier_confidence_shift"] = confidence
    return NEEDS | {metric: why for metric, why in OF_A_CATALOG.items() if not has[metric]}


def excused(expr: str, excuses: Mapping[str, str]) -> bool:
    return any(metric in expr for metric in excuses)


def test_a_variant_that_fails_opens_its_breaker_and_requests_are_retried(
    observed: Observed,
) -> None:
    """The panels of failures need one: the model is taken from Triton behind the gateway's back."""
    plan = observed.planned()
    opened = f'bertier_breaker_changes_total{{variant="{plan}", state="open"}}'
    with tritonclient.grpc.InferenceServerClient(observed.stack.triton_grpc) as triton:

        def is_open() -> bool:
            if observed.planned() == plan:  # else the gateway knows already, and will load it again
                triton.unload_model(plan)
                until(lambda: not triton.is_model_ready(plan))
                for _ in range(5):
                    observed.ask_one(FAILING)
            return bool(observed.prometheus.query(opened))

        observed.ask_until(is_open, lambda: f"{plan} was unloaded, and no breaker opened")
    assert observed.prometheus.query("sum(bertier_retries_total)")[0] > 0


def test_every_query_returns_data_or_is_known_to_need_what_is_not_here(
    observed: Observed, excuses: Mapping[str, str]
) -> None:
    """An empty panel is found here, and not at night."""
    missing = {where: expr for where, expr in queries().items() if not excused(expr, excuses)}

    def all_found() -> bool:
        for where, expr in list(missing.items()):
            if any(math.isfinite(value) for value in observed.prometheus.query(filled(expr))):
                del missing[where]
        return not missing

    observed.ask_until(all_found, lambda: missing)


def test_what_is_excused_is_valid_all_the_same(observed: Observed) -> None:
    """It will be asked one day."""
    for metric in NEEDS | OF_A_CATALOG:
        needy = [expr for expr in queries().values() if metric in expr]
        assert needy, f"{metric}: an excuse that nothing needs"
        for expr in needy:
            observed.prometheus.query(filled(expr))  # raises where Prometheus refuses it


def test_every_rule_is_evaluated_and_every_alert_asks_for_what_is_there(
    observed: Observed, excuses: Mapping[str, str]
) -> None:
    """An alert on a name that nothing exports can never fire."""
    observed.ask_until(
        lambda: all(rule["health"] == "ok" for rule in observed.prometheus.rules()),
        lambda: [rule for rule in observed.prometheus.rules() if rule["health"] != "ok"],
    )
    assert len(observed.prometheus.rules()) == len(rules())
    for alert in alerts():
        for name in set(re.findall(r"\b(?:bertier[_:]\w[\w:]*|up)\b", alert["expr"])):
            there = observed.prometheus.query(f"count({name})")
            assert there or excused(name, excuses), f"{alert['alert']}: no {name}"


def test_every_choice_has_values(observed: Observed) -> None:
    """A list without entries cannot be chosen from."""
    for made in dashboards().values():
        for choice in made["templating"]["list"]:
            if choice["type"] == "query":
                found = re.fullmatch(r"label_values\((\w+), (\w+)\)", choice["query"]["query"])
                assert found
                assert observed.prometheus.label_values(found[1], found[2]), choice["name"]


def test_a_choice_without_data_leaves_panels_empty_and_not_in_error(observed: Observed) -> None:
    """A class that was renamed, or an address that is gone, is still in somebody's bookmark."""
    for where, expr in queries().items():
        if VARIABLE.search(filled(expr, "$x")):
            found = observed.prometheus.query(filled(expr, "no-such-value"))
            assert not [value for value in found if value], where


def test_a_refused_catalog_reaches_alertmanager_with_its_runbook(observed: Observed) -> None:
    """From the gateway's gauge to the page that somebody opens."""
    assert "BertierCatalogRefused" not in names(observed.prometheus.received())
    (observed.repository / store.CATALOG).write_text(json.dumps({"schema_version": 99}))
    observed.ask_until(
        lambda: "BertierCatalogRefused" in names(observed.prometheus.received()),
        observed.prometheus.received,
    )
    (details,) = (
        alert
        for alert in observed.prometheus.received()
        if alert["labels"]["alertname"] == "BertierCatalogRefused"
    )
    assert details["labels"]["severity"] == "ticket"
    assert "runbooks" not in details["labels"]
    base, _, page = details["annotations"]["runbook_url"].rpartition("/")
    assert base.startswith("http://")
    assert (RUNBOOKS / page).is_file()
    assert [receiver["name"] for receiver in details["receivers"]] == ["tickets"]


def until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(PAUSE_S)


def names(received: list[dict[str, dict[str, str]]]) -> set[str]:
    return {alert["labels"]["alertname"] for alert in received}
