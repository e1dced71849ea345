"""Prints the result of an audit and returns its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from deploy.audit.findings import Explanation, Finding, read_explanations, unexplained


def conclude(findings: Sequence[Finding], explained: Path) -> int:
    """Print every finding and return 1 where one has no explanation in that file, else 0."""
    explanations = read_explanations(explained.read_text())
    left = unexplained(findings, explanations, datetime.now(tz=UTC).date())
    for each in explanations:
        print(_paragraph(each, [f for f in findings if each.covers(f)]))
    for finding in left:
        print(f"UNEXPLAINED  {finding}")
    print(f"{len(findings)} findings, {len(left)} unexplained")
    if left:
        print(f"Mend them, or say in {explained} why they may stay")
    return 1 if left else 0


def _paragraph(explanation: Explanation, covered: Sequence[Finding]) -> str:
    if not covered:
        return f"note: no {explanation.what} in {explanation.where}: its explanation can go"
    return (
        f"explained until {explanation.until}  {explanation.what} {covered[0].says!r}, "
        f"{len(covered)} in {explanation.where!r}: {explanation.reason}"
    )
