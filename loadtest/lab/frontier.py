"""The frontier of served F1 against attainment, drawn as SVG: one chart a load, one dot a policy."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from loadtest.lab import oracle
from loadtest.lab.contenders import OURS
from loadtest.lab.tables import Mean

WIDTH, HEIGHT, EDGE = 560, 340, 46
LINE = 12.0  # between two labels
STYLE = (
    "<style>text{font:11px system-ui,sans-serif;fill:#333}.axis{stroke:#999}"
    ".grid{stroke:#e6e6e6}.ours{fill:#c2410c}.fixed{fill:#1d4ed8}.rival{fill:#6b7280}"
    ".front{fill:none;stroke:#c2410c;stroke-dasharray:4 3;opacity:.6}</style>"
)

Policies = Mapping[str, Mapping[str, Mean]]


def svg(policies: Policies, title: str) -> str:
    """Return a self-contained SVG: attainment (joint) to the right, served F1 up."""
    points = {
        p: (m["joint"].value, m["served_f1"].value)
        for p, m in policies.items()
        if p != oracle.NAME and m["served_f1"].value == m["served_f1"].value
    }
    f1s = [f1 for _, f1 in points.values()] or [0.0, 1.0]
    low, high = min(f1s) - 0.02, max(f1s) + 0.02

    def place(joint: float, f1: float) -> tuple[float, float]:
        x = EDGE + joint * (WIDTH - 2 * EDGE)
        return x, HEIGHT - EDGE - (f1 - low) / (high - low) * (HEIGHT - 2 * EDGE)

    parts = [STYLE, f'<text x="{EDGE}" y="18">{escape(title)}</text>']
    for step in range(6):
        x, _ = place(step / 5, low)
        f1 = low + (high - low) * step / 5
        _, y = place(0, f1)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{EDGE}" y2="{HEIGHT - EDGE}"/>'
        )
        parts.append(f'<text x="{x - 8:.1f}" y="{HEIGHT - EDGE + 16}">{step / 5:.1f}</text>')
        parts.append(f'<text x="8" y="{y + 4:.1f}">{f1:.3f}</text>')
    parts.append(f'<text x="{WIDTH - 190}" y="{HEIGHT - 10}">joint attainment</text>')
    parts.append(f'<text x="8" y="{EDGE - 12}">served F1</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*points[p]) for p in front(points)))
    parts.append(f'<polyline class="front" points="{line}"/>')
    dots = {name: place(*point) for name, point in points.items()}
    rows = apart({name: y for name, (_, y) in dots.items()})
    for name, point in points.items():
        x, y = dots[name]
        kind = "ours" if name == OURS else "fixed" if name.startswith("fixed") else "rival"
        anchor = "end" if point[0] > 0.6 else "start"
        dx = -7 if anchor == "end" else 7
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        parts.append(
            f'<text x="{x + dx:.1f}" y="{rows[name] + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    inside = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' width="{WIDTH}" height="{HEIGHT}">{inside}</svg>'
    )


def apart(wanted: Mapping[str, float]) -> dict[str, float]:
    """Return a row for each label at or just below the one it wants: none stands on another."""
    rows: dict[str, float] = {}
    lowest = -LINE
    for name in sorted(wanted, key=lambda name: wanted[name]):
        rows[name] = lowest = max(wanted[name], lowest + LINE)
    return rows


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names that no other point beats in both, by rising first coordinate."""
    kept = [
        p
        for p, a in points.items()
        if not any(b[0] >= a[0] and b[1] >= a[1] and b != a for b in points.values())
    ]
    return sorted(kept, key=lambda p: points[p])
