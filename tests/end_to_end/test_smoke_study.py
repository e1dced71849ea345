"""The smoke study: every stage of an optimization on real questions, from an encoder to a report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog import store
from optimizer.cli import main
from optimizer.study import config
from optimizer.study.stages import MANIFEST

STUDIES = Path(config.__file__).parents[1] / "studies"
STAGES = ("teacher", "teacher-states", "elastic")
LIMIT_S = 900  # far above the minutes it takes: a bound on a hang, not a measurement
pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(LIMIT_S)]


def arguments(folder: Path, *words: str) -> list[str]:
    given = ["--study", str(STUDIES / "smoke.toml"), "--run-dir", str(folder / "run")]
    published = ["--model-repository", str(folder / "model_repository")]
    return [*words, *given, *published]


def command(folder: Path) -> list[str]:
    program = Path(sys.executable).with_name("bertier-optimize")
    return [str(program), *arguments(folder, "run")]


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the study as in a pipe of a shell, which does not hand on the terminal's width."""
    return subprocess.run(
        command(folder),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )


def result_of(printed: str) -> dict[str, Any]:
    """Return the JSON line that every long command ends with."""
    last: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return last


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which the study was killed as soon as its elastic student was being trained,
    and then run to its end.
    """
    found = tmp_path_factory.mktemp("smoke")
    killed = subprocess.Popen(
        command(found),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    over = time.monotonic() + LIMIT_S
    while not (found / "run" / "elastic").exists() and killed.poll() is None:
        assert time.monotonic() < over, "the teacher was never finished"
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (found / "model_repository").exists()
    teacher = (found / "run" / "teacher" / MANIFEST).stat().st_mtime_ns

    finished = run(found)
    assert finished.returncode == 0, finished.stderr[-2000:]
    (found / "said.json").write_text(json.dumps(result_of(finished.stdout)))
    assert "LOAD REPORT" not in finished.stderr, "a library reports into our log"
    assert "…" not in finished.stdout, "a table is cut in a pipe"
    assert (found / "run" / "teacher" / MANIFEST).stat().st_mtime_ns == teacher, "trained twice"
    return found


def test_every_stage_leaves_what_the_next_reads(folder: Path) -> None:
    """And what a person reads who asks how it came to be."""
    for stage in STAGES:
        manifest = json.loads((folder / "run" / stage / MANIFEST).read_text())
        assert manifest["ran_on"]
    trials = json.loads((folder / "run" / "search" / "trials.json").read_text())
    how = config.read(STUDIES / "smoke.toml").search
    assert how
    assert len(trials) == how.trials
    assert any(trial["f1"] is not None for trial in trials)


def test_it_ends_in_a_repository_that_a_gateway_can_read(folder: Path) -> None:
    """With a teacher, finished members of the Pareto front, and a floor for each."""
    repository = folder / "model_repository"
    catalog = store.read(repository)
    assert store.check_files(repository, catalog) == []
    names = [v.name for v in catalog.variants]
    assert names[0] == "smoke-teacher-int8"
    assert len(names) >= 2
    assert all(plan.certificate.n_contexts > 0 for plan in catalog.plans)


@pytest.mark.filterwarnings("default")  # no errors, as in the program
def test_a_second_run_does_nothing_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every stage finds its manifest; the catalog comes out the same."""
    stages = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob(MANIFEST)}
    assert main.main(arguments(folder, "run")) == 0
    assert result_of(capsys.readouterr().out) == json.loads((folder / "said.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob(MANIFEST)} == stages


@pytest.mark.filterwarnings("default")
def test_the_report_shows_the_study(folder: Path) -> None:
    """One file, from the search's trials to the certificates."""
    page = folder / "report.html"
    assert main.main([*arguments(folder, "report"), "--output", str(page)]) == 0
    text = page.read_text()
    for variant in store.read(folder / "model_repository").variants:
        assert variant.name in text


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_that_ships_is_sound(file: Path) -> None:
    """A study file for a machine that is not here is read at least."""
    study = config.read(file)
    assert study.data
    for source in study.data:
        assert "/" not in source.source or Path(source.source).exists()
