"""What became of requests around an event, as rows: nothing is hidden by how it is counted."""

from __future__ import annotations

from dataclasses import replace

from loadtest.drive.outcomes import Outcome, Result
from loadtest.faults import phases
from loadtest.faults.phases import CLIENT, STREAK, Episode, Phase
from tests.loadtest import driving

SLO = driving.slo(100.0, 0.3)


def ended(at_ms: float, took_ms: float = 10.0, outcome: Outcome = Outcome.ANSWERED) -> Result:
    return driving.result(at_ms, took_ms, SLO, outcome=outcome)


SEEN = [
    ("HTTP", ended(0)),
    ("gRPC", ended(50)),
    ("HTTP", ended(95, 20, Outcome.LOST)),  # under way at the event
    ("gRPC", ended(120, 10, Outcome.SHED)),
    (CLIENT, ended(130, 200)),
    ("HTTP", ended(210)),
]


def rows() -> tuple[phases.Row, phases.Row, phases.Row]:
    return phases.rows(SEEN, 0.0, 100.0, 200.0, 300.0)


def test_what_was_under_way_at_the_event_belongs_to_it() -> None:
    """Lost or not: it was the event that it met."""
    before, during, after = rows()
    assert (before.sent, before.answered) == (2, 2)
    assert (during.sent, during.answered, during.refused, during.lost) == (2, 0, 1, 1)
    assert (during.client_sent, during.client_failed) == (1, 0)
    assert (after.phase, after.sent, after.attained) == (Phase.AFTER, 1, 1.0)


def test_recovered_is_a_streak_that_lasts() -> None:
    """One SLO met between violations is luck."""
    at = [100.0 + 10 * i for i in range(2 * STREAK)]
    results = [ended(t, 500.0 if t == 130.0 else 5.0) for t in at]
    numbered = [
        ("HTTP", replace(r, request=replace(r.request, index=i))) for i, r in enumerate(results)
    ]
    assert phases.recovered_s(numbered, 100.0) == 0.04
    assert phases.recovered_s(numbered[:STREAK], 100.0) is None


def test_only_what_was_on_its_way_may_be_lost_with_a_gateway() -> None:
    """Another loss is a loss."""
    late = ("gRPC", ended(250, 10, Outcome.LOST))
    assert phases.in_flight(SEEN, 1, 96.0, 100.0).lost_beside == 0
    assert phases.in_flight([*SEEN, late], 1, 96.0, 100.0).lost_beside == 1


def test_every_kind_of_failure_is_a_complaint() -> None:
    """Refused, lost, failed although asked again, late to recover."""
    before, during, after = rows()
    calm = replace(during, refused=0, lost=0)
    good = Episode("x", (before, calm, after), 0.1)
    assert good.complaint() == ""
    for wrong, word in (
        (replace(calm, lost=1), "lost"),
        (replace(calm, refused=1), "refused"),
        (replace(calm, client_failed=1), "failed"),
    ):
        assert word in replace(good, rows=(before, wrong, after)).complaint()
    killed = replace(good, in_flight=phases.InFlight(1, 1, 0))
    assert killed.complaint() == ""
    assert "lost" in replace(killed, rows=(replace(before, lost=1), calm, after)).complaint()
    assert "recovered" in replace(good, recovered_s=5.1).complaint()
    assert phases.markdown([good]).count("\n") == 4
