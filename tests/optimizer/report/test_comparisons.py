"""The parts of a study's page that set it against others: true to the files they are made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog import store
from gateway.catalog.schema import Quality
from optimizer.benchmarks import results
from optimizer.benchmarks.results import (
    LABELS,
    LABELS_FROM_TEACHER,
    REFERENCE,
    SEARCHES,
    Against,
    ComparisonError,
    Contest,
    Headline,
    Interval,
    Labels,
    Pair,
    ReferenceComparison,
    Run,
    Step,
    Timing,
)
from optimizer.cli import main
from optimizer.report import inputs as report
from optimizer.report import page as sections
from optimizer.report.inputs import ReportError
from optimizer.study.config import ElasticConfig, FinishConfig
from optimizer.study.space import Space
from tests.fakes import make_catalog, make_variant
from tests.optimizer.report.test_page import CONFIG, EVIL, TRIALS, Page

PAIR = Pair(
    first=f"student {EVIL}",
    second="twin",
    data="search",
    n=321,
    n_contexts=45,
    f1=(0.6111, 0.5222),
    f1_difference=Interval(0.0889, 0.0777, 0.0999),
    forced_f1=(0.7333, 0.7111),
    forced_difference=Interval(0.0222, 0.0111, 0.0333),
)


def run(method: str, seed: int, *steps: tuple[int, float, float]) -> Run:
    return Run(method, seed, 7, 6, steps[-1][1] + 1, None, tuple(Step(*s) for s in steps))


RUNS = (
    *(run("gp", 0, (1, 2.0, 0.1), (3, 5.0, 0.35)), run("gp", 1, (1, 3.0, 0.2), (2, 4.0, 0.25))),
    run("random", 0, (1, 2.0, 0.05), (2, 6.0, 0.15)),
)
CONTEST = Contest(
    *("gp", 7, 13.5, 1.25, 0.125, 480, 91.5, 12_345_678, RUNS),
    (Against("random", "candidates", 1, 1, Interval(0.2023, -0.1234, 0.4567)),),
    {},
)


def fp32() -> ReferenceComparison:
    quality = Quality("calibrate", "", 99, 0.5, 0.6543, 0.6, 0.7, 0.7, 0.6, 0.8123)
    profile = make_variant("teacher", 44).profile
    headline = Headline(
        "small",
        5_000_000,
        18.25,
        {128: 4.5125, 177: 5.75},
        {128: 4.25, 177: 5.5},
        {128: 4.75, 177: 5.25},
        "test",
        0.75,
        0.925,
    )
    timing = Timing("small", 177, 192, 4.321, 4.567, 4.234)
    return ReferenceComparison(
        *("teacher", 91_250_000, (quality,), profile, 60, (timing, replace(timing, tokens=128))),
        *((headline,), (replace(PAIR, first="int8"),), {}),
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return the run folder of a study that searched, finished and compared."""
    folder = tmp_path / "run"
    (folder / "search").mkdir(parents=True)
    (folder / "search" / "trials.json").write_text(json.dumps(TRIALS))
    for name, seconds in (("elastic", 300), ("students/a", 60), ("students/a.labels", 7777)):
        (folder / name).mkdir(parents=True)
        manifest = {"key": "k", "inputs": {}, "results": {}, "ran_on": {}, "seconds": seconds}
        (folder / name / "manifest.json").write_text(json.dumps(manifest))
    results.write(CONTEST, folder / SEARCHES)
    results.write(Labels("slice", {PAIR.first: 0.75}, (PAIR,), {}), folder / LABELS)
    other = replace(PAIR, forced_f1=None, forced_difference=None)
    results.write(Labels("teacher", {}, (other,), {}), folder / LABELS_FROM_TEACHER)
    results.write(fp32(), folder / REFERENCE)
    return folder


def text_of(run_dir: Path, *, baseline: Path | None = None) -> str:
    text = sections.page(report.read(CONFIG, run_dir, run_dir / "nowhere", baseline))
    Page(text)
    return text


