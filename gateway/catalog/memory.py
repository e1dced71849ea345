"""How much memory loaded models take, and how much of it may still be taken here.

All that decide what may be loaded ask this module: how many instances of our own Triton fit, and whether a
candidate fits beside the current catalog.
"""

from __future__ import annotations

import math
from pathlib import Path

from gateway import cgroups
from gateway.catalog.schema import Variant

# Measured of the shipped models on Triton 24.10 with ONNX Runtime 1.31.1, x86-64: private memory of an instance after use.
PROCESS_BYTES = 60 << 20
COPIES = 3.0  # memory of a model in a process of its own / its file
COPIES_IN_PROCESS = 2.0  # the same in the gateway's process; 1.8 was seen of the largest
MEMINFO = Path("/proc/meminfo")


def instance_bytes(variant: Variant) -> float:
    """Return the memory of one instance in a Triton: a process with a copy of the model."""
    return PROCESS_BYTES + COPIES * variant.size_bytes


def embedded_bytes(variant: Variant) -> float:
    """Return the memory of a model in the process of the gateway."""
    return COPIES_IN_PROCESS * variant.size_bytes


def free_bytes(proc: Path = cgroups.PROC, meminfo: Path = MEMINFO) -> float:
    """Return the memory that may still be taken, within the limits of our control groups; inf: unknown."""
    left = cgroups.memory_left_bytes(proc)
    return min(_available_bytes(meminfo), math.inf if left is None else float(left))


def _available_bytes(meminfo: Path) -> float:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024.0
    except (OSError, KeyError, ValueError):
        return math.inf
