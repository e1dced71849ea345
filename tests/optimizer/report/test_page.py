"""The page of a study: whole, self-contained, and true to its inputs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gateway.catalog import store
from gateway.catalog.schema import Bound, Check, Stratum
from gateway.catalog.store import Catalog
from optimizer.cli import main
from optimizer.report import inputs as report
from optimizer.report import page as sections
from optimizer.report.inputs import ReportError
from optimizer.study.config import DataConfig, StudyConfig
from tests.fakes import make_catalog, make_variant

EVIL = "<script>alert(1)</script>\"'&"
CONFIG = StudyConfig(
    name="made-up", largest_name="teacher", data=(DataConfig(source="d", certifies=True),)
)
SECTIONS = (
    *("pareto", "fp32", "knobs", "infeasible", "volume", "searches", "economy", "ranks"),
    *("labels", "curves", "certificates", "provenance"),
)
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Collects what a page holds, and fails on what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data

    def all(self, name: str) -> list[str]:
        """Return every value of an attribute."""
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def trial(number: int, f1: float | None, p95_ms: float, size_bytes: int) -> dict[str, object]:
    shape = {"layers": [0, 2], "heads": 4, "ffn": 128 * (1 + number), "embedding_bits": 4}
    reason = None if f1 else f"p95 {p95_ms} ms > max_p95_ms 30 {EVIL}"
    return {
        "number": number,
        "candidate": shape | {"precision": "int8-dynamic"},
        "p95_ms": p95_ms,
        "size_bytes": size_bytes,
        "f1": f1,
        "n_questions": 400 if f1 else None,
        "feasible": f1 is not None,
        "reason": reason,
        "f1_by_questions": {},  # more than the page needs
        "rung": 1 if f1 else 0,
        "seconds": 1.5,
    }


TRIALS = [
    trial(0, 0.4217, 11.13, 5_010_000),
    trial(1, 0.5129, 21.17, 7_020_000),
    trial(2, None, 91.19, 9_030_000),
]


def certified_catalog() -> Catalog:
    catalog = make_catalog([make_variant("small", 5), make_variant("large", 20)], [0.5, 0.7])
    stratum = Stratum("answerable", 77, 311, 0.6123, 0.5871)
    check = Check("elsewhere", "answerable", 55, 222, 0.4567, 0.4989, 0.5871, f"shifted {EVIL}")
    first = catalog.plans[0]
    certificate = replace(
        first.certificate, bounds=(Bound("betting", 0.5),), strata=(stratum,), checks=(check,)
    )
    plans = (replace(first, certificate=certificate), *catalog.plans[1:])
    return replace(catalog, plans=plans, origin=replace(catalog.origin, study="made-up"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return the run folder of a study that searched and trained."""
    folder = tmp_path / "run"
    (folder / "search").mkdir(parents=True)
    (folder / "search" / "trials.json").write_text(json.dumps(TRIALS))
    (folder / "search" / "front.json").write_text(json.dumps([TRIALS[1], 0]))
    (folder / "teacher").mkdir()
    curve = {"steps": 90, "points": [{"step": 30, "loss": 3.25}, {"step": 60, "loss": 2.75}]}
    (folder / "teacher" / "losses.json").write_text(json.dumps(curve))
    ran_on = {"commit": "abc123", "cpu": "a cpu", "gpu": "", "torch": "2.99.1", "python": EVIL}
    manifest = {"key": "k", "inputs": {}, "results": {}, "ran_on": ran_on, "seconds": 12.75}
    (folder / "teacher" / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    store.write(folder, certified_catalog())
    return folder


@pytest.fixture
def text(run_dir: Path, repository: Path) -> str:
    return sections.page(report.read(CONFIG, run_dir, repository))


def test_the_page_is_whole_and_asks_the_network_for_nothing(text: str) -> None:
    """It opens from disk, also years later."""
    page = Page(text)
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert ids == list(SECTIONS)
    assert "default-src 'none'" in text
    assert page.all("src") == []
    assert all(href.startswith("#") for href in page.all("href"))
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(text) < 4_000_000


def test_no_text_from_outside_becomes_markup(text: str) -> None:
    """Reasons, names and versions are data; the page's own script is the only one."""
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "alert(1)</script>" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 3
    assert any(EVIL in tip for tip in page.all("data-tip"))


def test_every_mark_is_a_value_of_the_inputs(text: str) -> None:
    """A chart that shows what nobody measured would be worse than none."""
    marks = [(attrs, attrs["class"] or "") for _, attrs in Page(text).tags if "data-x" in attrs]
    seen = {(float(a["data-x"] or 0), float(a["data-y"] or 0)) for a, c in marks if "mark" in c}
    f1 = 0.6  # of the fakes, whose p95 is 1.5 times their latency
    inputs = {(11.13, 0.4217), (21.17, 0.5129), (7.5, f1), (30.0, f1)}
    inputs |= {(5.01, 0.4217), (7.02, 0.5129), (5.0, f1), (20.0, f1)}
    inputs |= {(30.0, 3.25), (60.0, 2.75)}
    share = {y for x, y in seen - inputs}
    assert inputs <= seen
    assert {x for x, _ in seen - inputs} <= {0.0, 1.0, 2.0}  # the hypervolume's trials
    assert all(0 < y < 1 for y in share)


def test_every_number_of_a_table_is_one_of_the_inputs(
    text: str, run_dir: Path, repository: Path
) -> None:
    """Read back from the files, not from what the page was made of."""
    files = [*run_dir.rglob("*.json"), repository / "catalog.json"]
    known = {float(n) for f in files for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", f.read_text())}
    known |= {n / 1e6 for n in known} | {2.0, float(CONFIG.seed)}  # bytes in MB; layers 0 and 2
    cells = [cell for cell in Page(text).cells if re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", cell)]
    assert len(cells) > 40

    def rounded(cell: str) -> set[str]:
        """Return the inputs as they would look with this cell's decimals."""
        return {f"{n:.{len(cell.partition('.')[2])}f}" for n in known}

    assert [cell for cell in cells if cell not in rounded(cell)] == []


def test_the_pareto_front_and_the_infeasible_stand_out(text: str) -> None:
    """Two of three are on the Pareto front, by number or whole; the third says why it is not."""
    page = Page(text)
    kinds = [a["data-kind"] for tag, a in page.tags if tag == "path" and "data-trial" in a]
    assert kinds == ["front", "front", "infeasible"]
    assert f"p95 91.19 ms > max_p95_ms 30 {EVIL}" in page.cells


def test_the_hypervolume_is_the_searchs(run_dir: Path, repository: Path) -> None:
    """Measured to the corner that the search took; without one, to the worst of all trials."""

    def said() -> str:
        page = sections.page(report.read(CONFIG, run_dir, repository))
        return page[page.index("Share of a box") :][:300]

    assert "p95 up to 91.19 ms, size up to 9030000 bytes" in said()
    corner = {"reference": {"p95_ms": 33.5, "size_bytes": 8_000_000}}
    (run_dir / "search" / "search.json").write_text(json.dumps(corner))
    assert "p95 up to 33.5 ms, size up to 8000000 bytes" in said()


def test_certificates_are_shown_part_by_part(text: str) -> None:
    """With what other data showed, and why a floor fails there."""
    cells = Page(text).cells
    at = cells.index("answerable")
    assert cells[at : at + 6] == [
        *("answerable", "77", "311", "0.6123", "0.5871"),
        "0.4567 fails (55 contexts)",
    ]
    assert "shifted &lt;script&gt;" in text


def test_it_says_what_it_ran_on(text: str) -> None:
    """A number without its commit, data and versions cannot be repeated."""
    cells = Page(text).cells
    assert {"teacher", "12.75", "abc123", "a cpu"} <= set(cells)
    assert any("torch 2.99.1" in cell for cell in cells)


def test_sections_without_data_say_so(tmp_path: Path) -> None:
    """An empty run folder gives a whole page that names the files and commands it waits for."""
    text = sections.page(report.read(CONFIG, tmp_path / "absent", tmp_path / "nowhere"))
    Page(text)
    assert text.count("No data yet") >= len(SECTIONS)
    for command in ("search", "publish", "teacher"):
        assert f"bertier-optimize {command}" in text


def test_a_catalog_of_another_study_is_named(run_dir: Path, repository: Path) -> None:
    """Its numbers would otherwise pass for this study's."""
    other = CONFIG.model_copy(update={"name": f"other {EVIL}"})
    text = sections.page(report.read(other, run_dir, repository))
    Page(text)
    assert "was published by the study made-up, not by other &lt;script&gt;" in text


def test_one_trial_alone_can_be_drawn(run_dir: Path, tmp_path: Path) -> None:
    """Axes need no spread."""
    (run_dir / "search" / "trials.json").write_text(json.dumps(TRIALS[:1]))
    Page(sections.page(report.read(CONFIG, run_dir, tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("search/trials.json", "[{}]", "0.number"),
        ("search/trials.json", "[", "Invalid JSON"),
        ("search/front.json", '[{"no": 1}]', "not a list of trials"),
        ("search/front.json", "7", "not a list of trials"),
        ("search/search.json", "{}", "no reference"),
        ("teacher/losses.json", "{}", "not a learning curve"),
        ("teacher/losses.json", "x", "not JSON"),
    ],
)
def test_a_broken_input_is_named(
    run_dir: Path, repository: Path, name: str, content: str, said: str
) -> None:
    """Half a page would hide it."""
    (run_dir / name).write_text(content)
    with pytest.raises(ReportError, match=said) as caught:
        report.read(CONFIG, run_dir, repository)
    assert name in str(caught.value)


def test_the_command_writes_the_page(
    run_dir: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says how large it is; an output that cannot be written is a failure in one line."""
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "made-up"\nteacher_name = "t"\n[[data]]\nsource = "d"\ncertifies = true\n'
    )
    given = ["report", "--study", str(study), "--run-dir", str(run_dir)]
    given += ["--model-repository", str(repository), "--output"]
    assert main.main([*given, str(tmp_path / "out.html")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["size_bytes"] == (tmp_path / "out.html").stat().st_size
    assert result["trials"] == 3
    assert main.main([*given, str(tmp_path / "absent" / "out.html")]) == 1
    assert "give another --output" in capsys.readouterr().err
