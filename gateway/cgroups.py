"""Reads what the control groups of this process allow: CPU time and memory, version 1 and 2.

A group's limit holds for all groups below it, so the tightest on the way up counts. Never writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc/self")
UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as a number near 2^63


def cpu_quota(proc: Path = PROC) -> float | None:
    """Return the cores' worth of CPU time that this process may use; None: no limit."""
    quotas = [_quota(folder) for folder in _folders("cpu", proc)]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit_bytes(proc: Path = PROC) -> int | None:
    """Return the memory that this process may use; None: no limit."""
    limits = [_limit(folder) for folder in _folders("memory", proc)]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_left_bytes(proc: Path = PROC) -> int | None:
    """Return the memory that this process's groups may still take; None: no limit.

    Pages of files that the kernel gives up when memory is short count as left.
    """
    left = [_left(folder) for folder in _folders("memory", proc)]
    return min((each for each in left if each is not None), default=None)


def _folders(controller: str, proc: Path) -> Iterator[Path]:
    """Yield the folder of this process's group and of those above it that are mounted here."""
    for path, mount, root in _mounted(controller, proc):
        inside = path.removeprefix(root.rstrip("/")) if _is_below(path, root) else ""
        folder = mount / inside.lstrip("/")
        while True:
            yield folder
            if folder == mount or mount not in folder.parents:
                break
            folder = folder.parent


def _mounted(controller: str, proc: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield this process's group, the mount point and the mounted root, of each hierarchy."""
    groups = _groups(proc)
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        name = "" if kind[0] == "cgroup2" else controller
        holds = kind[0] == "cgroup2" or (kind[0] == "cgroup" and controller in kind[2].split(","))
        if holds and name in groups:
            yield groups[name], Path(place[4]), place[3]


def _groups(proc: Path) -> dict[str, str]:
    """Return the group by controller; "": the one of version 2."""
    found: dict[str, str] = {}
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _is_below(path: str, root: str) -> bool:
    """Say whether a group lies in the mounted part; a container may see only its own."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def _quota(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 and period_us > 0 else None
    return None


def _limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no number
            limit = int((folder / name).read_text())
            return limit if 0 < limit < UNLIMITED_BYTES else None
    return None


def _left(folder: Path) -> int | None:
    limit = _limit(folder)
    if limit is None:
        return None
    for used, cache in (("current", "inactive_file"), ("usage_in_bytes", "total_inactive_file")):
        with suppress(OSError, ValueError):
            taken = int((folder / f"memory.{used}").read_text())
            return max(0, limit - taken + _stat(folder, cache))
    return limit


def _stat(folder: Path, name: str) -> int:
    """Return a number of memory.stat; 0: it is not there."""
    for line in _lines(folder / "memory.stat"):
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not Linux
        return []
