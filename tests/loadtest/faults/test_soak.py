"""The verdicts of a soak: what counts as a leak."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from loadtest.faults.soak import Event, Sample, SoakRequest, Verdict, verdicts
from loadtest.faults.soak_chart import picture

IDLE = Sample(0, 100_000_000, 20, 5, 0)
STEADY = [replace(IDLE, at_s=float(t), busy=3) for t in range(100)]
ALL_MET = [SoakRequest(float(t), "met") for t in range(100)]


def judged(**changes: object) -> dict[str, Verdict]:
    given = {"samples": STEADY, "outcomes": ALL_MET, "before": IDLE, "after": IDLE} | changes
    return {v.what: v for v in verdicts(**given)}  # type: ignore[arg-type]  # by name


def test_a_steady_run_holds() -> None:
    """Nothing grew, nothing is left."""
    assert all(v.holds for v in judged().values())


@pytest.mark.parametrize(
    ("broken", "changes"),
    [
        (
            "memory after warm-up",
            {"samples": [replace(s, rss_bytes=int(1e8 + 2e4 * s.at_s)) for s in STEADY]},
        ),
        ("open files, idle", {"after": replace(IDLE, open_files=21)}),
        ("tasks, idle", {"after": replace(IDLE, tasks=6)}),
        ("work left in flight", {"after": replace(IDLE, busy=1)}),
        ("requests that failed", {"outcomes": [*ALL_MET, SoakRequest(5.0, "internal")]}),
        (
            "SLO met, by quarter",
            {"outcomes": [replace(a, outcome="violated") if a.at_s > 75 else a for a in ALL_MET]},
        ),
    ],
)
def test_each_kind_of_leak_is_found(broken: str, changes: dict[str, object]) -> None:
    """A verdict that holds whatever happens is none."""
    found = judged(**changes)
    assert [what for what, v in found.items() if not v.holds] == [broken]


def test_what_the_first_switch_takes_is_no_leak() -> None:
    """It lies in the first tenth of the run; each later one must give back what it took."""
    samples = [replace(s, rss_bytes=int(1e8 * min(1.0, 0.9 + s.at_s / 100))) for s in STEADY]
    assert judged(samples=samples)["memory after warm-up"].holds


def test_two_kilobytes_a_second_are_found_within_an_hour() -> None:
    """Of a gateway of 300 MiB: 1 % are 3 MiB."""
    hour = [replace(IDLE, at_s=2.0 * i, rss_bytes=(300 << 20) + 4096 * i) for i in range(1800)]
    assert not judged(samples=hour)["memory after warm-up"].holds


def test_the_picture_shows_both_lines_and_what_happened() -> None:
    """A reader sees whether a step follows a switch."""
    samples = [replace(s, models_bytes=2 * s.rss_bytes) for s in STEADY]
    drawn = picture(samples, [Event(30.0, "switch"), Event(60.0, "kill")], "3 < 4 minutes")
    root = ElementTree.fromstring(drawn)
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"switch", "kill", "3 < 4 minutes", "gateway: 95 to 95 MiB"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 2


def test_too_short_a_run_is_not_judged() -> None:
    """It would hold for nothing."""
    with pytest.raises(ValueError, match="run longer"):
        judged(samples=STEADY[:3])
