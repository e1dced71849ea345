"""What is counted of a request, under which bounded labels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.utils import floatToGoString

from gateway.domain import STAGES, Reason, SloViolation, Timings
from gateway.errors import BackendUnavailable
from gateway.frontends import problems
from gateway.frontends.http import routes
from gateway.lifecycle.watcher import Watcher
from gateway.observability.metrics import COUNTS, RATIOS, Metrics, edges_s
from gateway.observability.metrics_declared import (
    CACHED,
    CLOSINGS,
    DENIALS,
    FILES,
    FRONTENDS,
    OBJECTIVES,
)
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.slo import STANDARD_CLASSES
from tests.fakes import CONTEXT, QUESTION, FakeBackend, serving_set, small_and_large

QUESTION_BODY = {"question": QUESTION, "context": CONTEXT}
OUTCOMES = ("met", "violated")
CUSTOM = {"voice": {"latency_ms": 123.0, "policy": "prefer-latency"}}


class Gateway:
    """The HTTP frontend over a fake model server, and what it counted."""

    def __init__(self) -> None:
        self.settings = Settings(classes=CUSTOM)  # type: ignore[arg-type]
        self.backend = FakeBackend()
        self.metrics = Metrics(self.settings.classes)
        service = AnswerService(self.backend, self.settings, self.metrics)
        service.serving = serving_set(small_and_large())
        app = routes.create(service, Watcher(service).readiness)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test"
        )

    async def ask(self, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post("/v1/answer", json=QUESTION_BODY, headers=named)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def attained(self, outcome: str, slo_class: str = "standard") -> list[float]:
        """Return how often latency, accuracy and both were met, or violated."""
        name = "bertier_slo_requests_total"
        return [
            self.count(name, slo_class=slo_class, objective=objective, outcome=outcome)
            for objective in OBJECTIVES
        ]


async def test_an_answer_in_time_and_above_the_floor_meets_the_whole_slo() -> None:
    """Attainment is the service's first indicator."""
    gateway = Gateway()
    await gateway.ask()
    assert gateway.attained("met") == [1, 1, 1]
    assert gateway.attained("violated") == [0, 0, 0]


async def test_an_answer_below_the_floor_meets_the_latency_only() -> None:
    """Latency and accuracy have budgets of their own."""
    gateway = Gateway()
    await gateway.ask(slo_min_f1="0.95")
    assert gateway.attained("met") == [1, 0, 0]
    assert gateway.attained("violated") == [0, 1, 1]


@pytest.mark.parametrize(
    ("violations", "met"),
    [
        ((), (True, True, True)),
        ((SloViolation.LATE,), (False, True, False)),
        ((SloViolation.UNCERTIFIED,), (True, False, False)),
        ((SloViolation.LATE, SloViolation.BELOW_FLOOR), (False, False, False)),
    ],
)
def test_the_violations_tell_which_objective_was_met(
    violations: tuple[SloViolation, ...], met: tuple[bool, ...]
) -> None:
    """`late` is a word about time; all others are about accuracy."""
    metrics = Metrics()
    metrics.note_answer("batch", violations, Timings(), 1)
    for objective, held in zip(OBJECTIVES, met, strict=True):
        labels = {
            "slo_class": "batch",
            "objective": objective,
            "outcome": "met" if held else "violated",
        }
        assert metrics.registry.get_sample_value("bertier_slo_requests_total", labels) == 1


async def test_a_request_that_failed_misses_every_objective() -> None:
    """An outage must burn the budget of latency and of accuracy."""
    gateway = Gateway()
    gateway.backend.error = BackendUnavailable("nobody")
    await gateway.ask()
    assert gateway.attained("violated") == [1, 1, 1]


@pytest.mark.parametrize(
    "headers",
    [
        {"slo_min_f1": "much"},
        {"slo_class": "nobody's"},
        {"slo_policy": "strict", "slo_latency_ms": "9000", "slo_min_f1": "0.95"},
    ],
)
async def test_what_the_caller_got_wrong_violates_no_slo(headers: dict[str, str]) -> None:
    """Nobody can burn our budget with bad requests."""
    gateway = Gateway()
    assert (await gateway.ask(**headers)).status_code in (400, 422)
    assert sum(gateway.attained("violated")) == sum(gateway.attained("violated", "unknown")) == 0


