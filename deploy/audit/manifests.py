"""`make scan`: Checkov on the rendered Kubernetes manifests, the Dockerfiles, and everything in deploy/ that could be a secret.

Ends with 1 where something is found that manifests.toml does not explain.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deploy.audit.findings import Finding
from deploy.audit.report import conclude

EXPLAINED = Path(__file__).with_name("manifests.toml")
DEPLOY = Path(__file__).parents[1]
CHECKOV = ["--compact", "--quiet", "--skip-download", "--output", "json"]


def main() -> int:
    with TemporaryDirectory() as work:
        names = [render(each, Path(work)) for each in kustomizations(DEPLOY / "kubernetes")]
        reports = [*scan(Path(work), "kubernetes"), *scan(DEPLOY, "dockerfile", "secrets")]
    print(f"Checkov {reports[0]['summary']['checkov_version']} on {', '.join(names)}, Dockerfiles")
    for report in reports:
        print(f"{report['check_type']}: {report['summary']['passed']} checks passed")
    return conclude(read_reports(reports), EXPLAINED)


def kustomizations(kubernetes: Path) -> list[Path]:
    """Return the folders that somebody applies: what is built of others, or stands alone."""
    found = {path.parent for path in kubernetes.rglob("kustomization.yaml")}
    parts = {kubernetes / "base", *(kubernetes / "components").iterdir()}
    return sorted(found - parts)


def render(kustomization: Path, folder: Path) -> str:
    """Write one file of all resources and return its name."""
    command = ["kubectl", "kustomize", str(kustomization)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kustomization} cannot be rendered:\n{done.stderr}")
    (folder / f"{kustomization.name}.yaml").write_text(done.stdout)
    return kustomization.name


def scan(folder: Path, *frameworks: str) -> list[dict[str, Any]]:
    """Return a report of each framework that found something to look at."""
    checkov = str(Path(sys.executable).with_name("checkov"))
    command = [checkov, *CHECKOV, "--directory", str(folder), "--framework", *frameworks]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.stdout.strip() else {}
    reports = found if isinstance(found, list) else [found]
    if not all("results" in report for report in reports):
        raise SystemExit(f"Checkov found nothing to look at in {folder}:\n{done.stderr}")
    return reports


def read_reports(reports: Iterable[dict[str, Any]]) -> list[Finding]:
    """Return what failed, and what could not be read, by file and resource."""
    return [
        finding for report in reports for finding in (*_failed(report["results"]), *_unread(report))
    ]


def _failed(results: dict[str, Any]) -> list[Finding]:
    return [
        Finding(
            (each["check_id"],),
            f"{each['file_path'].lstrip('/')}: {each['resource'].rpartition('/')[2]}",
            each["check_name"],
        )
        for each in results["failed_checks"]
    ]


def _unread(report: dict[str, Any]) -> list[Finding]:
    n_files = report["summary"]["parsing_errors"]
    where = report["check_type"]
    return [Finding(("not-read",), where, f"{n_files} files cannot be parsed")] if n_files else []


if __name__ == "__main__":
    sys.exit(main())
