"""Describes this host: the properties that change a model's speed or its int8 results."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from gateway import cgroups
from gateway.catalog.schema import Host

INT8_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")

GPU_PATIENCE_S = 10.0  # nvidia-smi wakes a driver that sleeps


def describe(engine: str) -> Host:
    """Return this host with the given inference engine."""
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return Host(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        flags=" ".join(flag for flag in INT8_FLAGS if flag in present),
        cores=usable_cores(),
        gpu=gpu_names(),
        engine=engine,
    )


@cache
def gpu_names(command: str = "nvidia-smi") -> str:
    """Return the names of the GPUs here, comma-separated, "" where there is none; asked once."""
    program = shutil.which(command)
    if program is None:
        return ""
    ask = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(
            ask, capture_output=True, text=True, timeout=GPU_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if listed.returncode:  # a driver without a device, or the other way round
        return ""
    return ", ".join(line.strip() for line in listed.stdout.splitlines() if line.strip())


def usable_cores(proc: Path = cgroups.PROC) -> int:
    """Return how many cores this process can keep busy: its affinity, or the quota of its cgroup if less.

    At least 1; a part of a core counts as one (`usable_cpu` has the fraction).
    """
    return max(1, math.ceil(usable_cpu(proc)))


def usable_cpu(proc: Path = cgroups.PROC) -> float:
    """Return the cores' worth of CPU time that this process may use: 0.5 is half a core."""
    quota = cgroups.cpu_quota(proc)
    return float(affinity_cores()) if quota is None else min(float(affinity_cores()), quota)


def affinity_cores() -> int:
    """Return how many cores this process may run on, whatever it may use of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
