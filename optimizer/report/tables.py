"""Tables and small parts of the report. Every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from optimizer.report.inputs import TRIALS, Inputs, search_of


class Raw(str):
    """HTML that must not be escaped again."""

    __slots__ = ()


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, Raw):
        return f"<td>{value}</td>"
    kind = ' class="text"' if isinstance(value, str) and not value.lstrip("-")[:1].isdigit() else ""
    return f"<td{kind}>{escape(str(value))}</td>"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def plain(value: float | str | None) -> str:
    return "-" if value is None else str(value)


def megabytes(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.2f}"


def pair(*parts: str) -> str:
    return f'<div class="pair">{"".join(parts)}</div>'


def none(what: str, file: Path, command: str) -> str:
    return (
        f'<p class="none">No data yet: the {escape(what)} are read from <code>{escape(str(file))}</code>,'
        f" which <code>bertier-optimize {escape(command)}</code> writes.</p>"
    )


def no_trials(inputs: Inputs) -> str:
    return none("trials", search_of(inputs.config, inputs.run_dir) / TRIALS, "search")


def no_catalog(inputs: Inputs) -> str:
    return none("published variants", inputs.repository / "catalog.json", "publish")
