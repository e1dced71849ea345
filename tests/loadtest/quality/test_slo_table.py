"""The SLOs of the SLO table: they span the catalog, and the gateway can read them."""

from __future__ import annotations

from gateway import slo
from gateway.domain import SloPolicy
from loadtest.quality.slo_table import slos
from tests.fakes import small_and_large


def test_the_first_row_asks_for_nothing() -> None:
    """What a newcomer gets, who sends no header, belongs in the table."""
    assert slos(small_and_large())[0] == {}


def test_every_certified_floor_is_asked_for() -> None:
    """Each variant has its turn without being pinned."""
    asked = slos(small_and_large())
    for floor in ("0.500", "0.700"):
        assert {"SLO-Min-F1": floor, "SLO-Latency-Ms": "250"} in asked
    assert not any("SLO-Variant" in headers for headers in asked)


def test_one_infeasible_slo_is_requested_under_every_policy() -> None:
    """Only then do the policies differ."""
    tight = [h for h in slos(small_and_large()) if h.get("SLO-Latency-Ms") == "5"]
    assert {h["SLO-Policy"] for h in tight} == set(SloPolicy)
    assert {h["SLO-Min-F1"] for h in tight} == {"0.700"}


def test_a_floor_above_every_certificate_is_asked_for() -> None:
    """The table shows a refusal and a best effort, too."""
    above = [h["SLO-Policy"] for h in slos(small_and_large()) if h.get("SLO-Min-F1") == "0.99"]
    assert sorted(above) == ["prefer-accuracy", "strict"]


def test_the_gateway_reads_every_row() -> None:
    """A row that is refused as malformed would say nothing of the choice."""
    for headers in slos(small_and_large()):
        slo.parse({name.lower(): value for name, value in headers.items()}.get)