def test_every_objective_of_every_class_is_there_before_the_first_request() -> None:
    """`rate` sees a request only as a step, so one that begins its series would be missed."""
    classes = Settings(classes=CUSTOM).classes  # type: ignore[arg-type]
    (found,) = (
        each for each in Metrics(classes).registry.collect() if each.name == "bertier_slo_requests"
    )
    seen = {tuple(sample.labels.values()): sample.value for sample in found.samples}
    assert seen == dict.fromkeys(product((*STANDARD_CLASSES, "voice"), OBJECTIVES, OUTCOMES), 0.0)


def test_what_is_rare_is_there_before_it_happens() -> None:
    """The first refused file, denied caller or late answer is the one that an operator looks for."""
    registry = Metrics().registry
    for name, labels in (
        ("bertier_partial_answers_total", {"slo_class": "batch"}),
        ("bertier_denied_total", {"frontend": "grpc", "reason": "scope"}),
        ("bertier_reloads_total", {"file": "keys", "result": "refused"}),
        ("bertier_reload_refused", {"file": "certificate"}),
        ("bertier_catalog_switches_total", {"result": "refused"}),
        ("bertier_log_lines_lost_total", {}),
    ):
        assert registry.get_sample_value(name, labels) == 0, name


async def test_padding_is_counted_apart_from_the_text() -> None:
    """Padding is work that nobody asked for."""
    gateway = Gateway()
    await gateway.ask(slo_variant="small")
    text = gateway.count("bertier_tokens_total", variant="small", kind="text")
    padding = gateway.count("bertier_tokens_total", variant="small", kind="padding")
    assert 0 < text < 64
    assert text + padding == 64


async def test_windows_and_batches_are_counted_once_a_request() -> None:
    """A long context costs a multiple, which averages hide."""
    gateway = Gateway()
    asked = {"question": "Who?", "context": CONTEXT * 60}
    headers = {"SLO-Variant": "large", "SLO-Class": "batch"}
    await gateway.http.post("/v1/answer", json=asked, headers=headers)
    assert gateway.count("bertier_windows_count") == 1
    assert gateway.count("bertier_windows_sum") > 1
    assert gateway.count("bertier_batch_windows_count", variant="large") == 1


def test_histograms_have_an_edge_at_every_target_and_deadline() -> None:
    """Only then the share of answers in time can be read off exactly."""
    settings = Settings(classes=CUSTOM)  # type: ignore[arg-type]
    edges = edges_s(settings.classes)
    assert {0.05, 0.25, 5.0, 0.123, 4 * 0.123} <= set(edges)
    assert set(edges_s(STANDARD_CLASSES)) < set(edges)
    assert list(edges) == sorted(edges)


KINDS = {kind.name for kind in (*problems.KINDS.values(), problems.INTERNAL)}
BOUNDED: Mapping[str, frozenset[str]] = {
    "frontend": frozenset(FRONTENDS),
    "slo_class": frozenset({*STANDARD_CLASSES, "voice", "unknown"}),
    "task": frozenset({"qa", "unknown"}),
    "plan": frozenset({"small", "large", "none"}),
    "variant": frozenset({"small", "large"}),
    "outcome": frozenset({*KINDS, *SloViolation, "ok", *OUTCOMES, "within", "beyond", *CACHED}),
    "objective": frozenset(OBJECTIVES),
    "stage": frozenset(STAGES),
    "kind": frozenset({"text", "padding"}),
    "reason": frozenset({*Reason, *CLOSINGS, *DENIALS}),
    "file": frozenset(FILES),
    "result": frozenset({"loaded", "refused", "switched", "promoted", "withdrawn"}),
    "quantile": frozenset({"0.95", "0.99"}),
    "le": frozenset(map(floatToGoString, (*edges_s(Gateway().settings.classes), *RATIOS, *COUNTS)))
    | {"+Inf"},
}
OF_THE_PROCESS = ("python_", "process_")
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
NAMES = (
    *("SLO-Class", "X-SLO-Class", "SLO-Variant", "SLO-Policy", "SLO-Min-F1", "SLO-Latency-Ms"),
    *("Priority", "X-Request-Id", "traceparent", "SLO-Explain"),
)


@pytest.fixture(scope="module")
def fuzzed() -> Gateway:
    return Gateway()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        TEXT | st.sampled_from(("batch", "voice", "small", "strict", "0.4", "1")),
        max_size=4,
    )
)
async def test_no_header_can_mint_a_label_value(fuzzed: Gateway, headers: dict[str, str]) -> None:
    """A caller who could would fill the metrics store."""
    await fuzzed.ask(**headers)
    for metric in fuzzed.metrics.registry.collect():
        if not metric.name.startswith(OF_THE_PROCESS):
            for sample in metric.samples:
                assert all(value in BOUNDED[name] for name, value in sample.labels.items())
