"""Kubernetes alerts by the rules that are tested with the real Prometheus."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import yaml

from tests.deploy.rendering import KUBERNETES, of_kind
from tests.fakes import ROOT


def writer() -> ModuleType:
    """Return deploy/kubernetes/prometheus_rule.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("writer", KUBERNETES / "prometheus_rule.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_resource_is_what_the_rules_make() -> None:
    """An alert that was mended in one place only still pages."""
    written = (KUBERNETES / "components" / "monitoring" / "prometheus-rule.yaml").read_text()
    assert written == writer().document(), "run `make kubernetes-rules`"


def test_every_overlay_has_every_group() -> None:
    """As read from the files, and by their names."""
    files = (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml")
    wanted = {g["name"] for path in files for g in yaml.safe_load(path.read_text())["groups"]}
    for overlay in ("overlays/cpu", "overlays/gpu", "overlays/bucket"):
        groups = of_kind(overlay, "PrometheusRule")["bertier"]["spec"]["groups"]
        assert {group["name"] for group in groups} == wanted != set()
