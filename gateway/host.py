"""What this host is: the things that change a model's speed or its int8 results."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from gateway.domain import Host

INT8_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def describe(engine: str) -> Host:
    """Return this host with the given inference engine."""
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return Host(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        flags=" ".join(flag for flag in INT8_FLAGS if flag in present),
        cores=usable_cores(),
        gpu="",
        engine=engine,
    )


def usable_cores() -> int:
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
