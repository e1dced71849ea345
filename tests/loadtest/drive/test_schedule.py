"""Schedules are the lab's, with questions; their SLOs are what a gateway reads from the headers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import slo as grammar
from gateway.domain import Slo, SloPolicy
from loadtest.drive import schedule
from loadtest.sample import questions
from tests.fakes import small_and_large
from tests.loadtest.driving import slo


@given(
    st.floats(1.0, 60_000.0),
    st.floats(0.0, 1.0),
    st.sampled_from(SloPolicy),
    st.integers(0, 7),
)
def test_an_slo_survives_its_headers(
    latency_ms: float, min_f1: float, policy: SloPolicy, priority: int
) -> None:
    """The gateway's own grammar reads them back; a floor is never asked for above itself."""
    asked = Slo(latency_ms, min_f1, policy, latency_ms / 2, "interactive", priority)
    found = grammar.parse({k.lower(): v for k, v in schedule.headers(asked).items()}.get)
    assert found.latency_ms == pytest.approx(latency_ms, abs=1e-8)
    assert found.min_f1 is not None
    assert min_f1 - 2e-9 <= found.min_f1 <= min_f1 + 1e-12
    assert (found.policy, found.priority) == (policy, priority)
    assert found.timeout_ms == pytest.approx(latency_ms / 2, abs=1e-8)


@pytest.mark.parametrize("floor", [0.29, 0.3396226415, 0.57, 1.0])
def test_a_floor_of_few_digits_is_asked_for_as_it_is(floor: float) -> None:
    """A ninth digit lost would ask for less than the SLO does, and be judged against more."""
    said = schedule.headers(slo(min_f1=floor))["SLO-Min-F1"]
    assert float(said) == pytest.approx(floor, abs=1.1e-9)
    assert float(said) <= floor


def test_a_bound_on_the_loss_is_sent_where_there_is_one() -> None:
    """It is a limit of its own, beside the floor."""
    asked = replace(slo(), max_f1_loss=0.02)
    assert schedule.headers(asked)["SLO-Max-F1-Loss"] == "0.02"
    assert "SLO-Max-F1-Loss" not in schedule.headers(slo())


def test_a_class_that_only_the_lab_knows_is_not_sent() -> None:
    """The gateway would refuse it; the SLO is written out anyway."""
    assert "SLO-Class" not in schedule.headers(slo(slo_class="too-fast"))
    assert schedule.headers(slo(slo_class="batch"))["SLO-Class"] == "batch"


def test_a_schedule_asks_real_questions_at_the_rate_given() -> None:
    """The same seed gives the same run."""
    examples, mix = questions(None, 30), schedule.mix_of(small_and_large(), "mixed")
    first, second = (schedule.make("poisson", 50, 20, mix, examples, seed=3) for _ in range(2))
    assert first == second
    assert {r.example.id for r in first} == {e.id for e in examples}
    assert schedule.facts(first)["rate_per_s"] == pytest.approx(50, rel=0.2)


def test_a_recorded_trace_is_played_as_it_was(tmp_path: Path) -> None:
    """Arrival times, SLOs and questions are the file's."""
    path = tmp_path / "trace.csv"
    examples = questions(None, 5)
    path.write_text(
        f"arrival_ms,latency_ms,min_f1,question\n100,70,0.3,{examples[4].id}\n40,50,0.9,\n"
    )
    early, late = schedule.read(path, examples, best_floor=0.5)
    assert (early.at_ms, early.slo.latency_ms, early.feasible) == (0.0, 50.0, False)
    assert (late.at_ms, late.slo.min_f1, late.example) == (60.0, 0.3, examples[4])