def part(text: str, section: str) -> Page:
    return Page(
        text[text.index(f'<section id="{section}"') :].split("</section>", maxsplit=1)[0]
        + "</section>"
    )


def in_order(cells: Sequence[str], wanted: Sequence[str]) -> bool:
    n = len(wanted)
    return any(list(cells[i : i + n]) == list(wanted) for i in range(len(cells) - n + 1))


def test_a_line_is_the_median_over_the_seeds_inside_its_range(run_dir: Path) -> None:
    """By hand: two runs of one method, one of the other; what was reached is kept."""
    page = part(text_of(run_dir), "searches")
    marks = [a for _, a in page.tags if "data-x" in a]
    points = {
        kind: [
            (float(a["data-x"] or 0), round(float(a["data-y"] or 0), 9))
            for a in marks
            if a["data-kind"] == kind
        ]
        for kind in ("series-0", "series-1")
    }
    assert points["series-0"] == [(2, 0.05), (3, 0.15), (4, 0.175), (5, 0.3), (6, 0.3)]
    assert points["series-1"] == [(2, 0.05), (6, 0.15), (7, 0.15)]
    assert any("0.3000 (0.2500 to 0.3500)" in tip for tip in page.all("data-tip"))
    bands = [a for tag, a in page.tags if tag == "path" and "band" in (a["class"] or "")]
    assert len(bands) == 2


def test_the_contest_says_its_numbers_and_its_scale(run_dir: Path) -> None:
    """A hypervolume without its box, its questions and its budget says nothing."""
    text = text_of(run_dir)
    cells = part(text, "searches").cells
    assert in_order(cells, ["gp", "2", "7", "6", "5.5", "0.3000", "0.2500", "0.3500"])
    assert in_order(cells, ["random", "candidates", "1", "1", "0.2023", "-0.1234", "0.4567"])
    for said in ("91.5 ms", "12345678 bytes", "480 questions", "1.2 minutes", "at most 13.5"):
        assert said in text


def test_students_stand_beside_their_twins(run_dir: Path) -> None:
    """From both starts, with intervals; data without answerable questions has no forced F1."""
    text = text_of(run_dir)
    cells = part(text, "labels").cells
    f1 = ["search", "321", "0.6111", "0.5222", "0.0889", "0.0777", "0.0999"]
    forced = ["0.7333", "0.7111", "0.0222", "0.0111", "0.0333"]
    assert in_order(cells, ["0.75", *f1, *forced])
    assert in_order(cells, ["-", *f1, "-", "-", "-", "-", "-"])
    assert "alert(1)</script>" not in text


def test_the_fp32_teacher_is_a_point_and_a_table(run_dir: Path) -> None:
    """Its mark lies where it was measured; ratios are of minima, medians in brackets."""
    text = text_of(run_dir)
    (mark, *_) = [a for _, a in part(text, "pareto").tags if a.get("data-kind") == "fp32"]
    p95_ms = fp32().profile.cell(192).p95_ms
    assert (float(mark["data-x"] or 0), float(mark["data-y"] or 0)) == (p95_ms, 0.6543)
    cells = part(text, "fp32").cells
    line = ["small", "5.00", "18.2", "4.51 (4.25)", "5.75 (5.50)", "0.7500", "92.5%", "test"]
    assert in_order(cells, line)
    assert in_order(cells, ["small", "177", "192", "4.321", "4.567", "4.234"])
    assert in_order(cells, ["int8", "search", "321"])


def test_latencies_of_a_busy_host_are_marked(run_dir: Path) -> None:
    """A ratio of them would be of what else ran; CPU time is reported beside it."""
    assert "The host was busy" not in text_of(run_dir)
    quiet = fp32()
    slow = replace(quiet.timings[0], min_ms=8.0, cpu_ms=4.0)
    results.write(replace(quiet, timings=(slow, *quiet.timings[1:])), run_dir / REFERENCE)
    text = text_of(run_dir)
    assert "The host was busy" in text
    assert in_order(part(text, "fp32").cells, ["test", "4.75", "5.25"])


