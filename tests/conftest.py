"""Settings of all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import pauses

TESTS = Path(__file__).parent

# One of several test processes has one core: more threads than cores only wait for each other.
# Set before PyTorch is imported, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Gateways that the tests start measure the shipped models once, not each anew; and never write into
# the user's folder. The processes of one run share it: they inherit the variable.
if "PYTEST_XDIST_WORKER" not in os.environ:
    PROFILES = tempfile.TemporaryDirectory(prefix="bertier-profiles-")
    os.environ["BERTIER_PROFILES_FOLDER"] = PROFILES.name

# Each of several test processes has temporary files of its own, so also the lock under which a host trains and
# measures: none waits for another's. Set before anything reads it.
if "PYTEST_XDIST_WORKER" in os.environ:
    TEMPORARY = tempfile.TemporaryDirectory(prefix="bertier-tests-", ignore_cleanup_errors=True)
    Path(TEMPORARY.name).chmod(0o755)  # PostgreSQL runs as another user
    os.environ["TMPDIR"] = TEMPORARY.name
    tempfile.tempdir = None  # read TMPDIR again

pauses.leave_out()

# A slow example says that the host is busy, not that the code is wrong.
settings.register_profile("bertier", deadline=None)
settings.load_profile("bertier")

# Files that take longest, first: a long file that starts last keeps one process busy alone.
LONGEST = (
    "end_to_end/test_smoke_study.py",
    "optimizer/students/test_families.py",
    "end_to_end/test_answers.py",
    "optimizer/search/test_stage.py",
    "end_to_end/test_scale_out.py",
    "optimizer/teachers/test_outside_teachers.py",
    "optimizer/search/test_ask_tell.py",
    "end_to_end/test_rollout.py",
    "deploy/test_gateway_image.py",
    "end_to_end/test_dashboards.py",
    "optimizer/certify/test_simulation.py",
    "end_to_end/test_failures.py",
)


# Files that share something that takes long to start: one process runs all of a set, and starts it once.
TOGETHER = (
    ("end_to_end/test_answers.py", "end_to_end/test_drive.py"),  # the shipped models in Triton
    (  # a trained study
        "optimizer/benchmarks/test_comparisons.py",
        "optimizer/students/test_study.py",
        "optimizer/students/test_finish.py",
    ),
    (  # a Triton of tiny models
        "gateway/backends/test_triton.py",
        "gateway/backends/test_triton_cancelling.py",
        "gateway/backends/test_pool_triton.py",
        "gateway/lifecycle/test_two_catalogs.py",
    ),
)


def rank(path: Path) -> int:
    """Return the place of a file of tests in the order of their start."""
    name = path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else ""
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank(item.path))


def file_or_set(nodeid: str) -> str:
    """Return what one process of tests runs as a whole: a test's file, or the first of its set."""
    file = nodeid.partition("::")[0]
    name = file.removeprefix("tests/")
    return next((f"tests/{files[0]}" for files in TOGETHER if name in files), file)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # published without types
        def _split_scope(self, nodeid: str) -> str:
            return file_or_set(nodeid)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def missing(names: Iterable[str]) -> list[str]:
    return [name for name in names if not (TESTS / name).is_file()]


GONE = missing((*LONGEST, *(name for files in TOGETHER for name in files)))
assert not GONE, f"tests/conftest.py names files that are gone: {GONE}"
