"""Settings of all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent

# One of several test processes has one core: more threads than cores only wait for each other.
# Set before PyTorch is imported, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Gateways that the tests start measure the shipped models once, not each anew; and never write into
# the user's folder. The processes of one run share it: they inherit the variable.
if "PYTEST_XDIST_WORKER" not in os.environ:
    PROFILES = tempfile.TemporaryDirectory(prefix="bertier-profiles-")
    os.environ["BERTIER_PROFILES_FOLDER"] = PROFILES.name

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


def rank(path: Path) -> int:
    """Return the place of a file of tests in the order of their start."""
    name = path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else ""
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank(item.path))


def missing(names: Iterable[str]) -> list[str]:
    return [name for name in names if not (TESTS / name).is_file()]


assert not missing(LONGEST), f"tests/conftest.py names files that are gone: {missing(LONGEST)}"
