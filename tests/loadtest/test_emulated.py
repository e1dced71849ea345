"""The lab beside the real system: judged alike, and told nothing of what it is compared with."""

from __future__ import annotations

import json
from math import inf, isnan

import pytest

from loadtest import emulated
from loadtest.drive.outcomes import Outcome
from loadtest.emulated import Difference, Spent
from loadtest.lab.contenders import OURS, make
from loadtest.lab.engine import End, simulate
from tests.loadtest import driving, lab_world

ARRIVALS = [10.0 * i for i in range(200)]


def test_the_lab_agrees_with_itself() -> None:
    """What was served as the lab plays it differs in nothing."""
    world, trace = lab_world.world(), lab_world.trace(ARRIVALS)
    served = simulate(world, trace, make(OURS, world, {}, 1), 1)
    found = emulated.compare(world, trace, served, 1)
    assert {d.measure for d in found} == {*emulated.ATTAINMENTS, *emulated.QUANTILES}
    assert all(d.apart == 0.0 and d.within for d in found if d.served), found


def test_a_slower_system_than_the_lab_believes_is_seen() -> None:
    """Half as fast is no rounding error."""
    world, trace = lab_world.world(), lab_world.trace(ARRIVALS)
    served = simulate(world, trace, make(OURS, world, {}, 1), 1)
    for fate in served:
        fate.latency_ms *= 2
    found = {d.measure: d for d in emulated.compare(world, trace, served, 1)}
    assert found["p50_ms"].apart == pytest.approx(-0.5)
    assert not found["p50_ms"].within


@pytest.mark.parametrize(
    ("measure", "served", "emulated_", "within"),
    [
        ("joint", 0.90, 0.93, True),
        ("joint", 0.90, 0.86, False),
        ("p99_ms", 100.0, 114.0, True),
        ("p99_ms", 100.0, 80.0, False),
    ],
)
def test_the_aim_is_three_points_and_fifteen_percent(
    measure: str, served: float, emulated_: float, within: bool
) -> None:
    """In either direction: an emulator that is kinder than the host is no better than a harsher one."""
    found = Difference(measure, served, emulated_ - 1e-9)
    assert found.within is within
    assert emulated.table_row(found)[-1] == ("yes" if within else "no")


def test_nothing_answered_is_not_within_the_aim() -> None:
    """No latency is not the same latency."""
    found = Difference("p50_ms", float("nan"), 10.0)
    assert isnan(found.apart)
    assert not found.within
    assert emulated.plain(found)["served"] is None


def test_real_outcomes_become_the_labs() -> None:
    """Sheds and refusals are rejections there; whatever else gave no answer has expired."""
    promise = driving.slo(50.0)
    ends = {
        outcome: emulated.fate_of(driving.result(0, 20, promise, outcome=outcome)).end
        for outcome in Outcome
    }
    assert ends[Outcome.ANSWERED] is End.ANSWERED
    assert ends[Outcome.SHED] is ends[Outcome.REFUSED] is End.REFUSED
    assert ends[Outcome.EXPIRED] is ends[Outcome.LOST] is ends[Outcome.SILENT] is End.EXPIRED
    assert emulated.fate_of(driving.result(0, 1, promise, outcome=Outcome.SHED)).latency_ms == inf


def test_fates_survive_their_file() -> None:
    """A killed comparison goes on with what it has."""
    promise = driving.slo(50.0)
    fates = [
        emulated.fate_of(driving.result(0, 20, promise)),
        emulated.fate_of(driving.result(1, 20, promise, outcome=Outcome.SHED)),
    ]
    kept = json.loads(json.dumps(emulated.as_json(fates), allow_nan=False))
    assert emulated.from_json(kept) == fates


def test_what_triton_takes_beside_the_models_is_work_of_every_window() -> None:
    """The lab's windows run as long as Triton's do."""
    world, trace = lab_world.world(n_windows=2), lab_world.trace(ARRIVALS)
    fates = simulate(world, trace, make(OURS, world, {}, 1), 1)
    models_ms, windows = emulated.model_ms(world, trace, fates)
    assert (models_ms, windows) == (len(trace) * 1.0, len(trace) * 2)
    spent = Spent(len(trace), 300.0, 100.0, 500.0, models_ms)
    assert spent.gateway_cpu_ms == pytest.approx(2.0)
    assert spent.triton_cpu_ms(windows) == pytest.approx(0.75)
    dearer = emulated.dearer(world.recording, 0.75)
    assert {ms for said in dearer.said.values() for ms in said.cpu_ms} == {1.0 + 2 * 0.75}
    assert Spent(1, 1.0, 1.0, 0.5, 1.0).triton_cpu_ms(1) == 0.0
