"""`bertier-loadtest`: an SLO that was not met is an exit status, not a line to overlook."""

from __future__ import annotations

import pytest

from loadtest import cli
from loadtest.quality.agreement import Comparison

SAME = Comparison("small", "HTTP", 200, 0, "")
DIFFERENT = Comparison("small", "gRPC", 200, 3, "q17: one / another")


def test_the_same_answers_everywhere_are_a_success() -> None:
    """`make prove-agreement` stands for agreement of every question."""
    assert cli._show_comparisons([SAME, SAME]) == (True, {"questions": 400, "different": 0})


def test_one_different_answer_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Nearly all is not all; the first difference is shown, to begin with."""
    assert cli._show_comparisons([SAME, DIFFERENT]) == (False, {"questions": 400, "different": 3})
    assert "first difference of small, gRPC: q17: one / another" in capsys.readouterr().out


def test_help_lists_every_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    """Who does not know the commands learns them here."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for command in ("agreement", "invariance", "overhead", "slo-table", "lab", "replay", "plan"):
        assert command in shown


def test_a_missing_question_set_gives_a_one_line_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No traceback for a mistyped path, and no Triton started for it."""
    assert cli.main(["agreement", "--data", "absent.json"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("bertier-loadtest: absent.json: no such file")
