"""How scrapes are answered, in both text forms, however many there are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import httpx2 as httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_plain

from gateway.domain import Size
from gateway.frontends.http import exposition, routes
from gateway.frontends.http.exposition import OPENMETRICS_TYPE, PLAIN_TYPE, Exposition
from gateway.lifecycle.watcher import Watcher
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from tests.fakes import CONTEXT, QUESTION, FakeBackend, patient, serving_set, small_and_large

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PROMETHEUS_ACCEPTS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1"
)


def make_service() -> AnswerService:
    service = AnswerService(FakeBackend(), patient(), Metrics())
    service.serving = serving_set(small_and_large())
    return service


def client(service: AnswerService) -> httpx.AsyncClient:
    app = routes.create(service, Watcher(service).readiness)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


def openmetrics_families(text: str) -> Iterable[Metric]:
    """Return what the strict parser reads."""
    return read_openmetrics(text)  # type: ignore[no-untyped-call, no-any-return]


class Clock:
    def __init__(self) -> None:
        self.ms = 0.0

    def __call__(self) -> float:
        return self.ms


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", PLAIN_TYPE),
        ("*/*", PLAIN_TYPE),
        (PROMETHEUS_ACCEPTS, OPENMETRICS_TYPE),
        ("text/plain, Application/OpenMetrics-Text; version=1.0.0", OPENMETRICS_TYPE),
        ("application/openmetrics-text; q=0, text/plain", PLAIN_TYPE),
        (";;,,q=;\x00", PLAIN_TYPE),
    ],
)
def test_the_caller_gets_the_form_it_takes(accept: str, content_type: str) -> None:
    """Exemplars exist in OpenMetrics only; old scrapers know the plain text only."""
    assert exposition.negotiate(accept) == content_type


async def test_a_scrape_with_openmetrics_has_the_trace_of_a_request_as_exemplar() -> None:
    """From a slow bucket one click leads to a request that was as slow."""
    service = make_service()
    async with client(service) as http:
        parent = f"00-{TRACE}-00f067aa0ba902b7-01"
        asked = {"question": QUESTION, "context": CONTEXT}
        await http.post("/v1/answer", json=asked, headers={"traceparent": parent})
        scraped = await http.get("/metrics", headers={"accept": PROMETHEUS_ACCEPTS})
    assert scraped.headers["content-type"] == OPENMETRICS_TYPE
    families = {family.name: family for family in openmetrics_families(scraped.text)}
    duration = families["bertier_request_duration_seconds"]
    assert [s.exemplar.labels for s in duration.samples if s.exemplar] == [{"trace_id": TRACE}]


@pytest.mark.parametrize(
    "parent",
    [
        "",
        f"00-{TRACE}",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
    ],
)
async def test_a_trace_context_that_is_not_well_formed_leaves_no_exemplar(parent: str) -> None:
    """An exemplar's trace id must be a valid one."""
    service = make_service()
    async with client(service) as http:
        asked = {"question": QUESTION, "context": CONTEXT}
        await http.post("/v1/answer", json=asked, headers={"traceparent": parent})
        scraped = await http.get("/metrics", headers={"accept": PROMETHEUS_ACCEPTS})
    assert "trace_id" not in scraped.text


async def test_the_plain_text_holds_the_same_series() -> None:
    """The two forms are one set of metrics."""
    pages = Exposition(make_service())
    plain, openmetrics = await pages.scrape("", ()), await pages.scrape(PROMETHEUS_ACCEPTS, ())
    names = {s.name for f in read_plain(plain.text.decode()) for s in f.samples}
    assert names == {
        s.name for f in openmetrics_families(openmetrics.text.decode()) for s in f.samples
    }
    assert {"process_cpu_seconds_total", "python_gc_collections_total", "python_info"} <= names
    assert not any(name.endswith("_created") for name in names)


async def test_names_select_metrics_and_an_unknown_name_selects_none() -> None:
    """`name[]` is how Prometheus asks for some only; a wrong name is no failure."""
    async with client(make_service()) as http:
        some = await http.get("/metrics?name[]=bertier_requests_in_flight&name[]=nobody")
        none = await http.get("/metrics?name[]=nobody&other=1")
    assert [f.name for f in read_plain(some.text)] == ["bertier_requests_in_flight"]
    assert (none.status_code, none.text) == (200, "")


async def test_few_scrapes_are_fresh_and_many_share_the_last_text() -> None:
    """Prometheus asking too often must not take the time of requests."""
    service, clock = make_service(), Clock()
    pages = Exposition(service, clock)

    async def seen() -> bool:
        service.metrics.backend_restarts.inc()
        asked = service.metrics.registry.get_sample_value("bertier_backend_restarts_total")
        return (
            f"bertier_backend_restarts_total {asked}".encode() in (await pages.scrape("", ())).text
        )

    fresh = [await seen() for _ in range(50)]
    assert fresh == [True] * 10 + [False] * 40
    clock.ms += 500
    assert await seen()
    assert not await seen()


async def test_requests_go_on_while_a_text_is_made() -> None:
    """One long pause of the event loop would make every request late."""
    pages = Exposition(make_service())
    scrape = asyncio.ensure_future(pages.scrape("", ()))
    turns = 0
    while not scrape.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 20


async def test_the_wait_behind_work_in_flight_shows_per_variant() -> None:
    """Autoscaling needs to know of a queue before SLOs are violated."""
    service = make_service()
    assert service.serving is not None
    latency = service.serving.latency
    idle = await Exposition(service).scrape("", ())
    for _ in range(4):
        latency.begin("large", Size(64, 1), service._clock())
    busy = await Exposition(service).scrape("", ())
    assert b'bertier_windows_pending{variant="large"} 0.0' in idle.text
    assert b'bertier_windows_pending{variant="large"} 4.0' in busy.text
    wait = "bertier_queue_wait_seconds"
    waits = {
        s.labels["variant"]: s.value
        for f in read_plain(busy.text.decode())
        if f.name == wait
        for s in f.samples
    }
    assert waits["large"] > 0.02
