"""Attainment by class, the page and the folder, from results that are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.domain import SloPolicy
from loadtest.drive import attainment, page
from loadtest.drive.open_loop import Client, Run
from loadtest.drive.outcomes import Outcome, Result
from loadtest.drive.results import Folder, FolderError
from tests.loadtest.driving import result, slo

QUICK = slo(50.0, 0.4, slo_class="quick")
STRICT = slo(50.0, 0.4, SloPolicy.STRICT, slo_class="strict")
WRONG = "in the 10th century"


def run_of(results: list[Result]) -> Run:
    return Run("http://test", tuple(results), Client(0.1, 0.2, 0.3, 0.1))


def test_latency_counts_from_when_a_request_was_due() -> None:
    """One that was sent late was late for its caller, too."""
    on_time = result(0.0, 60.0, QUICK)
    late = Result(on_time.request, 40.0, 60.0, on_time.reply)
    assert (late.lag_ms, late.latency_ms, late.in_time) == (40.0, 60.0, False)


def test_an_unanswered_request_misses_its_slo() -> None:
    """A shed request is a miss, and so is one that failed; only what nobody could keep is left out."""
    found = attainment.summarize(
        run_of(
            [
                result(0, 20, QUICK),
                result(1, 90, QUICK),
                result(2, 1, QUICK, outcome=Outcome.SHED),
                result(3, 1, QUICK, outcome=Outcome.REFUSED, feasible=False),
                result(4, 1, QUICK, outcome=Outcome.LOST),
            ]
        )
    )
    quick = found.classes["quick"]
    assert (quick.n, quick.in_time, quick.answered) == (5, 0.2, 0.4)
    assert (quick.joint, quick.joint_feasible) == (0.2, 0.25)
    assert (quick.shed, quick.refused, quick.failed) == (0.2, 0.2, 0.2)
    assert found.failures == {"said lost": 1}
    assert found.outcomes["answered"] == 2


def test_a_class_keeps_its_floor_by_the_f1_of_its_answers() -> None:
    """Fast and wrong is not what the SLO asks."""
    right, wrong = result(0, 20, QUICK), result(1, 20, QUICK, answer=WRONG)
    assert attainment.summarize(run_of([right, wrong])).classes["quick"].joint == 1.0
    broken = attainment.summarize(run_of([right, wrong, wrong])).classes["quick"]
    assert (broken.in_time, broken.floor_met, broken.joint) == (1.0, 0.0, 0.0)
    assert broken.f1 == pytest.approx(1 / 3)


def test_one_class_does_not_answer_for_another() -> None:
    """Of all, `joint` counts the requests of classes that kept their floor."""
    found = attainment.summarize(
        run_of([result(0, 20, QUICK), result(1, 20, STRICT, answer=WRONG)])
    )
    assert (found.classes["quick"].joint, found.classes["strict"].joint) == (1.0, 0.0)
    assert (found.every.joint, found.every.floor_met) == (0.5, 0.5)


def test_strict_requests_are_judged_when_they_were_accepted() -> None:
    """A strict request that is refused at once costs its caller nothing."""
    found = attainment.summarize(
        run_of(
            [
                result(0, 20, STRICT),
                result(1, 60, STRICT),
                result(2, 1, STRICT, outcome=Outcome.SHED),
                result(3, 50, STRICT, outcome=Outcome.EXPIRED),
            ]
        )
    )
    assert found.classes["strict"].strict_met == pytest.approx(1 / 3)


def test_by_certificate_uses_the_certified_floor_of_the_plan() -> None:
    """A lucky answer of a small model keeps no certificate."""
    found = attainment.summarize(
        run_of([result(0, 20, QUICK, certified_f1=0.3), result(1, 20, QUICK)])
    )
    assert found.every.by_certificate == 0.5


def test_a_summary_is_json_without_nan() -> None:
    """JSON has no NaN; a class without an answer has no F1."""
    found = attainment.summarize(run_of([result(0, 1, QUICK, outcome=Outcome.SHED)]))
    summary = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert summary["classes"]["quick"]["f1"] is None
    assert summary["all"]["shed"] == 1.0


def test_the_page_shows_every_class_plan_and_failure_and_escapes_them() -> None:
    """It opens from disk and lets nothing in from outside."""
    results = [result(1000.0 * i, 20 + i, QUICK, plan="<small>") for i in range(10)]
    results += [result(10_000.0, 5, STRICT), result(11_000.0, 5, STRICT, outcome=Outcome.FAILED)]
    run = run_of(results)
    html = page.html(run, attainment.summarize(run), {"host": "a & b"}, "the client was slow")
    for text in ("quick", "strict", "&lt;small&gt;", "said failed", "a &amp; b", "Not valid: the"):
        assert text in html
    assert "<small>" not in html
    assert "default-src 'none'" in html
    assert html.count("<svg") >= 6


def test_a_folder_holds_no_figure_of_an_earlier_run(tmp_path: Path) -> None:
    """A run that breaks must not leave the last one's summary as its own."""
    first = Folder(tmp_path / "run")
    first.keep([result(0, 20, QUICK)])
    first.end({"all": 1}, "<html>")
    again = Folder(tmp_path / "run")
    assert list(again.path.iterdir()) == []
    again.keep([result(0, 20, QUICK), result(1, 1, QUICK, outcome=Outcome.LOST)])
    lines = [json.loads(line) for line in (again.path / "requests.jsonl").read_text().splitlines()]
    assert [(x["outcome"], x["f1"]) for x in lines] == [("answered", 1.0), ("lost", None)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Before the run, not after it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="give another --folder"):
        Folder(tmp_path / "file" / "run")
