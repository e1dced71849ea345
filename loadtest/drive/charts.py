"""Charts of a run as inline SVG, in the style of a study's page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from optimizer.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    N_COLOURS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    axes,
    path,
    svg,
)

Points = Sequence[tuple[float, float]]


def legend(names: Sequence[str]) -> str:
    """Return buttons that show and hide a series."""
    buttons = "".join(
        f'<li><button aria-pressed="true" data-of="{kind(i)}"><span class="dot {kind(i)}"></span>'
        f"{escape(name)}</button></li>"
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{buttons}</ul>'


def kind(index: int) -> str:
    return f"series-{index % N_COLOURS}"


def lines(series: Mapping[str, Points], x_label: str, y_label: str, *, log_x: bool = False) -> str:
    """Return one line a series; hover tells its name and its points."""
    points = [p for found in series.values() for p in found]
    if not points:
        return ""
    x = Axis.of(x_label, (p[0] for p in points), LEFT, WIDTH - RIGHT, log=log_x)
    y = Axis.of(y_label, [0.0, *(p[1] for p in points)], HEIGHT - BOTTOM, TOP)
    drawn = [
        f'<path class="line {kind(i)}" data-kind="{kind(i)}" data-tip="{_tip(name, found)}"'
        f' d="{path(found, x, y)}"/>'
        for i, (name, found) in enumerate(series.items())
        if found
    ]
    return svg(axes(x, y) + "".join(drawn), f"{y_label} over {x_label}")


def _tip(name: str, found: Points) -> str:
    shown = found[:: max(1, len(found) // 12)]
    return escape("\n".join([name, *(f"{a:.4g}: {b:.4g}" for a, b in shown)]))


def stacked(series: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """Return areas on top of each other; all series have the same x, in order."""
    filled = [found for found in series.values() if found]
    if not filled:
        return ""
    xs = [p[0] for p in filled[0]]
    tops = [0.0] * len(xs)
    layers = []
    for found in series.values():
        bottoms, tops = tops, [t + p[1] for t, p in zip(tops, found, strict=True)]
        layers.append((bottoms, tops))
    x = Axis.of(x_label, xs, LEFT, WIDTH - RIGHT)
    y = Axis(y_label, 0.0, max(tops) or 1.0, HEIGHT - BOTTOM, TOP)
    drawn = []
    for i, (name, (low, high)) in enumerate(zip(series, layers, strict=True)):
        around = [*zip(xs, high, strict=True), *reversed(list(zip(xs, low, strict=True)))]
        drawn.append(
            f'<path class="band share {kind(i)}" data-kind="{kind(i)}"'
            f' data-tip="{_tip(name, series[name])}" d="{path(around, x, y)}Z"/>'
        )
    return svg(axes(x, y) + "".join(drawn), f"{y_label} over {x_label}")