def test_what_was_published_before_is_a_point_of_its_own_kind(
    run_dir: Path, tmp_path: Path
) -> None:
    """Read from the catalog of then; one that is not there is named."""
    store.write(tmp_path, make_catalog([make_variant("old", 8)], [0.5]))
    text = text_of(run_dir, baseline=tmp_path / "catalog.json")
    kinds = [a.get("data-kind") for _, a in part(text, "pareto").tags]
    assert kinds.count("before") == 2
    assert "before: old" in text
    with pytest.raises(ReportError, match="give another --baseline"):
        report.read(CONFIG, run_dir, tmp_path / "nowhere", tmp_path / "absent.json")


def test_a_candidate_is_set_beside_a_training_of_its_own(run_dir: Path) -> None:
    """By hand: 1.5 s a candidate, 60 s a training, 300 s shared by the two with an F1."""
    cells = part(text_of(run_dir), "economy").cells
    assert cells[1::2] == ["3", "2", "1.5", "150.0", "60", "40.0", "0.4"]


def test_a_knob_that_never_varied_has_no_axis(run_dir: Path) -> None:
    """Eight knobs on one screen are enough where they tell something."""
    page = part(text_of(run_dir), "knobs")
    assert len([a for _, a in page.tags if "data-axis" in a]) == len(("ffn", "p95 ms", "MB", "F1"))


@pytest.mark.parametrize("file", [SEARCHES, LABELS, REFERENCE])
@pytest.mark.parametrize(("content", "said"), [("{}", "Field required"), ("x", "not JSON")])
def test_a_broken_comparison_is_named(run_dir: Path, file: Path, content: str, said: str) -> None:
    """Half a page would hide it."""
    (run_dir / file).write_text(content)
    with pytest.raises(ComparisonError, match=said) as caught:
        report.read(CONFIG, run_dir, run_dir / "nowhere")
    assert str(file) in str(caught.value)


def test_the_command_takes_a_baseline(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong one is a failure in one line."""
    study = tmp_path / "study.toml"
    study.write_text('name = "x"\nteacher_name = "t"\n[[data]]\nsource = "d"\ncertifies = true\n')
    given = ["report", "--study", str(study), "--run-dir", str(run_dir)]
    given += ["--output", str(tmp_path / "out.html"), "--baseline", str(tmp_path / "catalog.json")]
    assert main.main(given) == 1
    assert "--baseline" in capsys.readouterr().err
    store.write(tmp_path, make_catalog([make_variant("old", 8)], [0.5]))
    assert main.main(given) == 0


def test_members_of_the_pareto_front_that_were_finished_are_ranked(
    run_dir: Path, tmp_path: Path
) -> None:
    """They are students of the study, though its file does not name them."""
    (run_dir / "search" / "front.json").write_text(json.dumps(TRIALS[:2]))
    elastic = ElasticConfig(space=Space(layers=((0, 2),), heads=(4,), ffn=(128, 256)))
    changed = {"finish": FinishConfig(members=2), "elastic": (elastic,)}
    config = CONFIG.model_copy(update=changed)
    names = ["bert-2", "bert-2-b"]
    variants = [make_variant(name, 5) for name in names]
    store.write(tmp_path, make_catalog(variants, [0.5, 0.5]))
    inputs = report.read(config, run_dir, tmp_path)
    cells = part(sections.page(inputs), "ranks").cells
    assert in_order(cells, [names[0], "0", "0.4217"])
    assert in_order(cells, [names[1], "1", "0.5129"])
    (run_dir / "search" / "front.json").write_text("[{}]")
    with pytest.raises(ReportError, match="run the search again"):
        report.read(config, run_dir, tmp_path)
