"""A short profile, measured through a model server that takes the time a test says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, cycle, repeat

import pytest

from gateway.catalog.schema import Variant
from gateway.domain import Inference, Question, Windows
from gateway.latency import profile
from tests.fakes import CONTEXT, HOST, QUESTION, FakeBackend, encoder, make_variant

ELSEWHERE = replace(HOST, cpu="another cpu")
SAMPLE = encoder().encode(Question(QUESTION, CONTEXT))
VARIANT = make_variant("small", 5)  # 5, 7.5 and 10 ms at every length


class TimedBackend(FakeBackend):
    """Each inference takes the next of these times; each is remembered by its length."""

    def __init__(self, times_ms: Iterable[float]) -> None:
        super().__init__()
        self._times_ms: Iterator[float] = iter(times_ms)
        self.lengths: list[int] = []

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        self.lengths.append(windows.n_tokens)
        found = await super().infer(variant, windows, budget_ms)
        return replace(found, infer_ms=next(self._times_ms))


async def test_a_new_host_is_profiled_at_every_length() -> None:
    """With the tails that the catalog's profile has over its median."""
    backend = TimedBackend(repeat(20.0))
    found = await profile.profile(VARIANT, SAMPLE, backend, ELSEWHERE)
    assert found.profile.host == ELSEWHERE
    cells = [(c.bucket, c.p50_ms, c.p95_ms, c.p99_ms) for c in found.profile.cells]
    assert cells == [(bucket, 20.0, 30.0, 40.0) for bucket in (64, 128, 256, 384)]
    assert found.undisturbed


async def test_runs_that_had_to_wait_do_not_count() -> None:
    """Other programs lengthen a run, and never shorten one."""
    backend = TimedBackend(cycle([20.0, 500.0, 21.0, 300.0, 900.0]))
    found = await profile.profile(VARIANT, SAMPLE, backend, ELSEWHERE)
    assert all(20.0 <= cell.p50_ms <= 21.0 for cell in found.profile.cells)


@pytest.mark.parametrize("busy_runs", [0, 3, 100])
async def test_runs_beside_requests_count_only_where_there_are_no_others(busy_runs: int) -> None:
    """Such a profile is marked: it may be a queue that was measured."""
    backend = TimedBackend(chain(repeat(80.0, 1 + busy_runs), repeat(20.0)))
    found = await profile.profile(
        VARIANT, SAMPLE, backend, ELSEWHERE, lambda: len(backend.lengths) <= 1 + busy_runs
    )
    assert found.undisturbed == (busy_runs < 100)
    assert found.profile.cell(64).p50_ms == (20.0 if busy_runs < 100 else 80.0)


@pytest.mark.parametrize(
    ("ms", "believed"), [(5.0, True), (9.0, True), (10.0, False), (3.0, False)]
)
async def test_a_profile_of_this_host_is_believed_after_a_few_runs(
    ms: float, believed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The same CPU can be a busier or a faster machine; a probe costs a fraction of a second."""
    backend = TimedBackend(repeat(ms))
    found = await profile.profile(VARIANT, SAMPLE, backend, HOST)
    assert (found.profile is VARIANT.profile) == believed
    assert (set(backend.lengths) == {128}) == believed
    assert found.profile.cell(128).p50_ms == (5.0 if believed else ms)
    assert ("measured again" in caplog.text) != believed


async def test_the_way_to_the_model_server_is_no_reason_to_doubt_a_small_model() -> None:
    """Measured again with it, a small model looked dearer than a larger one that was believed."""
    small = make_variant("smallest", 1)
    found = await profile.profile(small, SAMPLE, TimedBackend(repeat(2.6)), HOST)
    assert found.profile is small.profile


async def test_a_profile_of_this_host_is_believed_beside_requests() -> None:
    """Being busy makes a right profile look wrong; it is asked again later."""
    backend = TimedBackend(repeat(50.0))
    found = await profile.profile(VARIANT, SAMPLE, backend, HOST, lambda: True)
    assert found.profile is VARIANT.profile
    assert not found.undisturbed


async def test_a_slow_host_is_profiled_in_fewer_runs() -> None:
    """Half a core and a large model would otherwise take minutes until the gateway is ready."""
    backend = TimedBackend(repeat(800.0))
    found = await profile.profile(VARIANT, SAMPLE, backend, ELSEWHERE)
    assert found.undisturbed
    assert len(backend.lengths) == 4 * (1 + profile.FEWEST_RUNS)


async def test_a_profile_whose_runs_scatter_is_marked() -> None:
    """Other programs took the cores for a part of the runs; what they did to the rest is unknown."""
    backend = TimedBackend(cycle([20.0, 90.0, 160.0]))
    assert not (await profile.profile(VARIANT, SAMPLE, backend, ELSEWHERE)).undisturbed
    steady = TimedBackend(cycle([20.0, 22.0, 25.0]))
    assert (await profile.profile(VARIANT, SAMPLE, steady, ELSEWHERE)).undisturbed


async def test_a_short_text_is_never_profiled_slower_than_a_long_one() -> None:
    """Whatever ran beside the short one."""
    n = 1 + profile.RUNS
    times_ms = chain(*(repeat(ms, n) for ms in (60.0, 6.0, 80.0, 18.0)))
    found = await profile.profile(VARIANT, SAMPLE, TimedBackend(times_ms), ELSEWHERE)
    assert [c.p50_ms for c in found.profile.cells] == [6.0, 6.0, 18.0, 18.0]


def test_a_variant_slower_than_the_others_explain_is_doubted() -> None:
    """One that was profiled in a bad moment would never be asked, and so never be corrected."""
    variants = [make_variant(name, ms) for name, ms in (("a", 10), ("b", 40), ("c", 100))]
    slow = {v.name: make_variant(v.name, 3 * v.profile.cell(64).p50_ms).profile for v in variants}
    assert profile.doubtful(variants, slow) == frozenset()
    assert profile.doubtful(variants, slow | {"c": make_variant("c", 1_500).profile}) == {"c"}
    assert profile.doubtful(variants, {}) == frozenset()


def test_of_two_profiles_the_faster_cells_count() -> None:
    """Other work lengthens a run, and never shortens one."""
    before, again = make_variant("a", 30).profile, make_variant("a", 20).profile
    assert {c.p50_ms for c in profile.fastest_of(before, again).cells} == {20}
    assert {c.p50_ms for c in profile.fastest_of(again, before).cells} == {20}


@pytest.mark.parametrize(
    ("cores", "times_ms", "found_ms"),
    [
        (2.0, [20, 20, 20, 70], 20),  # the rest of a host is no quota
        (0.5, [20, 20, 70, 20, 20, 70, 20, 70], 38.75),  # 50 of every 100 ms: two and a half runs
        (0.5, [20, 20, 900, 20], 40),  # another program, too: never more than the share explains
        (0.5, [180, 190, 180, 170], 180),  # long runs are throttled themselves
    ],
)
def test_under_a_quota_the_time_that_lasts_counts(
    cores: float, times_ms: list[float], found_ms: float
) -> None:
    """A burst of two fast runs predicts nothing of the third."""
    assert profile.sustained_ms(times_ms, cores) == pytest.approx(found_ms)
