"""A record of decisions is read whole or refused by line; capacity is found where it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.lab import capacity, replay
from loadtest.lab.replay import Decided, RecordError
from tests.loadtest.lab_world import slo, trace, world

LINE = {
    "v": 1,
    "arrival_ms": 100.0,
    "bucket": 128,
    "n_windows": 1,
    "latency_ms": 50.0,
    "min_f1": 0.5,
    "policy": "strict",
    "timeout_ms": 50.0,
    "slo_class": "interactive",
    "plan": "small",
    "reason": "meets_slo",
    "predicted_ms": 12.0,
    "took_ms": 11.0,
    "outcome": "answered",
}


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    """What is written is what is read; fields of a later gateway are passed over."""
    decided = [Decided.model_validate_json(json.dumps(LINE | {"later": 1}))]
    replay.write(tmp_path / "r.jsonl", decided)
    assert replay.read(tmp_path / "r.jsonl") == decided


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"v": 2}, "v: "),
        ({"bucket": 0}, "bucket"),
        ({"outcome": "lost"}, "outcome"),
        ({"policy": "rush"}, "policy"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    change: dict[str, object], named: str, tmp_path: Path
) -> None:
    """A record of another version must not be half understood."""
    lines = [json.dumps(LINE), json.dumps(LINE | change)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    with pytest.raises(RecordError, match=f":2: {named}"):
        replay.read(tmp_path / "r.jsonl")


def test_outcomes_are_computed_from_the_record_alone() -> None:
    """One in time by a plan that promises enough, one late, one refused."""
    changes: tuple[dict[str, object], ...] = (
        {},
        {"took_ms": 80.0},
        {"outcome": "refused", "plan": None, "predicted_ms": None},
    )
    decided = [Decided.model_validate_json(json.dumps(LINE | c)) for c in changes]
    found = replay.happened(decided, world())
    assert (found.in_time, found.by_certificate, found.refused) == pytest.approx((1 / 3,) * 3)
    assert found.plans == {"small": 2, "(none)": 1}


def test_a_replayed_request_keeps_time_slo_and_size() -> None:
    """Texts are not recorded: a question of the same size stands in."""
    decided = [
        Decided.model_validate_json(json.dumps(LINE | {"arrival_ms": t, "bucket": 384}))
        for t in (100.0, 130.0)
    ]
    first, second = replay.trace_of(decided, world().recording, best_floor=0.7)
    assert (first.arrival_ms, second.arrival_ms) == (0.0, 30.0)
    assert first.slo.slo_class == "interactive"
    assert 0 <= first.question < len(world().recording)


def test_a_request_refused_unread_is_replayed_with_any_question() -> None:
    """How long it was, nobody knows; left out, the load of a busy hour would look light."""
    unread = {"bucket": None, "n_windows": None, "plan": None, "outcome": "refused"}
    decided = [Decided.model_validate_json(json.dumps(LINE | unread)) for _ in range(40)]
    asked = replay.trace_of(decided, world().recording, best_floor=0.7)
    assert len({each.question for each in asked}) > 1
    assert replay.happened(decided, world()).refused == 1.0


def test_an_slo_that_one_host_meets_needs_one() -> None:
    """And not the larger model, where the floor does not ask for it."""
    calm = trace([200.0 * i for i in range(40)], slo(100.0, 0.5))
    found = capacity.plan(world(), calm, 0.95, lambda _: None)
    assert found.fleet is not None
    assert (found.fleet.replicas, found.fleet.variants) == (1, ("small",))


def test_more_load_needs_more_hosts_and_one_fewer_is_not_enough() -> None:
    """The smallest fleet is the smallest: the one below it was played and fell short."""
    busy = trace([3.0 * i for i in range(400)], slo(60.0, 0.65))
    found = capacity.plan(world(), busy, 0.9, lambda _: None)
    assert found.fleet is not None
    assert found.fleet.replicas > 1
    below = [
        f
        for f in found.tried
        if (f.variants, f.replicas) == (found.fleet.variants, found.fleet.replicas - 1)
    ]
    assert [f.attained < 0.9 for f in below] == [True]


def test_a_floor_that_no_variant_meets_ends_the_search() -> None:
    """More hosts make nothing more accurate."""
    asked = trace([50.0 * i for i in range(20)], slo(100.0, 0.99))
    assert capacity.plan(world(), asked, 0.9, lambda _: None).fleet is None


def test_one_more_nine_is_a_tenth_of_the_misses() -> None:
    """0.99 -> 0.999."""
    assert capacity.one_more_nine(0.99) == pytest.approx(0.999)
