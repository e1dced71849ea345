"""Findings of a scanner, and which of them have an explanation. Pure: runs nothing, prints nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

FIELDS = {"what": str, "where": str, "reason": str, "until": date}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a scanner holds against us."""

    names: tuple[str, ...]  # of the advisory or the check: each source has its own
    where: str  # name==version of a package; file: resource of a manifest
    says: str

    def __str__(self) -> str:
        return f"{self.where}  {' '.join(self.names)}  {self.says}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a finding may stay, and until when."""

    what: str  # one of the finding's names
    where: str  # a pattern, as of a shell
    reason: str
    until: date  # then somebody looks again

    def covers(self, finding: Finding) -> bool:
        return self.what in finding.names and fnmatchcase(finding.where, self.where)


def read_explanations(text: str) -> tuple[Explanation, ...]:
    """Return the tables `[[explained]]` of a TOML text.

    Raises: ValueError, where one says too little or too much.
    """
    tables = tomllib.loads(text).get("explained", [])
    return tuple(_read(table) for table in tables)


def _read(table: dict[str, Any]) -> Explanation:
    wrong = sorted(FIELDS.keys() ^ table.keys())
    wrong += [name for name, kind in FIELDS.items() if not isinstance(table.get(name), kind)]
    if wrong or not table["reason"].strip():
        raise ValueError(f"{table}: an explanation has what, where, reason and until (a date)")
    return Explanation(**table)


def unexplained(
    findings: Iterable[Finding], explanations: Sequence[Explanation], today: date
) -> list[Finding]:
    """Return the findings that no explanation covers today."""
    valid = [each for each in explanations if each.until >= today]
    return [f for f in findings if not any(each.covers(f) for each in valid)]
