"""What a result was made with: commit, versions, processor. No result depends on it."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata

from gateway.catalog import host

PACKAGES = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "optuna",
    "numpy",
    "scipy",
    "tokenizers",
)


def ran_on() -> dict[str, str]:
    """Return what a stage ran on, to be kept in its manifest."""
    here = host.describe("")
    return {
        "commit": commit(),
        "cpu": f"{here.cpu}, {here.cores} cores",
        "gpu": here.gpu,
        "python": platform.python_version(),
        **_versions(),
    }


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit of the checkout we run in; `unknown` outside one."""
    try:
        git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
