"""A command whose packages are not installed says which, and how to get them."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.cli import entry


def module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop(name, None)
    return name


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `make run` only what serving needs is there."""
    name = module(tmp_path, "needy", "import not_installed_here\n", monkeypatch)
    assert entry.run(name, "bertier-x") == 1
    said = capsys.readouterr().err
    assert "not_installed_here is not installed" in said
    assert "make setup-all" in said


def test_a_mistake_of_our_own_is_no_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of ours that is not there is a fault, and its traceback is wanted."""
    name = module(tmp_path, "mistaken", "import gateway.no_such_module\n", monkeypatch)
    with pytest.raises(ModuleNotFoundError):
        entry.run(name, "bertier-x")


def test_else_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is the command's."""
    name = module(tmp_path, "there", "def main() -> int:\n    return 7\n", monkeypatch)
    assert entry.run(name, "bertier-x") == 7


@pytest.mark.parametrize("command", entry.LIGHT)
def test_going_back_needs_no_package_of_training(command: str) -> None:
    """Who is on call may have what `make run` installs, and no more."""
    program = f"""
import sys
for name in ("torch", "transformers", "scipy", "sklearn", "optuna", "onnx", "onnxruntime"):
    sys.modules[name] = None
from optimizer.cli import entry
sys.argv[1:] = ["{command}", "--model-repository", "no-such-folder"]
sys.exit(entry.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no-such-folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of GNU's C library")
def test_freed_memory_is_there_for_the_next_step() -> None:
    """Its pages are not cleared anew: a training step gets tensors of the same sizes again and again."""
    program = """
import resource, numpy
from optimizer.cli import entry
assert entry.keep_freed_memory()
def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults = [page_faults()]
for _ in range(2):
    numpy.ones(64 << 20, numpy.int8).sum()
    faults.append(page_faults())
print(faults[1] - faults[0], faults[2] - faults[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    first, again = map(int, done.stdout.split())
    assert again < first / 2
