"""The watcher, run step by step over a repository in a temporary folder."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.backends import breaker
from gateway.catalog import store
from gateway.catalog.host import describe
from gateway.catalog.schema import GoldenLogits, Stratum, Variant
from gateway.catalog.store import CATALOG, Catalog
from gateway.clock import now_ms
from gateway.domain import Inference, Logits, Question, Size, SloRequest, Trust, Windows
from gateway.errors import BackendError, BackendUnavailable
from gateway.frontends.http import exposition
from gateway.latency.kept_profiles import KeptProfiles
from gateway.latency.profile import PROBE_BUCKET
from gateway.lifecycle.preparation import prepare
from gateway.lifecycle.watcher import LONGEST_RETRY_MS, Watcher
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from tests.fakes import (
    CONTEXT,
    HOST,
    QUESTION,
    TOKENIZER,
    FakeBackend,
    make_catalog,
    make_variant,
    small_and_large,
)


class House:
    """A repository, a fake model server, and the watcher between them."""

    def __init__(
        self,
        repository: Path,
        backend: FakeBackend | None = None,
        profiles: str = "",
        **settings: object,
    ) -> None:
        shutil.copy(TOKENIZER, repository)
        self.repository = repository
        self.backend = backend or FakeBackend()
        self.restarts = 0
        self.now_ms = 0.0
        chosen = Settings.model_validate({"model_repository": repository, **settings})
        self.service = AnswerService(self.backend, chosen, Metrics())
        self.watcher = Watcher(
            self.service,
            lambda: self.restarts,
            lambda: self.now_ms,
            kept=KeptProfiles.of(Settings(profiles_folder=profiles)),
        )

    def publish(self, catalog: Catalog) -> None:
        store.write(self.repository, catalog)

    def served(self) -> list[str]:
        return sorted(self.service.serving.trust) if self.service.serving else []

    def switches(self, result: str) -> float:
        registry = self.service.metrics.registry
        found = registry.get_sample_value("bertier_catalog_switches_total", {"result": result})
        return found or 0.0


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def another() -> Catalog:
    return make_catalog([make_variant("medium", 10, sha256="1" * 64)], [0.6])


async def test_a_sound_catalog_is_served(house: House) -> None:
    """Without a restart and without a request."""
    house.publish(small_and_large())
    await house.watcher.check()
    assert house.served() == ["large", "small"]
    assert house.watcher.ready.is_set()
    assert (await house.watcher.readiness()).ready


async def test_a_switch_keeps_the_encoder_and_its_caches(house: House) -> None:
    """The tokenizer is the same: to read it again takes half a second, in which no request is answered."""
    house.publish(small_and_large())
    await house.watcher.check()
    assert (before := house.service.serving) is not None
    house.publish(another())
    await house.watcher.check()
    assert (after := house.service.serving) is not None
    assert house.served() == ["medium"]
    assert after.encoder is before.encoder


async def test_floors_of_all_clusters_are_served_where_settings_say_so(tmp_path: Path) -> None:
    """Also after the catalog was prepared again; the file keeps the lower floors."""
    house, catalog = House(tmp_path, floor_scope="all"), small_and_large()
    whole = Stratum("all clusters", 90, 300, 0.9, 0.8)
    scoped = [replace(p.certificate, f1=0.9, scopes=(whole,)) for p in catalog.plans]
    plans = (replace(p, certificate=c) for p, c in zip(catalog.plans, scoped, strict=True))
    house.publish(replace(catalog, plans=tuple(plans)))
    await house.watcher.check()
    house.restarts += 1
    await house.watcher.check()
    assert house.service.serving is not None
    assert {p.certified_f1 for p in house.service.serving.plans()} == {0.8}


async def test_another_host_transfers_the_certificate_and_is_profiled(house: House) -> None:
    """The latency of another machine says nothing about this one."""
    house.publish(small_and_large())
    await house.watcher.check()
    serving = house.service.serving
    assert serving is not None
    assert set(serving.trust.values()) == {Trust.TRANSFERRED}
    assert serving.profiles["small"].host.cpu != "test cpu"
    differs = (await house.watcher.readiness()).variants["small"].host_differs
    assert "test cpu where it was certified" in str(differs)


async def test_a_catalog_of_another_gpu_says_so(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """It is served, with latencies of this host, and nobody has to guess why it is not `certified`."""
    catalog = small_and_large()
    gpu = replace(describe(HOST.engine), gpu="a GPU that nobody has")
    plans = tuple(replace(p, certificate=replace(p.certificate, host=gpu)) for p in catalog.plans)
    house.publish(replace(catalog, plans=plans))
    with caplog.at_level("INFO"):
        await house.watcher.check()
    state = (await house.watcher.readiness()).variants["small"]
    assert (state.served, state.trust) == (True, "transferred")
    said = f"gpu {describe('').gpu or 'none'} here, a GPU that nobody has where it was certified"
    assert state.host_differs == said
    assert caplog.text.count(said) == 1


async def test_what_was_measured_here_is_not_measured_again(house: House) -> None:
    """A switch must not load the host with profiling."""
    house.publish(small_and_large())
    await house.watcher.check()
    house.backend.asked.clear()
    house.restarts = 1
    await house.watcher.check()
    assert house.backend.asked == ["small", "large"]  # one golden input each


async def test_a_new_catalog_is_switched_to(house: House) -> None:
    """Publishing is enough."""
    house.publish(small_and_large())
    await house.watcher.check()
    house.publish(another())
    await house.watcher.check()
    assert house.served() == ["medium"]
    assert house.switches("switched") == 2


@pytest.mark.parametrize("bad", [b"{", b'{"schema_version": 2}', b'{"schema_version": 1}'])
async def test_a_bad_catalog_is_refused_once_and_the_old_goes_on(house: House, bad: bytes) -> None:
    """A mistake in publishing must not be felt by callers."""
    house.publish(small_and_large())
    await house.watcher.check()
    (house.repository / CATALOG).write_bytes(bad)
    for _ in range(3):
        await house.watcher.check()
    readiness = await house.watcher.readiness()
    assert house.served() == ["large", "small"]
    assert house.switches("refused") == 1
    assert house.service.metrics.registry.get_sample_value("bertier_catalog_refused") == 1
    assert readiness.ready
    assert readiness.refused


async def test_a_corrected_catalog_is_served_after_a_refusal(house: House) -> None:
    """A refusal is of one file's content only."""
    (house.repository / CATALOG).write_bytes(b"{")
    await house.watcher.check()
    assert not (await house.watcher.readiness()).ready
    house.publish(small_and_large())
    await house.watcher.check()
    readiness = await house.watcher.readiness()
    assert (readiness.ready, readiness.refused) == (True, None)


