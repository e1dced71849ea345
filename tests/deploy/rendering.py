"""Kustomizations rendered by the real kubectl."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.fakes import ROOT

Json = dict[str, Any]
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = (
    "overlays/cpu",
    "overlays/gpu",
    "overlays/bucket",
    "overlays/secure",
    "optimizer",
    "optimizer-costs",
    "optimizer-finish",
    "optimizer-gpu",
)


@cache
def render(name: str) -> tuple[Json, ...]:
    """Return the resources of a kustomization of deploy/kubernetes."""
    command = ["kubectl", "kustomize", str(KUBERNETES / name)]
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    rendered = subprocess.run(command, capture_output=True, text=True, check=False, env=here)
    assert rendered.returncode == 0, rendered.stderr
    return tuple(yaml.safe_load_all(rendered.stdout))


def of_kind(name: str, *kinds: str) -> dict[str, Json]:
    """Return the resources of these kinds by name."""
    return {each["metadata"]["name"]: each for each in render(name) if each["kind"] in kinds}


def workloads(name: str) -> dict[str, Json]:
    return of_kind(name, "Deployment", "StatefulSet", "Job")


def pod_of(workload: Json) -> Json:
    spec: Json = workload["spec"]["template"]["spec"]
    return spec


def containers_of(workload: Json) -> list[Json]:
    pod = pod_of(workload)
    return [*pod["containers"], *pod.get("initContainers", [])]


def setting(workload: Json, name: str) -> str:
    """Return a variable of the first container."""
    env = {each["name"]: each.get("value", "") for each in pod_of(workload)["containers"][0]["env"]}
    return str(env[name])
