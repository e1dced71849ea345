"""The files that Prometheus, Alertmanager and Grafana are provisioned with, as tests read them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.fakes import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
RUNBOOKS = ROOT / "docs" / "runbooks"

Json = dict[str, Any]
Rule = Json


def program(name: str) -> str:
    """Return where the program is; without it the tests fail, loudly."""
    found = shutil.which(name)
    assert found, f"no {name} here: 'make system-packages' installs it"
    return found


def checked(name: str, *arguments: str | Path) -> str:
    """Run a checker and return what it prints; fail with that when it finds something wrong."""
    command = [program(name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[Rule]:
    """Return every recording and alerting rule."""
    files = [yaml.safe_load(f.read_text()) for f in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> list[Rule]:
    return [rule for rule in rules() if "alert" in rule]


def dashboards() -> dict[str, Json]:
    """Return the committed dashboards by name."""
    return {f.stem: json.loads(f.read_text()) for f in sorted(DASHBOARDS.glob("*.json"))}


def panels() -> list[tuple[str, Json]]:
    """Return every panel but the rows, each with `dashboard: title`."""
    return [
        (f"{name}: {panel['title']}", panel)
        for name, made in dashboards().items()
        for panel in made["panels"]
        if panel["type"] != "row"
    ]