async def test_looking_again_leaves_the_breakers_of_others_open(house: House) -> None:
    """What was not checked is as broken as before; what was checked starts afresh."""
    house.backend.errors["small"] = BackendError("small: broken")
    house.publish(small_and_large())
    await house.watcher.check()
    assert house.served() == ["large"]
    serving = house.service.serving
    assert serving is not None
    for name in ("small", "large"):
        for _ in range(breaker.IN_A_ROW):
            serving.breakers.of(name).begin(house.now_ms).failed(house.now_ms)
    house.backend.errors.clear()
    house.now_ms += LONGEST_RETRY_MS
    await house.watcher.check()
    assert house.served() == ["large", "small"]
    recovered = house.service.serving
    assert recovered is not None
    assert not recovered.breakers.of("large").closed
    assert recovered.breakers.of("small").closed


async def test_a_missing_catalog_says_what_to_do(house: House) -> None:
    """The first thing a newcomer meets."""
    await house.watcher.check()
    (reason,) = (await house.watcher.readiness()).reasons
    assert "bertier-optimize publish" in reason


async def test_a_wrong_tokenizer_is_refused(house: House) -> None:
    """Other tokens make every certificate void."""
    house.publish(small_and_large())
    (house.repository / TOKENIZER.name).write_text("{}")
    await house.watcher.check()
    assert house.served() == []
    assert "tokenizer.json" in str((await house.watcher.readiness()).refused)


async def test_a_server_that_comes_later_is_waited_for(house: House) -> None:
    """Nobody starts the two in the right order."""
    house.publish(small_and_large())
    house.backend.error = BackendUnavailable("nobody there")
    await house.watcher.check()
    assert house.served() == []
    assert house.switches("refused") == 0
    house.backend.error = None
    await house.watcher.check()
    assert house.served() == ["large", "small"]


