"""The table of all settings, written from `Settings` into a document between two marks.

`python -m gateway.docs.settings docs/reference/settings.md` writes it; nothing at run time reads it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from gateway.cli import main as cli
from gateway.settings import Settings

BEGIN = "<!-- settings: written by `make settings` from gateway/settings.py -->"
END = "<!-- end of settings -->"
HEAD = "| key in `bertier.toml` | default, range | |\n|---|---|---|"
# Where a description's links lead: `[below](#anchor)` of a setting, and pages that lie elsewhere.
PAGES = {
    "a-record-of-decisions": "../how-to/logs.md#a-record-of-decisions",
    "connections": "../how-to/connections.md#connections",
    "floors-of-all-clusters": "../explanation/certificates.md#one-value-is-an-article",
    "keeping-certificates-true": "../how-to/watch-certificates.md",
    "logs": "../how-to/logs.md#logs",
    "several-gateways": "../how-to/model-servers.md#several-gateways",
    "several-model-servers": "../how-to/model-servers.md#several-model-servers",
    "stopping": "../how-to/stop.md",
    "variants-that-fail": "../how-to/health.md#variants-that-fail",
    "where-the-models-run": "../how-to/model-servers.md#where-the-models-run",
}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def main(path: Path) -> None:
    path.write_text(written_into(path.read_text()))


def written_into(document: str) -> str:
    """Return the document with the table of now. Raises: ValueError where it has no marks."""
    before, mark, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the document needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def table() -> str:
    """Return every setting as a row of Markdown, in the order of their declaration."""
    flags = cli.serve_flags()
    return "\n".join([HEAD, *(_row(name, f, flags) for name, f in Settings.model_fields.items())])


def _row(name: str, field: FieldInfo, flags: frozenset[str]) -> str:
    flag = f"--{name.replace('_', '-')}"
    cells = (
        f"`{name}`{'*' if flag in flags else ''}",
        "; ".join(filter(None, (_default(field), _range(name, field)))),
        _linked(field.description or ""),
    )
    return f"| {' | '.join(cells)} |"


def _linked(description: str) -> str:
    """Return the description with links as they lead from the page. Raises: KeyError for an unknown anchor."""
    more = re.sub(r"\[(\w+)\]\(#([\w-]+)\)", lambda m: f"[{m[1]}]({PAGES[m[2]]})", description)
    more = more.replace("[below]", "[more]")
    return more.replace("](security.md", "](../how-to/security.md")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        shipped: Any = field.get_default(call_default_factory=True)
        return ", ".join(f"`{name}`" for name in shipped) or "none"
    return "none" if field.default in (None, (), "") else f"`{field.default}`"


def _range(name: str, field: FieldInfo) -> str:
    """Return what a value may be, where that is not plain: the page says that numbers are positive."""
    if get_origin(field.annotation) is not None and all(
        isinstance(choice, str) for choice in get_args(field.annotation)
    ):
        others = (choice for choice in get_args(field.annotation) if choice != field.default)
        return ", ".join(f"`{choice}`" for choice in others)
    bounds = {
        short: getattr(rule, short)
        for rule in field.metadata
        for short in BOUNDS
        if hasattr(rule, short) and (short, getattr(rule, short)) != ("gt", 0)
    }
    if name.endswith("_share") or not any(bounds.values()):
        return ""
    if {"ge", "le"} <= bounds.keys():
        return f"{bounds['ge']} to {bounds['le']}"
    return ", ".join(f"{BOUNDS[short]} {limit}" for short, limit in bounds.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the table of settings into a document.")
    parser.add_argument("document", type=Path)
    main(parser.parse_args().document)
