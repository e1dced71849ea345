"""What a real gateway did, recorded in the format of the lab, and kept."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from loadtest.drive.outcomes import Outcome
from loadtest.emulator import served
from loadtest.emulator.served import Player
from loadtest.lab.engine import End
from loadtest.stack import Stack
from tests.loadtest import driving, lab_world

SLO = driving.slo(50.0)
PLANS = lab_world.doubtful().plans


def test_real_outcomes_become_the_labs() -> None:
    """Sheds and refusals are rejections there; whatever else gave no answer has expired."""
    ends = {
        outcome: served.fate_of(driving.result(0, 20, SLO, outcome=outcome), PLANS).end
        for outcome in Outcome
    }
    assert ends[Outcome.ANSWERED] is End.ANSWERED
    assert ends[Outcome.SHED] is ends[Outcome.REFUSED] is End.REFUSED
    assert ends[Outcome.EXPIRED] is ends[Outcome.LOST] is ends[Outcome.SILENT] is End.EXPIRED
    shed = served.fate_of(driving.result(0, 1, SLO, outcome=Outcome.SHED), PLANS)
    assert shed.latency_ms == inf


@pytest.mark.parametrize(
    ("variant", "met", "stage", "cut"),
    [
        ("small", "true", 0, False),
        ("small", "late,escalation-cut", 0, True),
        ("large", "late", 1, False),
    ],
)
def test_a_cascade_is_recorded_by_the_stage_that_answered(
    variant: str, met: str, stage: int, cut: bool
) -> None:
    """An answer is worth what a cascade that ends there is."""
    result = driving.result(0, 20, SLO, plan="both")
    result = replace(result, reply=replace(result.reply, variant=variant, met=met))
    fate = served.fate_of(result, PLANS)
    assert (fate.stage, fate.cut) == (stage, cut)


def test_fates_survive_their_file() -> None:
    """A killed comparison goes on with what it has."""
    fates = [
        served.fate_of(driving.result(0, 20, SLO, plan="both"), PLANS),
        served.fate_of(driving.result(1, 20, SLO, outcome=Outcome.SHED), PLANS),
    ]
    kept = json.loads(json.dumps(served.as_json(fates), allow_nan=False))
    assert served.from_json(kept) == fates


async def test_a_trace_is_played_once_and_then_read(tmp_path: Path) -> None:
    """The second time nobody is asked: there is no server any more."""
    world, trace = lab_world.world(), lab_world.trace([0.0, 5.0])
    player = Player(world, [driving.EXAMPLE] * len(world.recording), tmp_path, max_lag_ms=1e6)
    assert player.kept("a", trace) is None
    async with driving.mortal(2) as url:
        first = await asyncio.to_thread(player.play, "a", trace, _stack(url))
    again = player.play("a", trace, _stack("http://127.0.0.1:9"))
    assert again == first
    assert first.count(End.ANSWERED) == 2
    other = lab_world.trace([0.0, 6.0])
    assert player.kept("a", other) is None


def _stack(url: str) -> Stack:
    return Stack(url, "", "", "", os.getpid(), Path("none"))
