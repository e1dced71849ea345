"""`make audit`: known vulnerabilities of the versions in constraints.txt.

Asks PyPI's advisories (pip-audit) and, where they cannot be reached, an older copy of GitHub's; and the index, which
versions were yanked. Looks at the releases of Triton, too (triton.py). Ends with 1 where something is found that packages.toml does not explain.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.audit import triton
from deploy.audit.advisories import plain_name, read_wheel
from deploy.audit.findings import Finding
from deploy.audit.report import conclude

EXPLAINED = Path(__file__).with_name("packages.toml")
PIP_AUDIT = [
    "--format",
    "json",
    "--progress-spinner",
    "off",
    "--timeout",
    "15",
    "--no-deps",
    "--disable-pip",
]
DRY_RUN = ["install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]


def main(constraints: Path, offline: Path) -> int:
    pins = read_pins(constraints.read_text())
    findings = from_advisories(ask_pip_audit(constraints))
    if findings is None:
        findings = from_copy(offline, pins)
    else:
        print(f"PyPI's advisories were asked about {len(pins)} packages")
    findings += triton.findings(pins, datetime.now(tz=UTC).date())
    return conclude([*findings, *yanked(ask_index(constraints))], EXPLAINED)


def read_pins(text: str) -> dict[str, str]:
    """Return the version of each package of a constraints file."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pins = [line.split("==") for line in lines if line]
    return {plain_name(name): version for name, version in pins}


def ask_pip_audit(constraints: Path) -> dict[str, Any]:
    """Return its report; an empty one where it gave none."""
    program = str(Path(sys.executable).with_name("pip-audit"))
    command = [program, *PIP_AUDIT, "--requirement", str(constraints)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return report


def from_advisories(report: dict[str, Any]) -> list[Finding] | None:
    """Return the findings of a report of pip-audit; None where no package could be looked up.

    It calls that 'No known vulnerabilities found' and ends with 0.
    """
    packages = report.get("dependencies", [])
    if all("skip_reason" in each for each in packages):
        return None
    skipped = [
        Finding(("not-audited",), each["name"], each["skip_reason"])
        for each in packages
        if "skip_reason" in each
    ]
    return skipped + [
        Finding(
            (known["id"], *known["aliases"]),
            f"{each['name']}=={each['version']}",
            f"fixed in {', '.join(known['fix_versions']) or 'no version'}",
        )
        for each in packages
        for known in each.get("vulns", [])
    ]


def from_copy(folder: Path, pins: Mapping[str, str]) -> list[Finding]:
    """Return what the copy in that folder knows, and say how old it is and what it covers."""
    (wheel,) = folder.glob("*.whl")
    advisories = read_wheel(wheel)
    about = advisories.about(pins)
    print(
        f"PyPI's advisories CANNOT BE REACHED from here. In their place: GitHub's of {advisories.until}, "
        f"{sum(map(len, about.values()))} about {len(about)} of {len(pins)} packages. "
        "What was found out since is not in it"
    )
    return advisories.against(pins)


def ask_index(constraints: Path) -> dict[str, Any]:
    """Return pip's report of what it would install; nothing is installed."""
    command = [sys.executable, "-m", "pip", *DRY_RUN, "--requirement", str(constraints)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The index could not be asked for yanked versions:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def yanked(report: dict[str, Any]) -> list[Finding]:
    """Return the versions that their authors took back."""
    installs = report["install"]
    print(f"The index was asked for yanked versions of {len(installs)} packages")
    return [
        Finding(
            ("yanked",),
            f"{plain_name(each['metadata']['name'])}=={each['metadata']['version']}",
            "taken back by its authors",
        )
        for each in installs
        if each["is_yanked"]
    ]


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
