"""Arrivals keep the rate they are asked for; a trace survives its file; a bad one is named by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest.lab import mixes, traces
from loadtest.lab.arrivals import PROCESSES, gamma
from loadtest.lab.traces import TraceError
from tests.loadtest.lab_world import world

HEADER = "arrival_ms,latency_ms,min_f1"


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_has_the_mean_rate(name: str) -> None:
    """A load has to mean the same work for all of them."""
    rates = [
        len(PROCESSES[name](50.0, 200.0, np.random.default_rng(seed))) / 200.0 for seed in range(12)
    ]
    assert np.mean(rates) == pytest.approx(50.0, rel=0.08)


@pytest.mark.parametrize("cv", [1, 2, 4, 8])
def test_gaps_vary_as_much_as_their_name_says(cv: int) -> None:
    """Burstiness is the point of the Gamma processes."""
    gaps = np.diff(gamma(cv)(100.0, 2_000.0, np.random.default_rng(0)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_arrivals_are_in_order_and_within_their_length() -> None:
    """The engine takes them as they come."""
    for process in PROCESSES.values():
        times = process(50.0, 20.0, np.random.default_rng(1))
        assert (np.diff(times) >= 0).all()
        assert 0 <= times[0] <= times[-1] < 20_000


def test_a_mix_asks_for_the_impossible_in_one_of_twenty() -> None:
    """Whatever the catalog holds: SLOs are made from its floors and times."""
    for make in mixes.MIXES.values():
        mix = make(world().catalog)
        assert sum(k.share for k in mix) == pytest.approx(1.0)
        assert sum(k.share for k in mix if not k.feasible) == pytest.approx(0.05)


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    """What the lab plays, an open-loop driver can play."""
    there = world()
    mix = mixes.mixed(there.catalog)
    made = traces.make("poisson", 20.0, 5.0, mix, there.recording, seed=1)
    traces.write(tmp_path / "t.csv", made, there.recording)
    again = traces.read(tmp_path / "t.csv", there.recording, there.catalog.best_floor)
    assert [(a.question, a.slo.slo_class, a.slo.policy) for a in again] == [
        (a.question, a.slo.slo_class, a.slo.policy) for a in made
    ]
    assert [a.slo.timeout_ms for a in again] == [a.slo.timeout_ms for a in made]
    gaps = [a.arrival_ms - made[0].arrival_ms for a in made]
    assert [a.arrival_ms for a in again] == pytest.approx(gaps, abs=2e-3)


def test_a_row_that_says_little_gets_the_default_class(tmp_path: Path) -> None:
    """Only the times are needed."""
    (tmp_path / "t.csv").write_text("arrival_ms\n10\n5\n")
    first, second = traces.read(tmp_path / "t.csv", world().recording, 0.7)
    assert (first.arrival_ms, second.arrival_ms) == (0.0, 5.0)
    assert first.slo.latency_ms == 250.0
    assert first.slo.min_f1 == pytest.approx(0.68)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"{HEADER}\n1,50,0.5\nsoon,50,0.5\n", ":3: "),
        (f"{HEADER}\n1,50,2\n", ":2: "),
        (f"{HEADER}\nnan,50,0.5\n", "not finite"),
        ("latency_ms\n50\n", "arrival_ms"),
        (f"{HEADER}\n", "no request"),
    ],
)
def test_a_bad_row_is_named(text: str, named: str, tmp_path: Path) -> None:
    """Nothing is guessed, and nothing is left out in silence."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TraceError, match=named):
        traces.read(tmp_path / "t.csv", world().recording, 0.7)
