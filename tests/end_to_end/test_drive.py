"""The driver against the whole system: SLOs, answers and a report of a run that was real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest import cli
from loadtest.stack import Stack

pytestmark = pytest.mark.end_to_end
# How late a busy machine sends is no matter of this test.
FLAGS = ("--rate", "8", "--seconds", "3", "--questions", "30", "--max-send-lag-ms", "60000")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_run_ends_with_figures_and_a_page(
    stack: Stack, tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every request of the schedule is accounted for, and the last line is the summary."""
    url = stack.http_url if protocol == "http" else f"grpc://{stack.grpc_target}"
    folder = tmp_path / "run"
    assert cli.main(["drive", "--url", url, "--folder", str(folder), *FLAGS]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = (folder / "requests.jsonl").read_text().splitlines()
    assert len(lines) == summary["all"]["n"] == sum(summary["outcomes"].values())
    assert summary == json.loads((folder / "summary.json").read_text())
    assert "failed" not in summary["outcomes"], summary["failures"]
    assert summary["outcomes"]["answered"] == sum(summary["plans"].values()) > 0
    assert "<svg" in (folder / "report.html").read_text()


def test_an_slo_that_was_not_met_is_an_exit_status(stack: Stack, tmp_path: Path) -> None:
    """A pipeline needs no eyes on a table."""
    flags = ("--folder", str(tmp_path), "--min-attainment", "1.01")
    assert cli.main(["drive", "--url", stack.http_url, *FLAGS, *flags]) == 1
