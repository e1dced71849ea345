"""The limits of the control groups: read from files as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import cgroups
from gateway.catalog import host


def of_process(tmp_path: Path, groups: str, mounts: str) -> Path:
    """Return a folder like /proc/self; `{here}` in the mounts is the temporary folder."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(mounts.replace("{here}", str(tmp_path)))
    return proc


def group(tmp_path: Path, path: str, **files: str) -> None:
    folder = tmp_path / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


V2 = "31 23 0:28 / {here}/cg rw - cgroup2 cgroup2 rw\n"
V1 = (
    "32 31 0:29 / {here}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / {here}/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.mark.parametrize(("cpu_max", "quota"), [("50000 100000", 0.5), ("max 100000", None)])
def test_version_2_gives_a_quota(tmp_path: Path, cpu_max: str, quota: float | None) -> None:
    """Half a core is a limit that affinity does not show."""
    proc = of_process(tmp_path, "0::/pod/box\n", V2)
    group(tmp_path, "cg/pod/box", cpu__max=cpu_max)
    assert cgroups.cpu_quota(proc) == quota


def test_version_1_gives_a_quota_and_a_limit(tmp_path: Path) -> None:
    """Each controller has a hierarchy of its own there."""
    proc = of_process(tmp_path, "2:memory:/box\n1:cpu,cpuacct:/box\n0::/\n", V1)
    group(tmp_path, "cpu/box", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    group(tmp_path, "memory/box", memory__limit_in_bytes="536870912")
    assert (cgroups.cpu_quota(proc), cgroups.memory_limit_bytes(proc)) == (1.5, 1 << 29)


def test_version_1_says_unlimited_in_numbers(tmp_path: Path) -> None:
    """-1 is not a negative quota, nor 2^63 a limit."""
    proc = of_process(tmp_path, "2:memory:/\n1:cpu,cpuacct:/\n", V1)
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(tmp_path, "memory", memory__limit_in_bytes="9223372036854771712")
    assert (cgroups.cpu_quota(proc), cgroups.memory_limit_bytes(proc)) == (None, None)


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    """A pod's limit holds for its containers, whatever they say themselves."""
    proc = of_process(tmp_path, "0::/pod/box\n", V2)
    group(tmp_path, "cg/pod/box", cpu__max="max 100000", memory__max="max")
    group(tmp_path, "cg/pod", cpu__max="200000 100000", memory__max="1073741824")
    assert (cgroups.cpu_quota(proc), cgroups.memory_limit_bytes(proc)) == (2.0, 1 << 30)


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    """Without a cgroup namespace, /proc names the host's path, of which only the end is mounted."""
    mounts = "31 23 0:28 /docker/abc {here}/cg rw - cgroup2 cgroup2 rw\n"
    proc = of_process(tmp_path, "0::/docker/abc\n", mounts)
    group(tmp_path, "cg", cpu__max="75000 100000")
    assert cgroups.cpu_quota(proc) == 0.75


def test_a_host_without_groups_has_no_limit(tmp_path: Path) -> None:
    """Such as macOS, which has no /proc."""
    assert cgroups.cpu_quota(tmp_path) is None
    assert cgroups.memory_limit_bytes(tmp_path) is None


def test_half_a_core_is_one_usable_core(tmp_path: Path) -> None:
    """Nothing runs on none; how much of it there is decides the predictions."""
    proc = of_process(tmp_path, "0::/\n", V2)
    group(tmp_path, "cg", cpu__max="50000 100000")
    assert (host.usable_cores(proc), host.usable_cpu(proc)) == (1, 0.5)


def test_a_quota_above_the_affinity_adds_no_core(tmp_path: Path) -> None:
    """A process runs on at most the cores that it may run on."""
    proc = of_process(tmp_path, "0::/\n", V2)
    group(tmp_path, "cg", cpu__max="102400000 100000")
    assert host.usable_cpu(proc) == host.usable_cpu(tmp_path)
