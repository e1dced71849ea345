"""Several model servers as one: which is asked, which is ejected, and which comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from gateway import settings
from gateway.backends import breaker
from gateway.backends.pool import Replicas
from gateway.backends.protocol import Backend
from gateway.catalog.schema import Variant
from gateway.clock import now_ms
from gateway.domain import Inference, Question, Size, Trust, Windows
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    DeadlineExceeded,
    VariantUnavailable,
)
from gateway.lifecycle.background_tasks import BackgroundTasks
from gateway.lifecycle.preparation import prepare
from gateway.lifecycle.watcher import Watcher
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings, SettingsError
from tests.fakes import (
    CONTEXT,
    QUESTION,
    TOKENIZER,
    FakeBackend,
    encoder,
    make_variant,
    small_and_large,
)

VARIANT = make_variant("small", 5)
WINDOWS = encoder().encode(Question(QUESTION, CONTEXT))
AMPLE_MS = 60_000.0


class Fleet:
    """Servers `a`, `b`, ... behind Replicas, on a clock that the test moves."""

    def __init__(self, n: int = 2, retry_share: float = 0.1) -> None:
        self.now_ms = 0.0
        self.metrics = Metrics()
        self.servers = {name: FakeBackend() for name in "abc"[:n]}
        servers: dict[str, Backend] = dict(self.servers)
        self.replicas = Replicas(servers, self.metrics, retry_share, lambda: self.now_ms)

    async def admit(self, trust: Trust = Trust.CERTIFIED) -> None:
        async def check(server: Backend) -> Trust:
            await server.load(VARIANT)
            return trust

        await self.replicas.checked(VARIANT, check)

    async def ask(self, times: int = 1, budget_ms: float = AMPLE_MS) -> None:
        for _ in range(times):
            await self.replicas.infer(VARIANT, WINDOWS, budget_ms)

    def asked(self) -> dict[str, int]:
        """Return how often each server was asked, and forget it."""
        n_asked = {name: len(server.asked) for name, server in self.servers.items()}
        for server in self.servers.values():
            server.asked.clear()
        return n_asked

    def sample(self, name: str, replica: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"replica": replica})


@pytest.fixture
async def fleet() -> Fleet:
    fleet = Fleet()
    await fleet.admit()
    return fleet


async def test_equals_take_turns(fleet: Fleet) -> None:
    """An idle second server is there to be used."""
    await fleet.ask(10)
    assert fleet.asked() == {"a": 5, "b": 5}


async def test_the_least_busy_server_is_asked(fleet: Fleet) -> None:
    """Work in flight is what a new request would wait behind."""
    slow = fleet.servers["a"]
    slow.gate = asyncio.Event()
    held = [asyncio.create_task(fleet.ask()) for _ in range(2)]
    await slow.until_asked()
    await asyncio.gather(*(asyncio.create_task(fleet.ask()) for _ in range(8)))
    assert fleet.asked() == {"a": 1, "b": 9}
    assert fleet.sample("bertier_replica_in_flight", "a") == 1
    slow.gate.set()
    await asyncio.gather(*held)
    assert fleet.sample("bertier_replica_in_flight", "a") == 0


async def test_what_one_server_fails_another_answers(fleet: Fleet) -> None:
    """The caller does not notice, and the failing server is ejected for the variant."""
    fleet.servers["a"].error = BackendError("broken")
    await fleet.ask(12)
    n_asked = fleet.asked()
    assert n_asked == {"a": breaker.IN_A_ROW, "b": 12}
    assert fleet.sample("bertier_replica_ejections_total", "a") == 1
    assert fleet.replicas.states()["a"].variants == {"small": "failing"}
    assert fleet.replicas.capacity(VARIANT) == 1


async def test_an_ejected_server_is_probed_and_comes_back(fleet: Fleet) -> None:
    """One request at a time tries it."""
    fleet.servers["a"].error = BackendError("broken")
    await fleet.ask(12)
    fleet.servers["a"].error = None
    fleet.asked()
    fleet.now_ms += breaker.FIRST_OPEN_MS
    await fleet.ask(10)
    assert fleet.asked() == {"a": 5, "b": 5}
    assert fleet.replicas.states()["a"].variants == {"small": "serving"}


async def test_a_server_that_was_away_is_checked_before_it_is_asked_again(fleet: Fleet) -> None:
    """What comes back under an address may be another server with other files."""
    fleet.servers["a"].error = BackendUnavailable("gone")
    await fleet.ask(12)
    assert fleet.asked() == {"a": breaker.IN_A_ROW, "b": 12}
    fleet.servers["a"].error = None
    fleet.now_ms += 10 * breaker.LONGEST_OPEN_MS
    await fleet.ask(6)
    assert fleet.asked() == {"a": 0, "b": 6}
    (waiting,) = fleet.replicas.unchecked(VARIANT)

    async def check(server: Backend) -> Trust:
        return Trust.CERTIFIED

    await fleet.replicas.readmit(VARIANT, check, Trust.CERTIFIED)
    assert waiting.name == "a"
    await fleet.ask(6)
    assert fleet.asked() == {"a": 3, "b": 3}


async def test_a_reloading_variant_is_routed_around_at_once(fleet: Fleet) -> None:
    """The first refusal is enough: nobody else has to meet it."""
    fleet.servers["a"].error = VariantUnavailable("small: is not ready")
    await fleet.ask(6)
    assert fleet.asked() == {"a": 1, "b": 6}


async def test_a_server_that_hangs_is_ejected(fleet: Fleet) -> None:
    """It answers nobody while requests run out of time; the other one does."""

    class Hanging(FakeBackend):
        """Lets 100 ms pass, then gives up."""

        async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
            fleet.now_ms += 100.0
            self.asked.append(variant.name)
            raise DeadlineExceeded("too long")

    fleet.replicas.members[0].backend = hanging = Hanging()
    for _ in range(20):
        await asyncio.wait([asyncio.ensure_future(fleet.ask())])
    assert len(hanging.asked) <= 2 * breaker.IN_A_ROW
    assert fleet.replicas.states()["a"].ejected


async def test_a_server_that_hung_is_asked_again_once_it_answers(fleet: Fleet) -> None:
    """Its own breaker and that of the variant there are both open, and one probe settles both."""

    class Hanging(FakeBackend):
        """Lets 100 ms pass, then gives up; until it is set to answer."""

        hangs = True

        async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
            if not self.hangs:
                return await super().infer(variant, windows, budget_ms)
            fleet.now_ms += 100.0
            raise DeadlineExceeded("too long")

    fleet.replicas.members[0].backend = hanging = Hanging()
    for _ in range(20):
        await asyncio.wait([asyncio.ensure_future(fleet.ask())])
    assert fleet.replicas.states()["a"].ejected
    assert fleet.sample("bertier_replica_up", "a") == 0
    hanging.hangs = False
    fleet.asked()
    fleet.now_ms += breaker.LONGEST_OPEN_MS
    await fleet.ask(10)
    assert len(hanging.asked) == 5
    assert not fleet.replicas.states()["a"].ejected
    assert fleet.replicas.states()["a"].variants == {"small": "serving"}
    assert fleet.sample("bertier_replica_up", "a") == 1


@pytest.mark.parametrize(
    "error",
    [
        BackendError("broken"),
        BackendUnavailable("gone"),
        VariantUnavailable("small: is not ready"),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_ends_a_probe_leaves_the_place_to_the_next(
    fleet: Fleet, error: BaseException
) -> None:
    """A probe that is settled at one breaker alone would shut the other for good."""
    replica = fleet.replicas.members[0]
    for each in (replica.breaker, replica.breakers.of("small")):
        for _ in range(breaker.IN_A_ROW):
            each.begin(fleet.now_ms).failed(fleet.now_ms)
    fleet.servers["b"].error = fleet.servers["a"].error = error  # type: ignore[assignment]
    fleet.now_ms += breaker.FIRST_OPEN_MS
    await asyncio.wait([asyncio.ensure_future(fleet.ask()) for _ in range(2)])
    fleet.now_ms += breaker.LONGEST_OPEN_MS
    replica.admit(VARIANT)
    assert replica.serves(VARIANT, fleet.now_ms)


async def test_a_server_that_went_away_is_not_up_until_it_is_checked(fleet: Fleet) -> None:
    """Whoever watches must not wait for the next poll to see that nothing goes there."""
    fleet.servers["a"].error = BackendUnavailable("gone")
    await fleet.ask(12)
    assert fleet.sample("bertier_replica_up", "a") == 0
    assert fleet.replicas.states()["a"].ejected
    fleet.servers["a"].error = None

    async def check(server: Backend) -> Trust:
        return Trust.CERTIFIED

    await fleet.replicas.readmit(VARIANT, check, Trust.CERTIFIED)
    assert fleet.sample("bertier_replica_up", "a") == 1


async def test_retries_on_another_server_have_a_budget() -> None:
    """An outage is not answered with twice the load."""
    fleet = Fleet(retry_share=0)
    await fleet.admit()
    fleet.servers["a"].error = fleet.servers["b"].error = BackendError("broken")
    with pytest.raises(BackendError, match="broken"):
        await fleet.ask()
    assert sum(fleet.asked().values()) == 1


async def test_a_retry_keeps_to_the_deadline(fleet: Fleet) -> None:
    """Where the work no longer fits, the failure is reported at once."""
    fleet.servers["a"].error = fleet.servers["b"].error = BackendError("broken")
    with pytest.raises(BackendError, match="broken"):
        await fleet.ask(budget_ms=4.0)
    assert sum(fleet.asked().values()) == 1


async def test_a_server_with_another_file_is_asked_no_more(fleet: Fleet) -> None:
    """A certificate holds for one file; the variant is served on, by the others."""
    fleet.servers["a"].loaded["small/1"] = "f" * 64
    assert (await fleet.replicas.hashes())["small/1"] == VARIANT.sha256
    await fleet.ask(4)
    assert fleet.asked() == {"a": 0, "b": 4}
    assert "another file" in fleet.replicas.states()["a"].variants["small"]


async def test_a_server_whose_golden_answers_differ_is_not_asked() -> None:
    """Its answers would not be those that were certified."""
    fleet = Fleet()
    trusts = iter([Trust.UNCERTIFIED, Trust.CERTIFIED])

    async def check(server: Backend) -> Trust:
        return next(trusts)

    assert await fleet.replicas.checked(VARIANT, check) is Trust.CERTIFIED
    await fleet.ask(4)
    assert fleet.asked() == {"a": 0, "b": 4}


async def test_a_variant_no_server_may_be_asked_for_is_unavailable() -> None:
    """Another variant can be asked instead; this one comes back when a check says so."""
    fleet = Fleet()
    with pytest.raises(BackendUnavailable, match="no replica"):
        await fleet.ask()
    assert fleet.replicas.capacity(VARIANT) == 1

    async def check(server: Backend) -> Trust:
        raise BackendUnavailable("not loaded")

    with pytest.raises(BackendUnavailable, match="not loaded"):
        await fleet.replicas.checked(VARIANT, check)


async def test_a_failing_check_is_tried_again_less_and_less_often() -> None:
    """Loading a broken model every second would cost those that work."""
    fleet = Fleet()
    calls: Counter[int] = Counter()

    async def check(server: Backend) -> Trust:
        calls[id(server)] += 1
        if server is fleet.servers["a"]:
            raise BackendUnavailable("corrupt")
        return Trust.CERTIFIED

    await fleet.replicas.checked(VARIANT, check)
    for _ in range(600):
        fleet.now_ms += 100.0
        await fleet.replicas.readmit(VARIANT, check, Trust.CERTIFIED)
    assert 4 <= calls[id(fleet.servers["a"])] <= 8
    assert calls[id(fleet.servers["b"])] == 1


async def test_two_servers_are_twice_the_capacity_and_one_that_is_gone_is_not(
    tmp_path: Path,
) -> None:
    """The wait that is predicted follows what can really answer, and nobody restarts a thing."""
    (tmp_path / TOKENIZER.name).write_bytes(TOKENIZER.read_bytes())
    fleet = Fleet()
    service = AnswerService(fleet.replicas, Settings(model_repository=tmp_path), fleet.metrics)
    catalog = small_and_large()
    service.serving = await prepare(tmp_path, catalog, fleet.replicas)
    latency, background = service.serving.latency, BackgroundTasks(service)

    def wait_ms() -> float:
        plans, now = service.serving.plans() if service.serving else [], now_ms()
        works = [latency.begin("small", Size(64, 1), now) for _ in range(200)]
        (small, _) = latency.predict(plans, Size(64, 1), 0.5, now)
        for work in works:
            latency.leave(work, now)
        return small.predicted_ms

    both_ms = wait_ms()
    fleet.servers["a"].error = BackendUnavailable("gone")
    assert await fleet.replicas.is_ready()
    assert fleet.sample("bertier_replica_up", "a") == 0
    await background.check_replicas()
    assert 1.6 * both_ms < wait_ms() < 2.4 * both_ms
    readiness = await Watcher(service).readiness()
    assert readiness.ready
    assert not readiness.replicas["a"].up
    fleet.servers["a"].error = None
    await fleet.replicas.is_ready()
    await background.check_replicas()
    assert wait_ms() == pytest.approx(both_ms, rel=0.1)
    assert fleet.sample("bertier_replica_up", "a") == 1


@pytest.mark.parametrize("given", ["a:1,b:2", ["a:1", "b:2"], ["a:1, b:2"]])
def test_several_urls_may_be_a_list_or_one_text(given: object) -> None:
    """A flag that comes again, an environment variable, and a file's list."""
    assert settings.read(triton_url=given).triton_url == ("a:1", "b:2")


def test_the_environment_names_several_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers are configured."""
    monkeypatch.setenv("BERTIER_TRITON_URL", "one:8001,two:8001")
    assert settings.read().triton_url == ("one:8001", "two:8001")


@pytest.mark.parametrize("wrong", ["http://a:1", "a", "a:1,a:1"])
def test_a_url_that_cannot_be_asked_is_refused(wrong: str) -> None:
    """At the start, with what is wrong, and not as a server that is never ready."""
    with pytest.raises(SettingsError, match="triton_url"):
        settings.read(triton_url=wrong)
