"""Write the rules of deploy/prometheus as one PrometheusRule for the operator: `make kubernetes-rules`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
TARGET = HERE / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = "# Written by `make kubernetes-rules` from deploy/prometheus/rules; change them there.\n"


def document() -> str:
    """Return the resource, with the groups of every file in the order of their names."""
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))]
    resource: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "bertier"},
        "spec": {"groups": [group for each in files for group in each["groups"]]},
    }
    return HEAD + yaml.safe_dump(resource, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(document())
