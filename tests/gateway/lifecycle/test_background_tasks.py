"""The external load of shared servers, and how variants on them are kept loaded."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.external_load import Counted, IdleTimer
from gateway.clock import now_ms
from gateway.domain import Size
from gateway.errors import BackendUnavailable
from gateway.lifecycle.background_tasks import BackgroundTasks
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from tests.fakes import FakeBackend, serving_set, small_and_large


class Shared(FakeBackend):
    """A server at which another gateway has work."""

    def __init__(self, theirs: Mapping[str, float]) -> None:
        super().__init__()
        self.theirs = theirs

    async def external_load(self) -> Mapping[str, float]:
        if self.error is not None:
            raise self.error
        return self.theirs


async def test_work_of_other_gateways_is_waited_for_in_predictions() -> None:
    """Otherwise each of two gateways would predict latencies that both together cannot meet."""
    backend = Shared({"small": 39.7})
    service = AnswerService(backend, Settings(triton_url=("a:1",)), Metrics())
    service.serving = serving_set(small_and_large())
    latency, plans = service.serving.latency, service.serving.plans()

    began_ms = now_ms()  # one request of our own shows how long theirs take
    latency.finish(latency.begin("small", Size(64, 1), began_ms), began_ms + 7.0)

    def wait_ms() -> float:
        small, _ = latency.predict(plans, Size(64, 1), 0.5, now_ms())
        return small.predicted_ms - small.idle_ms

    background, alone_ms = BackgroundTasks(service), wait_ms()
    await background.poll_external_load()
    assert wait_ms() > alone_ms + 50.0
    backend.theirs = {}
    await background.poll_external_load()
    assert wait_ms() < alone_ms + 20.0
    backend.theirs = {"small": 40.0}
    await background.poll_external_load()
    backend.error = BackendUnavailable("gone")
    await background.poll_external_load()
    assert wait_ms() < alone_ms + 20.0


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.001, 5.0), st.floats(0.1, 10.0))
def test_external_load_is_the_share_that_is_not_ours(
    ours: int, external_load: int, each_s: float, passed_s: float
) -> None:
    """Of `n` requests that took `each_s`, the server held n * each_s / passed_s on average."""
    before = Counted.of(10.0, [("m", 7.0, 5)], {"m": 5})
    n = ours + external_load
    after = Counted.of(10.0 + passed_s, [("m", 7.0 + n * each_s, 5 + n)], {"m": 5 + ours})
    found = after.external_since(before).get("m", 0.0)
    assert abs(found - external_load * each_s / passed_s) < 1e-6 * max(1.0, found)


def test_a_restarted_server_has_no_external_load() -> None:
    """Its counters are smaller than before; that is no negative load."""
    before = Counted.of(0.0, [("m", 70.0, 500)], {"m": 400})
    assert Counted.of(1.0, [("m", 0.1, 3)], {"m": 400}).external_since(before) == {}


async def test_a_variant_that_nobody_asks_is_kept_where_others_could_unload_it() -> None:
    """A gateway that unloads what is not used looks at when it was asked last, by whomever."""
    backend = FakeBackend()
    service = AnswerService(backend, Settings(triton_url=("a:1",)), Metrics())
    background = BackgroundTasks(service)
    await background.keep_loaded()
    service.serving = serving_set(small_and_large())
    backend.errors["small"] = BackendUnavailable("it is being loaded")
    await background.keep_loaded()
    assert backend.asked == ["small", "large"]


def test_a_model_is_idle_since_its_last_request_was_seen() -> None:
    """The server's clock is not ours; only whether it moved on is known."""
    now = [0.0]
    idle = IdleTimer(lambda: now[0])
    assert idle.for_ms("a", 7_000_000) == 0.0
    now[0] = 5.0
    assert (idle.for_ms("a", 7_000_000), idle.for_ms("b", 1)) == (5.0, 0.0)
    assert idle.for_ms("a", 7_000_001) == 0.0
    now[0] = 6.0
    assert (idle.for_ms("a", 7_000_001), idle.for_ms("b", 1)) == (1.0, 1.0)
