"""Writes deploy/grafana/dashboards: `make dashboards`. A test keeps code and files equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.observability.accuracy import accuracy
from deploy.observability.gateway import gateway
from deploy.observability.models import models
from deploy.observability.service import service
from deploy.observability.triton import triton

FOLDER = Path(__file__).parents[1] / "grafana" / "dashboards"


def files() -> Mapping[str, str]:
    """Return the text of every dashboard by the name of its file."""
    made = {
        "service": service(),
        "models": models(),
        "accuracy": accuracy(),
        "triton": triton(),
        "gateway": gateway(),
    }
    return {f"{name}.json": _text(dashboard) for name, dashboard in made.items()}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)


def _text(dashboard: Dashboard) -> str:
    return json.dumps(dashboard, cls=JSONEncoder, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
