"""Charts as inline SVG. Pure. page.js adds hover, legend and filters; without it the charts still show.

Every mark carries its raw values as data-x and data-y, so that what is drawn can be checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import floor, log10

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44
N_TICKS = 5
FEW_OCTAVES = 8  # below this ratio a logarithmic axis gets more ticks
MAX_VALUES = 8  # of a parallel axis, each at its own height; more make it a range
N_COLOURS = 8  # of page.css


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values and where it lies on the page."""

    label: str
    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    @classmethod
    def of(
        cls, label: str, values: Iterable[float], begin: float, end: float, *, log: bool = False
    ) -> Axis:
        """Return an axis that holds the values with some room."""
        found = list(values)
        low, high = min(found), max(found)
        if log:
            return cls(label, low / 1.15, high * 1.15, begin, end, log)
        room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        return cls(label, low - room, high + room, begin, end, log)

    def at(self, value: float) -> float:
        low, high, x = (log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.begin + (x - low) / (high - low) * (self.end - self.begin), 2)

    @property
    def ticks(self) -> list[float]:
        if self.log:
            powers = range(floor(log10(self.low)), floor(log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high > FEW_OCTAVES * self.low else (1, 1.5, 2, 3, 4, 5, 7)
            found = [m * 10.0**p for p in powers for m in steps]
        else:
            step = _nice((self.high - self.low) / N_TICKS)
            first = floor(self.low / step)
            found = [round(step * i, 10) for i in range(first, first + 3 * N_TICKS)]
        return [t for t in found if self.low <= t <= self.high]


def _nice(step: float) -> float:
    power = 10.0 ** floor(log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a chart."""

    x: float
    y: float
    kind: str  # its class: colour and legend
    tip: str  # text on hover, may have several lines
    trial: int | None = None  # marks of one trial are highlighted together
    radius: float = 4.0
    low: float | None = None  # where a whisker ends


def scatter(marks: Sequence[Mark], x_label: str, y_label: str, *, log_x: bool = False) -> str:
    """Return points over two axes."""
    x = Axis.of(x_label, (m.x for m in marks), LEFT, WIDTH - RIGHT, log=log_x)
    ys = [m.y for m in marks] + [m.low for m in marks if m.low is not None]
    y = Axis.of(y_label, ys, HEIGHT - BOTTOM, TOP)
    # Draw large circles first: they would cover small ones.
    drawn = "".join(_mark(m, x, y) for m in sorted(marks, key=lambda m: -m.radius))
    return svg(axes(x, y) + drawn, f"{y_label} over {x_label}")


def _mark(mark: Mark, x: Axis, y: Axis) -> str:
    at_x, at_y = x.at(mark.x), y.at(mark.y)
    whisker = ""
    if mark.low is not None:
        whisker = (
            f'<line class="whisker" x1="{at_x}" x2="{at_x}" y1="{at_y}" y2="{y.at(mark.low)}"/>'
        )
    circle = f'<circle cx="{at_x}" cy="{at_y}" r="{mark.radius:.1f}"/>'
    return f"<g {_data(mark.kind, mark.tip, mark.trial, mark.x, mark.y)}>{whisker}{circle}</g>"


def _data(kind: str, tip: str, trial: int | None, x: float, y: float) -> str:
    of_trial = "" if trial is None else f' data-trial="{trial}"'
    kind, tip = escape(kind), escape(tip)
    return (
        f'class="mark {kind}" data-kind="{kind}" data-tip="{tip}" data-x="{x!r}" data-y="{y!r}"'
        f'{of_trial} tabindex="0"'
    )


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Return one line a series, with its name at the end."""
    points = [p for found in series.values() for p in found]
    x = Axis.of(x_label, [0, *(p[0] for p in points)], LEFT, WIDTH - RIGHT)
    y = Axis.of(y_label, (p[1] for p in points), HEIGHT - BOTTOM, TOP)
    drawn = []
    for i, (name, found) in enumerate(series.items()):
        kind = f"series-{i % N_COLOURS}"
        drawn.append(f'<path class="line {kind}" d="{path(found, x, y)}"/>')
        drawn += [
            _mark(Mark(a, b, kind, f"{name}\n{x_label} {a:g}\n{y_label} {b:.4g}", None, 2.5), x, y)
            for a, b in found
        ]
    return svg(axes(x, y) + "".join(drawn), f"{y_label} over {x_label}")


Band = Sequence[tuple[float, float, float, float]]  # x, low, middle, high


def bands(series: Mapping[str, Band], x_label: str, y_label: str) -> str:
    """Return one line a series through its middle, over its range; each value holds until the next."""
    points = [p for found in series.values() for p in found]
    x = Axis.of(x_label, [0, *(p[0] for p in points)], LEFT, WIDTH - RIGHT)
    y = Axis.of(y_label, [v for p in points for v in p[1:]], HEIGHT - BOTTOM, TOP)
    drawn = []
    for i, (name, found) in enumerate(series.items()):
        kind = f"series-{i % N_COLOURS}"
        low, middle, high = ([(p[0], p[j]) for p in found] for j in (1, 2, 3))
        around = path([*_stairs(high), *reversed(_stairs(low))], x, y)
        drawn.append(f'<path class="band {kind}" data-kind="{kind}" d="{around}Z"/>')
        line = path(_stairs(middle), x, y)
        drawn.append(f'<path class="line {kind}" data-kind="{kind}" d="{line}"/>')
        for at, least, mid, most in found:
            tip = f"{name}\n{x_label} {at:.1f}\n{mid:.4f} ({least:.4f} to {most:.4f})"
            drawn.append(_mark(Mark(at, mid, kind, tip, None, 2.0), x, y))
    return svg(axes(x, y) + "".join(drawn), f"{y_label} over {x_label}")


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    steps = list(points[:1])
    for (_, before), (x, now) in pairwise(points):
        steps += [(x, before), (x, now)]
    return steps


def path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{x.at(a)} {y.at(b)}" for a, b in points)


@dataclass(frozen=True, slots=True)
class Thread:
    """A trial across the axes of a parallel plot; None: not known."""

    trial: int
    kind: str
    tip: str
    values: tuple[float | str | None, ...]


def parallel(labels: Sequence[str], threads: Sequence[Thread]) -> str:
    """Return one line a trial over one axis a label; page.js lets a reader drag on an axis."""
    step = (WIDTH - 2 * LEFT) / (len(labels) - 1)
    axes = [_parallel_axis(label, [t.values[i] for t in threads]) for i, label in enumerate(labels)]
    drawn = []
    for thread in threads:
        places = [
            None if value is None else (LEFT + i * step, _place(axes[i], value))
            for i, value in enumerate(thread.values)
        ]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in filter(None, places))
        at = ",".join("" if place is None else f"{place[1]:.1f}" for place in places)
        kind, tip = escape(thread.kind), escape(thread.tip)
        drawn.append(
            f'<path class="thread {kind}" data-kind="{kind}" data-trial="{thread.trial}"'
            f' data-tip="{tip}" data-at="{at}" d="{path}"/>'
        )
    bars = [_bar(label, axes[i], i, LEFT + i * step) for i, label in enumerate(labels)]
    return svg("".join(drawn) + "".join(bars), "trials over knobs and objectives")


Places = Axis | dict[str, float]  # a range, or few values, each at its own height


def _parallel_axis(label: str, values: Sequence[float | str | None]) -> Places:
    known = [v for v in values if v is not None]
    numbers = [float(v) for v in known if not isinstance(v, str)]
    if not known or len(set(numbers)) > MAX_VALUES:
        return Axis.of(label, numbers or [0.0], HEIGHT - BOTTOM, TOP)
    words = sorted({v for v in known if isinstance(v, str)})
    few = [*words, *(_name(v) for v in sorted(set(numbers), reverse=True))]
    gap = (HEIGHT - BOTTOM - TOP) / (len(few) + 1)
    return {name: TOP + gap * (i + 1) for i, name in enumerate(few)}


def _name(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _place(axis: Places, value: float | str) -> float:
    return axis[_name(value)] if isinstance(axis, dict) else axis.at(float(value))


def _bar(label: str, axis: Places, index: int, x: float) -> str:
    ticks = axis if isinstance(axis, dict) else {f"{t:g}": axis.at(t) for t in axis.ticks}
    named = "".join(
        f'<text x="{x + 5:.1f}" y="{y + 4:.1f}">{escape(name)}</text>' for name, y in ticks.items()
    )
    top, bottom = TOP, HEIGHT - BOTTOM
    return (
        f'<g class="axis" data-axis="{index}" data-x="{x:.1f}">'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>{named}'
        f'<text class="label" x="{x:.1f}" y="{bottom + 22}" text-anchor="middle">{escape(label)}'
        f'</text><rect class="brush" x="{x - 9:.1f}" y="{top}" width="18" height="0"/>'
        f'<rect class="grip" x="{x - 14:.1f}" y="{top}" width="28" height="{bottom - top}"/></g>'
    )


def axes(x: Axis, y: Axis) -> str:
    bottom, left = HEIGHT - BOTTOM, LEFT
    lines = [
        f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y.at(t)}" y2="{y.at(t)}"/>'
        f'<text x="{left - 6}" y="{y.at(t) + 4}" text-anchor="end">{t:g}</text>'
        for t in y.ticks
    ]
    lines += [
        f'<line class="grid" x1="{x.at(t)}" x2="{x.at(t)}" y1="{TOP}" y2="{bottom}"/>'
        f'<text x="{x.at(t)}" y="{bottom + 16}" text-anchor="middle">{t:g}</text>'
        for t in x.ticks
    ]
    middle = (TOP + bottom) / 2
    labels = (
        f'<text class="label" x="{(left + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}"'
        f' text-anchor="middle">{escape(x.label)}</text>'
        f'<text class="label" x="14" y="{middle}" text-anchor="middle"'
        f' transform="rotate(-90 14 {middle})">{escape(y.label)}</text>'
    )
    return f'<g class="axis">{"".join(lines)}{labels}</g>'


def svg(inside: str, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{inside}</svg>"
    )