@pytest.mark.parametrize("seen_down", [True, False])
async def test_a_server_that_came_back_is_checked_again(house: House, seen_down: bool) -> None:
    """It has to load the models again, even when it was away between two looks."""
    house.publish(small_and_large())
    await house.watcher.check()
    if seen_down:
        house.backend.error = BackendUnavailable("gone")
        await house.watcher.check()
        assert not (await house.watcher.readiness()).ready
        house.backend.error = None
    house.backend.loaded.clear()
    house.restarts += 1
    await house.watcher.check()
    assert house.served() == ["large", "small"]
    assert set(house.backend.loaded) == {"small/1", "large/1"}


async def test_a_variant_whose_file_changed_is_dropped_until_it_is_right(house: House) -> None:
    """The certificate is of one file, by its hash."""
    catalog = small_and_large()
    house.publish(catalog)
    await house.watcher.check()
    house.backend.loaded["large/1"] = "f" * 64
    await house.watcher.check()
    assert house.served() == ["small"]
    problem = (await house.watcher.readiness()).variants["large"].problem
    assert "ffffffffffff" in str(problem)
    house.backend.loaded["large/1"] = catalog.variant("large").sha256
    await house.watcher.check()
    assert house.served() == ["large", "small"]


async def test_metrics_show_the_server_and_the_variants(house: House) -> None:
    """An alert watches these."""
    house.publish(small_and_large())
    await house.watcher.check()
    text = exposition.text(house.service.metrics)
    assert 'bertier_backend_up{backend="fake"} 1.0' in text
    assert 'bertier_variant_up{trust="transferred",variant="small"} 1.0' in text
    assert 'bertier_plan_certified_f1{plan="large"} 0.7' in text
    assert 'bertier_variant_hash_matches{variant="large"} 1.0' in text
    assert 'bertier_catalog_info{commit="0000000",sha256="' in text
    assert "bertier_catalog_refused 0.0" in text


class BrokenBackend(FakeBackend):
    """A model server whose models overflow."""

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        logits = np.full(windows.input_ids.shape, np.nan, np.float32)
        return Inference(Logits(logits, logits), 0.0, 1.0)


async def test_golden_answers_that_are_no_numbers_certify_nothing(house: House) -> None:
    """NaN is not within any tolerance."""
    found = await prepare(house.repository, small_and_large(), BrokenBackend())
    assert set(found.trust.values()) == {Trust.UNCERTIFIED}


async def test_a_profile_that_ends_early_is_refused(house: House) -> None:
    """No latency could be predicted for a longer text, and every such request would fail."""
    variant = make_variant("small", 5)
    short = replace(variant, profile=replace(variant.profile, cells=variant.profile.cells[:2]))
    house.publish(make_catalog([short], [0.5]))
    await house.watcher.check()
    assert house.served() == []
    assert "384 tokens" in ((await house.watcher.readiness()).refused or "")


async def test_a_catalog_that_breaks_the_checks_is_refused(house: House) -> None:
    """Golden logits of another length: said once, not thrown every two seconds."""
    golden = GoldenLogits((0.0,) * 1000, (0.0,) * 1000)
    house.publish(make_catalog([replace(make_variant("small", 5), golden=(golden,))], [0.5]))
    await house.watcher.check()
    await house.watcher.check()
    assert house.switches("refused") == 1
    assert house.service.metrics.registry.get_sample_value("bertier_catalog_refused") == 1
    assert "could not be checked" in ((await house.watcher.readiness()).refused or "")


class ShortOfMemory(FakeBackend):
    """A model server that is ready, but cannot load some models."""

    def __init__(self, *missing: str) -> None:
        super().__init__()
        self.missing = set(missing)
        self.tried = 0

    async def load(self, variant: Variant) -> None:
        if variant.name in self.missing:
            self.tried += 1
            raise BackendUnavailable(f"{variant.name}: could not be loaded")
        await super().load(variant)


async def test_a_first_catalog_is_tried_again_after_a_restart(tmp_path: Path) -> None:
    """It was refused because of the server, and the catalog will not change by itself."""
    backend = ShortOfMemory("small", "large")
    house = House(tmp_path, backend)
    house.publish(small_and_large())
    await house.watcher.check()
    assert house.served() == []
    backend.missing.clear()
    house.restarts = 1
    await house.watcher.check()
    assert house.served() == ["large", "small"]


