"""What is concluded from a ramp of loads, and the ramp itself against a gateway that is really asked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from loadtest import cli
from loadtest.faults.overload import LOADS, Step, verdict
from tests import live
from tests.fakes import ROOT

STEP = Step(1.0, 100.0, 90.0, 95.0, 0.0, 0.0, 0.0, 20.0, "")


@pytest.mark.parametrize(("left", "kept"), [(76.0, False), (77.0, True), (90.0, True)])
def test_goodput_that_falls_by_more_than_it_may_is_a_collapse(left: float, kept: bool) -> None:
    """Twice the load may cost 15 % of the useful work, not more."""
    found = verdict([STEP, replace(STEP, load=2.0, goodput=left)])
    assert found["kept"] is kept
    assert found["ratio"] == pytest.approx(left / 90.0)


async def test_the_ramp_ends_with_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured can be read by a program, each load of it."""
    import asyncio

    async with live.gateway() as running:
        arguments = [
            *("overload", "--url", f"http://{running.http_url}", "--mix", "standard"),
            *("--seconds", "0.5", "--capacity", "12"),
            *("--model-repository", str(ROOT / "model_repository")),
        ]
        await asyncio.to_thread(cli.main, arguments)
        assert len(running.backend.asked) > 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [step["load"] for step in found["steps"]] == list(LOADS)
    assert found["capacity_per_s"] == 12
