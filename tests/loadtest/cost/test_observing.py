"""What is measured as the cost of metrics is what a request costs."""

from __future__ import annotations

from gateway.clock import now_ms
from gateway.domain import Question, SloRequest
from gateway.frontends import slo_headers
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from loadtest.cost import observing
from tests.fakes import CONTEXT, QUESTION, FakeBackend, serving_set, small_and_large

CATALOG = small_and_large()
OF_THE_PROCESS = ("python_", "process_")


def counted(metrics: Metrics) -> dict[str, float]:
    """Return how much each metric of requests was added to, whatever its labels."""
    return {
        sample.name: sample.value
        for metric in metrics.registry.collect()
        if metric.type in ("counter", "histogram") and not metric.name.startswith(OF_THE_PROCESS)
        for sample in metric.samples
        if sample.name.endswith(("_count", "_total")) and sample.value
    }


async def test_the_cost_counts_all_that_an_answered_request_counts() -> None:
    """A metric that is added to the request path must be in the figure, too."""
    measured = Metrics()
    observing.Recording(measured, CATALOG, "").record()
    service = AnswerService(FakeBackend(), Settings(shadow_share=0), Metrics())
    service.serving = serving_set(small_and_large())
    with slo_headers.observed(service.observer, "http", "standard", "qa"):
        await service.answer(Question(QUESTION, CONTEXT), SloRequest(), now_ms())
    assert set(counted(measured)) == set(counted(service.metrics))


def test_a_cost_is_a_time() -> None:
    """The table shows two of them, the best round never above the median one."""
    for cost in observing.costs(CATALOG):
        assert 0 < cost.best_us <= cost.p50_us
