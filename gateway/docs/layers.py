"""Draws the layers of imports, from the contracts in pyproject.toml and the docstrings of packages.

`python -m gateway.docs.layers pyproject.toml docs/layers.svg` writes the picture; nothing at run time reads it.
"""

from __future__ import annotations

import argparse
import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import wrap

WIDTH, MARGIN, GAP = 960, 16, 8  # px
TITLE_PX, NAME_PX, LINE_PX, PADDING_PX = 34, 18, 14, 8
CHAR_PX = 6.5  # of a docstring's letters, at most on average
STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#1f2328}.t{font-size:17px;font-weight:600}"
    ".n{font-size:13px;font-weight:600}.d{font-size:11px;fill:#59636e}"
    "rect{fill:#f6f8fa;stroke:#d1d9e0}.bg{fill:#fff;stroke:none}"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A package or module of a layer."""

    name: str
    purpose: str  # the first line of its docstring


Rows = Sequence[Sequence[Part]]  # the highest layer first


def layers(pyproject: Path) -> Mapping[str, Rows]:
    """Return the layers of each program, as the contracts have them."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    return {
        program: list(_rows(pyproject.parent / program, contract["layers"]))
        for contract in contracts
        if contract["type"] == "layers"
        for program in contract["containers"]
    }


def _rows(folder: Path, rows: Sequence[str]) -> Iterator[list[Part]]:
    for row in rows:
        names = [name.strip() for name in row.split("|")]
        optional = {name for name in names if name.startswith("(")}
        places = [(folder / name.strip("()"), name in optional) for name in names]
        if parts := [
            _part(place) for place, spare in places if not spare or _source(place).exists()
        ]:
            yield parts


def _part(place: Path) -> Part:
    return Part(place.name, _purpose(_source(place)))


def _source(place: Path) -> Path:
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _purpose(source: Path) -> str:
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    return docstring.partition("\n")[0]


def picture(programs: Mapping[str, Rows]) -> str:
    """Return the programs below each other as one SVG; what lies higher imports what lies lower."""
    body: list[str] = []
    top = MARGIN
    for program, rows in programs.items():
        top += TITLE_PX
        body.append(_text("t", MARGIN, top - 12, f"{program}/"))
        for row in rows:
            height = max(_height(part, _width(row)) for part in row)
            body += _row(row, top, height)
            top += height + GAP
    size = f'width="{WIDTH}" height="{top + MARGIN}" viewBox="0 0 {WIDTH} {top + MARGIN}"'
    said = "Layers of packages: each may import what is drawn below it in its program"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{said}">',
            f'<style>{STYLE}</style><rect class="bg" width="100%" height="100%"/>',
            *body,
            "</svg>\n",
        ]
    )


def _row(row: Sequence[Part], top: int, height: int) -> Iterator[str]:
    width = _width(row)
    for i, part in enumerate(row):
        left = MARGIN + i * (width + GAP)
        yield f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="4"/>'
        line = top + PADDING_PX + NAME_PX - 5
        yield _text("n", left + PADDING_PX, line, part.name)
        for text in _lines(part, width):
            line += LINE_PX
            yield _text("d", left + PADDING_PX, line, text)


def _width(row: Sequence[Part]) -> int:
    return (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) // len(row)


def _lines(part: Part, width: int) -> list[str]:
    return wrap(part.purpose, int((width - 2 * PADDING_PX) / CHAR_PX))


def _height(part: Part, width: int) -> int:
    return 2 * PADDING_PX + NAME_PX - 4 + LINE_PX * len(_lines(part, width))


def _text(kind: str, x: int, y: int, text: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("pyproject", type=Path)
    flags.add_argument("svg", type=Path)
    given = flags.parse_args()
    given.svg.write_text(picture(layers(given.pyproject)))
