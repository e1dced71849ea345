"""The picture of a soak: memory over time, with what happened in between, as one SVG file. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadtest.faults.soak import Event, Sample
from optimizer.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, axes, path

STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#333}.grid{stroke:#e6e6e6}.axis{stroke:#999}"
    ".gateway,.models{fill:none;stroke-width:1.5}.gateway{stroke:#c2410c}.models{stroke:#1d4ed8}"
    ".event{stroke:#bbb;stroke-dasharray:2 3}"
)
GAP = 6.0


def picture(samples: Sequence[Sample], events: Sequence[Event], title: str) -> str:
    """Return the memory of the gateway and of its model processes, each relative to its first sample."""
    series = {"gateway": [(s.at_s / 60, s.rss_bytes) for s in samples]}
    if any(s.models_bytes for s in samples):
        series["models"] = [(s.at_s / 60, s.models_bytes) for s in samples]
    shares = {name: _relative(found) for name, found in series.items()}
    points = [p for found in shares.values() for p in found]
    x = Axis.of("minutes", (p[0] for p in points), LEFT, WIDTH - RIGHT)
    y = Axis.of("memory, % of the first", (p[1] for p in points), HEIGHT - BOTTOM, TOP + 3 * GAP)
    drawn = [
        axes(x, y),
        *(_event(e, x) for e in events),
        *(f'<path class="{name}" d="{path(found, x, y)}"/>' for name, found in shares.items()),
        *(_label(name, found, i) for i, (name, found) in enumerate(series.items())),
    ]
    head = f'<text x="{LEFT}" y="{TOP}">{escape(title)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' width="{WIDTH}" height="{HEIGHT}"><style>{STYLE}</style>{head}{"".join(drawn)}</svg>\n'
    )


def _relative(found: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    first = found[0][1] or 1.0
    return [(at, 100 * value / first) for at, value in found]


def _event(event: Event, x: Axis) -> str:
    at = x.at(event.at_s / 60)
    return (
        f'<line class="event" x1="{at}" x2="{at}" y1="{TOP + 3 * GAP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{at}" y="{TOP + 2.5 * GAP}" text-anchor="middle">{escape(event.what)}</text>'
    )


def _label(name: str, found: Sequence[tuple[float, float]], nth: int) -> str:
    """Return the name of a line in its colour, with the memory that it begins and ends with."""
    colour = {"gateway": "#c2410c", "models": "#1d4ed8"}[name]
    text = f"{name}: {found[0][1] / 2**20:.0f} to {found[-1][1] / 2**20:.0f} MiB"
    y = HEIGHT - BOTTOM - GAP - 14 * nth
    return f'<text x="{LEFT + GAP}" y="{y}" style="fill:{colour}">{text}</text>'
