"""How much memory models take, and how much is left under the limits of control groups of both versions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog import memory
from tests.fakes import make_variant
from tests.gateway.test_cgroups import V1, V2, group, of_process

MIB = 1 << 20
AVAILABLE = "MemTotal:       4000000 kB\nMemAvailable:   2048000 kB\n"


def free_mib(tmp_path: Path, groups: str, mounts: str) -> float:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(AVAILABLE)
    return memory.free_bytes(of_process(tmp_path, groups, mounts), meminfo) / MIB


@pytest.mark.parametrize(
    ("mounts", "folder", "files"),
    [
        (V2, "cg/box", {"max": "{limit}", "current": "{used}", "stat": "inactive_file {cache}"}),
        (
            V1,
            "memory/box",
            {
                "limit_in_bytes": "{limit}",
                "usage_in_bytes": "{used}",
                "stat": "inactive_file 1\ntotal_inactive_file {cache}",
            },
        ),
    ],
)
def test_the_limit_of_a_control_group_leaves_what_is_not_used(
    tmp_path: Path, mounts: str, folder: str, files: dict[str, str]
) -> None:
    """Of both versions; a page of a file that was read once is given up when memory is short."""
    numbers = {"limit": 1000 * MIB, "used": 700 * MIB, "cache": 100 * MIB}
    texts = {f"memory__{name}": text.format(**numbers) for name, text in files.items()}
    group(tmp_path, folder, **texts)
    assert free_mib(tmp_path, "2:memory:/box\n0::/box\n", mounts) == 400


def test_the_tightest_of_groups_and_host_counts(tmp_path: Path) -> None:
    """A pod that is nearly full leaves its containers no more."""
    group(tmp_path, "cg/pod/box", memory__max=str(3000 * MIB), memory__current="0")
    group(tmp_path, "cg/pod", memory__max=str(900 * MIB), memory__current=str(800 * MIB))
    assert free_mib(tmp_path, "0::/pod/box\n", V2) == 100


def test_without_a_limit_the_host_s_memory_counts(tmp_path: Path) -> None:
    """Where that is not known either, nothing is refused for it."""
    assert free_mib(tmp_path, "0::/\n", V2) == 2000
    assert math.isinf(memory.free_bytes(tmp_path / "none", tmp_path / "none"))


def test_an_instance_in_a_triton_takes_more_than_a_model_in_the_gateway() -> None:
    """It is a process of its own."""
    variant = replace(make_variant("large", 5), size_bytes=100 * MIB)
    assert memory.instance_bytes(variant) / MIB == 360
    assert memory.embedded_bytes(variant) / MIB == 200