async def test_a_variant_that_could_not_be_loaded_is_tried_again(tmp_path: Path) -> None:
    """Soon, then less and less often; whoever waits for it sees when."""
    backend = ShortOfMemory("large")
    house = House(tmp_path, backend)
    house.publish(small_and_large())
    waits_ms = []
    for _ in range(8):
        await house.watcher.check()
        waits_ms.append((await house.watcher.readiness()).retry_in_ms)
        await house.watcher.check()  # too early: nothing happens
        house.now_ms += waits_ms[-1] or 0.0
    assert waits_ms == [2e3, 4e3, 8e3, 16e3, 32e3, 60e3, 60e3, 60e3]
    assert backend.tried == 8
    assert house.served() == ["small"]
    backend.missing.clear()
    await house.watcher.check()
    readiness = await house.watcher.readiness()
    assert house.served() == ["large", "small"]
    assert (readiness.variants["large"].problem, readiness.retry_in_ms) == (None, None)


async def test_what_is_served_is_not_asked_again_for_the_sake_of_what_is_not(
    tmp_path: Path,
) -> None:
    """Under load a good variant could fail its second examination."""
    backend = ShortOfMemory("large")
    house = House(tmp_path, backend)
    house.publish(small_and_large())
    await house.watcher.check()
    backend.asked.clear()
    backend.missing.clear()
    house.now_ms += 2e3
    await house.watcher.check()
    assert set(backend.asked) == {"large"}


async def test_a_refusal_that_may_pass_is_tried_again(tmp_path: Path) -> None:
    """The new catalog is sound; the server was not. It is counted once."""
    backend = ShortOfMemory("medium")
    house = House(tmp_path, backend)
    house.publish(small_and_large())
    await house.watcher.check()
    house.publish(another())
    for _ in range(3):
        await house.watcher.check()
        house.now_ms += (await house.watcher.readiness()).retry_in_ms or 0.0
    assert (house.served(), backend.tried) == (["large", "small"], 3)
    backend.missing.clear()
    await house.watcher.check()
    readiness = await house.watcher.readiness()
    assert house.served() == ["medium"]
    assert (readiness.refused, readiness.retry_in_ms) == (None, None)
    assert (house.switches("refused"), house.switches("switched")) == (1, 2)


async def test_a_refusal_that_cannot_pass_is_not_tried_again(house: House) -> None:
    """Only another catalog mends it."""
    house.publish(small_and_large())
    await house.watcher.check()
    (house.repository / CATALOG).write_bytes(b"{")
    await house.watcher.check()
    assert (await house.watcher.readiness()).retry_in_ms is None


async def test_what_nothing_routes_to_is_unloaded(house: House) -> None:
    """Models that were replaced must not fill the server's memory."""
    house.publish(small_and_large())
    await house.watcher.check()
    house.publish(another())
    await house.watcher.check()
    assert set(house.backend.loaded) == {"medium/1"}


async def test_a_replaced_version_is_unloaded_and_the_new_one_is_not(house: House) -> None:
    """The name is the same."""
    first = make_variant("small", 5)
    second = replace(first, version=2, sha256="2" * 64)
    for variant in (first, second):
        house.publish(make_catalog([variant], [0.5]))
        await house.watcher.check()
    assert set(house.backend.loaded) == {"small/2"}


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_request_in_flight_keeps_its_model(tmp_path: Path, leaves: bool) -> None:
    """Until it ends, or until no request can be so old."""
    house = House(tmp_path)
    house.publish(small_and_large())
    await house.watcher.check()
    house.backend.gate = asyncio.Event()
    asked = len(house.backend.asked)
    question, resolved = Question(QUESTION, CONTEXT), SloRequest(latency_ms=60_000)
    request = asyncio.create_task(house.service.answer(question, resolved, now_ms()))
    await house.backend.until_asked(asked + 1)
    gate, house.backend.gate = house.backend.gate, None
    house.publish(another())
    for _ in range(2):
        await house.watcher.check()
        assert set(house.backend.loaded) == {"small/1", "large/1", "medium/1"}
        house.now_ms += 100_000
    if leaves:
        gate.set()
        await request
    else:
        house.now_ms += 100_000
    await house.watcher.check()
    assert set(house.backend.loaded) == {"medium/1"}
    gate.set()
    await request


