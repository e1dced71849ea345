"""A stage is done once for its inputs, and goes on only from what was left for the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optimizer.study.stages import CHECKPOINT, read_manifest, run_stage


def test_a_finished_stage_is_skipped(tmp_path: Path) -> None:
    """A second run of a study costs nothing."""
    done: list[int] = []

    def work() -> dict[str, Any]:
        done.append(1)
        return {"n": len(done)}

    assert run_stage(tmp_path, {"a": 1}, work) == run_stage(tmp_path, {"a": 1}, work) == {"n": 1}
    assert run_stage(tmp_path, {"a": 2}, work) == {"n": 2}


def in_another_process(statement: str) -> None:
    program = "from pathlib import Path; from optimizer.study.stages import run_stage; "
    subprocess.run([sys.executable, "-c", program + statement], check=True)


def test_a_stage_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Later stages ask for its results again and again."""
    caplog.set_level("INFO")
    in_another_process(f"run_stage(Path({str(tmp_path / 'old')!r}), {{}}, dict)")
    for _ in range(3):
        run_stage(tmp_path / "new", {}, dict)
        run_stage(tmp_path / "old", {}, dict)
    named = [record.getMessage().partition("/")[2] for record in caplog.records]
    assert named == ["new: started", "old: done before, skipped"]


@pytest.mark.parametrize(("inputs", "kept"), [({"a": 1}, True), ({"a": 2}, False)])
def test_a_killed_stage_goes_on_only_for_the_same_inputs(
    tmp_path: Path, inputs: dict[str, int], kept: bool
) -> None:
    """Half a training at another learning rate is no beginning of this one."""

    def die() -> dict[str, Any]:
        (tmp_path / CHECKPOINT).write_text("half a training")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, {"a": 1}, die)
    run_stage(tmp_path, inputs, lambda: {"kept": (tmp_path / CHECKPOINT).exists()})
    assert (tmp_path / CHECKPOINT).exists() is kept


def test_a_manifest_says_what_the_stage_ran_on(tmp_path: Path) -> None:
    """A number is of little use without the versions it was made with; a rerun keeps the first."""
    run_stage(tmp_path, {"a": 1}, lambda: {"n": 2})
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert {"commit", "cpu", "python", "torch"} <= manifest["ran_on"].keys()
    assert manifest["seconds"] >= 0


AT_ONCE = """
import os, sys
from pathlib import Path
from optimizer.study.stages import run_stage

def work():
    with open(Path(sys.argv[1]) / "worked.txt", "a") as file:
        file.write(f"{os.getpid()} began\\n")
    sys.stdin.readline()  # until the test lets it go on
    with open(Path(sys.argv[1]) / "worked.txt", "a") as file:
        file.write(f"{os.getpid()} ended\\n")
    return {"pid": os.getpid()}

print("ready", flush=True)
sys.stdin.readline()
print(run_stage(Path(sys.argv[1]) / "stage", {"a": 1}, work)["pid"], flush=True)
"""


def test_two_processes_do_the_work_of_a_stage_once(tmp_path: Path) -> None:
    """They would train over each other's checkpoint; the second waits, and takes the first's result."""
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path)]
    two = [
        subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in two:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in two:
        _tell(process, "begin")
    worked = tmp_path / "worked.txt"
    while not worked.exists():
        assert all(process.poll() is None for process in two)
    for process in two:
        _tell(process, "end")
    found = [process.communicate(timeout=120)[0].strip() for process in two]
    assert found[0] == found[1]
    assert worked.read_text().splitlines() == [f"{found[0]} began", f"{found[0]} ended"]


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
