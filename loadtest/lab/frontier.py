"""The frontier of served F1 against attainment, drawn as SVG: one chart a load, one dot a policy."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from loadtest.lab import oracle
from loadtest.lab.contenders import OURS
from loadtest.lab.tables import Mean
from optimizer.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, axes, path

LABEL_PX = 12.0  # between two labels
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#333}.grid{stroke:#e6e6e6}"
    ".ours{fill:#c2410c}.fixed{fill:#1d4ed8}.rival{fill:#6b7280}"
    ".front{fill:none;stroke:#c2410c;stroke-dasharray:4 3;opacity:.6}"
)

Policies = Mapping[str, Mapping[str, Mean]]


def svg(policies: Policies, title: str) -> str:
    """Return a self-contained SVG: attainment (joint) to the right, served F1 up."""
    points = {
        p: (m["joint"].value, m["served_f1"].value)
        for p, m in policies.items()
        if p != oracle.NAME and m["served_f1"].value == m["served_f1"].value
    }
    x = Axis("joint attainment", 0.0, 1.0, LEFT, WIDTH - RIGHT)
    f1s = [f1 for _, f1 in points.values()] or [0.0, 1.0]
    y = Axis("served F1", min(f1s) - 0.02, max(f1s) + 0.02, HEIGHT - BOTTOM, TOP + LABEL_PX)
    rows = apart({name: y.at(f1) for name, (_, f1) in points.items()})
    drawn = [
        f'<text x="{LEFT}" y="{TOP}">{escape(title)}</text>',
        axes(x, y),
        f'<path class="front" d="{path([points[p] for p in front(points)], x, y)}"/>'
        if points
        else "",
        *(_mark(name, x.at(joint), y.at(f1), rows[name]) for name, (joint, f1) in points.items()),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' width="{WIDTH}" height="{HEIGHT}"><style>{STYLE}</style>{"".join(drawn)}</svg>'
    )


def _mark(name: str, x: float, y: float, row: float) -> str:
    kind = "ours" if name == OURS else "fixed" if name.startswith("fixed") else "rival"
    anchor, dx = ("end", -7) if x > WIDTH / 2 else ("start", 7)
    return (
        f'<circle class="{kind}" cx="{x}" cy="{y}" r="4.5"/>'
        f'<text x="{x + dx}" y="{row + 4}" text-anchor="{anchor}">{escape(name)}</text>'
    )


def apart(wanted: Mapping[str, float]) -> dict[str, float]:
    """Return a row for each label at or just below the one it wants: none stands on another."""
    rows: dict[str, float] = {}
    lowest = -LABEL_PX
    for name in sorted(wanted, key=lambda name: wanted[name]):
        rows[name] = lowest = max(wanted[name], lowest + LABEL_PX)
    return rows


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names that no other point beats in both, by rising first coordinate."""
    kept = [
        p
        for p, a in points.items()
        if not any(b[0] >= a[0] and b[1] >= a[1] and b != a for b in points.values())
    ]
    return sorted(kept, key=lambda p: points[p])