async def test_a_rollback_finds_its_models(house: House) -> None:
    """What was unloaded is loaded again."""
    for catalog in (small_and_large(), another(), small_and_large()):
        house.publish(catalog)
        await house.watcher.check()
    assert house.served() == ["large", "small"]
    assert set(house.backend.loaded) == {"small/1", "large/1"}


async def test_a_server_that_does_not_unload_keeps_its_variants(tmp_path: Path) -> None:
    """Memory is lost, answers are not."""

    class Stubborn(FakeBackend):
        unloads = 0

        async def unload(self, variant: Variant, kept: Collection[Variant]) -> bool:
            self.unloads += 1
            raise BackendUnavailable("no")

    backend = Stubborn()
    house = House(tmp_path, backend)
    for catalog in (small_and_large(), another()):
        house.publish(catalog)
        await house.watcher.check()
    await house.watcher.check()
    assert (house.served(), backend.unloads) == (["medium"], 2)


async def test_the_next_start_only_probes_what_was_measured_here(tmp_path: Path) -> None:
    """A restart is ready in seconds; a host that became another is noticed."""

    class Counted(FakeBackend):
        def __init__(self, ms: float) -> None:
            super().__init__()
            self.ms, self.lengths = ms, set[int]()

        async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
            self.lengths.add(windows.input_ids.shape[1])
            return replace(await super().infer(variant, windows, budget_ms), infer_ms=self.ms)

    def start(ms: float) -> House:
        return House(tmp_path, Counted(ms), profiles=str(tmp_path / "profiles"))

    houses = [start(40.0), start(41.0), start(90.0), start(91.0)]
    houses[0].publish(make_catalog([make_variant("small", 5)], [0.5]))
    measured, p50_ms = [], []
    for each in houses:
        await each.watcher.check()
        assert isinstance(each.backend, Counted)
        assert each.service.serving is not None
        measured.append(each.backend.lengths > {PROBE_BUCKET, 384})
        p50_ms.append(each.service.serving.profiles["small"].cell(PROBE_BUCKET).p50_ms)
    assert measured == [True, False, True, False]
    assert p50_ms == [40.0, 40.0, 90.0, 90.0]


async def test_a_variant_that_is_slow_here_is_believed_the_second_time(tmp_path: Path) -> None:
    """One that the others do not explain is measured once more; then it counts, however slow it is."""

    class Slow(FakeBackend):
        async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
            ms = 400.0 if variant.name == "slow" else variant.profile.cells[0].p50_ms
            return replace(await super().infer(variant, windows, budget_ms), infer_ms=ms)

    house = House(tmp_path, Slow())
    names = ("a", "b", "slow")
    house.publish(make_catalog([make_variant(name, 10) for name in names], [0.5, 0.6, 0.7]))
    await house.watcher.check()
    assert house.service.serving is not None
    assert house.service.serving.under_load == {"slow"}
    house.now_ms += 60_000
    await house.watcher.check()
    assert not house.service.serving.under_load
    assert house.service.serving.profiles["slow"].cell(64).p50_ms == 400.0


async def test_latency_measured_beside_requests_is_marked_and_measured_again(house: House) -> None:
    """A queue that is measured for a model would move traffic away from it for ever."""
    house.publish(make_catalog([make_variant("small", 5)], [0.5]))
    await house.watcher.check()
    old = house.service.serving
    assert old is not None
    house.publish(another())
    work = old.latency.begin("small", Size(64, 1), 0.0)
    await house.watcher.check()
    old.latency.leave(work, 0.0)
    assert (await house.watcher.readiness()).variants["medium"].measured_under_load
    serving = house.service.serving
    assert serving is not None
    work = serving.latency.begin("medium", Size(64, 1), 0.0)
    for _ in range(3):
        await house.watcher.check()
        house.now_ms += 60_000
    assert serving.under_load == {"medium"}
    serving.latency.leave(work, 0.0)
    await house.watcher.check()
    assert not (await house.watcher.readiness()).variants["medium"].measured_under_load
