"""The real Prometheus and Alertmanager for tests, with the provisioned files, hurried up.

Intervals are a second and alerts need not hold for minutes: else nothing of the files is changed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateway.triton_server.guard import end_with_parent
from tests.deploy.prometheus_files import ALERTMANAGER, PROMETHEUS, program
from tests.local_triton import free_ports

START_S = 60.0
POLL_S = 0.1


class RefusedQuery(AssertionError):
    """Prometheus did not take a query; the message is its own."""


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, and the Alertmanager it tells."""

    url: str
    alertmanager_url: str

    def query(self, expr: str) -> list[float]:
        """Return the values of an expression now, in no order. Raises: RefusedQuery."""
        found = self.get("query", query=expr)
        samples = (
            found["result"] if found["resultType"] == "vector" else [{"value": found["result"]}]
        )
        return [float(sample["value"][1]) for sample in samples]

    def label_values(self, metric: str, label: str) -> list[str]:
        values: list[str] = self.get(f"label/{label}/values", **{"match[]": metric})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its state and health."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def received(self) -> list[dict[str, Any]]:
        """Return the alerts that Alertmanager got."""
        with urllib.request.urlopen(f"{self.alertmanager_url}/api/v2/alerts", timeout=10) as reply:
            found: list[dict[str, Any]] = json.load(reply)
        return found

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as exc:
            raise RefusedQuery(f"{parameters}: {exc.read().decode()}") from exc


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Run both in `folder`; `targets`: host:port of `gateway` and `triton`."""
    port, alerts_port = free_ports(2)
    shutil.copytree(PROMETHEUS, folder / "prometheus")
    for name, target in {**targets, "alertmanager": f"127.0.0.1:{alerts_port}"}.items():
        file = folder / "prometheus" / "targets" / f"{name}.yml"
        assert file.exists(), f"no file of targets is called {name}"
        file.write_text(yaml.safe_dump([{"targets": [target]}]))
    for file in (folder / "prometheus").rglob("*.yml"):
        file.write_text(yaml.safe_dump(_hurried(yaml.safe_load(file.read_text()))))
    commands = {
        f"http://127.0.0.1:{port}": [
            program("prometheus"),
            f"--config.file={folder}/prometheus/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        f"http://127.0.0.1:{alerts_port}": [
            program("prometheus-alertmanager"),
            f"--config.file={ALERTMANAGER}",
            f"--storage.path={folder}/alerts",
            f"--web.listen-address=127.0.0.1:{alerts_port}",
            "--cluster.listen-address=",
        ],
    }
    with (folder / "log").open("wb") as log:
        processes = [
            subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - a killed test leaves nothing behind
            )
            for command in commands.values()
        ]
        try:
            for url, process in zip(commands, processes, strict=True):
                _wait_ready(url, process, folder / "log")
            yield Prometheus(*commands)
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _hurried(part: Any) -> Any:
    if isinstance(part, list):
        return [_hurried(each) for each in part]
    if not isinstance(part, dict):
        return part
    hurry = {"scrape_interval": "1s", "evaluation_interval": "1s", "interval": "1s", "for": "0s"}
    return {key: hurry.get(key) or _hurried(value) for key, value in part.items()}


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _is_ready(url):
        running = process.poll() is None and time.monotonic() < deadline
        assert running, f"{url} did not get ready: {log.read_text()[-2000:]}"
        time.sleep(POLL_S)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=1):
            return True
    except OSError:
        return False
