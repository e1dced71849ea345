"""Draws what the variants of a catalog answer in which time, beside always answering "no answer".

`python -m gateway.docs.pareto model_repository docs/pareto.svg` writes the picture; nothing at run time reads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import log10, sqrt
from pathlib import Path

from gateway.catalog import store
from gateway.catalog.schema import Quality, Variant
from gateway.catalog.store import Catalog

DATA = "squad_v2_dev_a"  # the test half of SQuAD 2.0's dev set: no stage learned or chose from it
TOKENS = 128  # of the median latency
WIDTH, HEIGHT = 760, 400  # px
LEFT, RIGHT, TOP, BOTTOM = 64, 736, 44, 344  # px, of the plot
LOW_MS, HIGH_MS, TICKS_MS = 1.0, 200.0, (1, 2, 5, 10, 20, 50, 100, 200)
LOW_F1, HIGH_F1, TICKS_F1 = 0.4, 0.95, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PX_PER_ROOT_MB = 1.8  # a circle's area is the file's size
STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:12px;fill:#1f2328}.d{font-size:11px;fill:#59636e}"
    ".grid{stroke:#d1d9e0}.forced{fill:#0969da;fill-opacity:.75}.all{fill:#fff;stroke:#0969da;stroke-width:2}"
    ".constant{stroke:#cf222e;stroke-width:1.5;stroke-dasharray:6 4}.red{fill:#cf222e}.bg{fill:#fff}"
)


@dataclass(frozen=True, slots=True)
class Point:
    """A variant in the picture."""

    size_mb: float
    p50_ms: float
    f1: float
    forced_f1: float


def points(catalog: Catalog) -> tuple[Point, ...]:
    """Return the variants, the largest first. Raises: ValueError where the test data did not score one."""
    found = [_point(variant) for variant in catalog.variants]
    return tuple(sorted(found, key=lambda point: -point.size_mb))


def _point(variant: Variant) -> Point:
    quality = _quality(variant)
    if quality.forced_f1 is None:
        raise ValueError(f"{variant.name}: {DATA} holds no question that has an answer")
    p50_ms = variant.profile.cell(TOKENS).p50_ms
    return Point(variant.size_bytes / 1e6, p50_ms, quality.f1, quality.forced_f1)


def _quality(variant: Variant) -> Quality:
    for quality in variant.quality:
        if quality.data == DATA:
            return quality
    raise ValueError(f"{variant.name}: the catalog has no scores on {DATA}")


def constant_f1(catalog: Catalog) -> float:
    """Return what always answering "no answer" scores: the share of unanswerable questions.

    F1 is the mean of the parts' F1, weighted by their shares, so one variant's three figures give the share.
    """
    q = _quality(catalog.variants[0])
    if q.has_answer_f1 is None or q.no_answer_f1 is None:
        raise ValueError(f"{DATA} needs questions with and without an answer")
    return (q.f1 - q.has_answer_f1) / (q.no_answer_f1 - q.has_answer_f1)


def picture(catalog: Catalog) -> str:
    """Return F1 over latency as an SVG."""
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    said = "F1 of the published variants over their latency"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{said}">',
            f'<style>{STYLE}</style><rect class="bg" width="100%" height="100%"/>',
            *_axes(),
            *_constant(constant_f1(catalog)),
            *_series(points(catalog), "all", lambda point: point.f1),
            *_series(points(catalog), "forced", lambda point: point.forced_f1),
            *_legend(),
            "</svg>\n",
        ]
    )


def _axes() -> Iterator[str]:
    for ms in TICKS_MS:
        yield _line("grid", _x(ms), TOP, _x(ms), BOTTOM)
        yield _text(_x(ms), BOTTOM + 18, f"{ms}", anchor="middle")
    for f1 in TICKS_F1:
        yield _line("grid", LEFT, _y(f1), RIGHT, _y(f1))
        yield _text(LEFT - 8, _y(f1) + 4, f"{100 * f1:.0f}", anchor="end")
    middle = (LEFT + RIGHT) / 2
    yield _text(middle, BOTTOM + 40, f"p50, ms, {TOKENS} tokens, one core", anchor="middle")
    yield _text(LEFT - 40, TOP - 14, "F1, %")


def _constant(f1: float) -> Iterator[str]:
    yield _line("constant", LEFT, _y(f1), RIGHT, _y(f1))
    said = f'always "no answer": F1 {100 * f1:.1f}'
    yield _text(RIGHT - 4, _y(f1) + 16, said, kind="red", anchor="end")


def _series(front: Sequence[Point], kind: str, f1: Callable[[Point], float]) -> Iterator[str]:
    for point in front:
        radius = PX_PER_ROOT_MB * sqrt(point.size_mb)
        x, y = _x(point.p50_ms), _y(f1(point))
        yield f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
        if kind == "forced":
            yield _text(x, y - radius - 5, f"{point.size_mb:.1f} MB", kind="d", anchor="middle")


def _legend() -> Iterator[str]:
    yield f'<circle class="forced" cx="{LEFT + 100}" cy="{TOP - 18}" r="6"/>'
    yield _text(LEFT + 112, TOP - 14, "forced F1: answerable questions, always answered")
    yield f'<circle class="all" cx="{LEFT + 424}" cy="{TOP - 18}" r="6"/>'
    yield _text(LEFT + 436, TOP - 14, "F1: all questions")


def _x(ms: float) -> float:
    return LEFT + (RIGHT - LEFT) * log10(ms / LOW_MS) / log10(HIGH_MS / LOW_MS)


def _y(f1: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * (f1 - LOW_F1) / (HIGH_F1 - LOW_F1)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, *, kind: str = "", anchor: str = "start") -> str:
    drawn = f' class="{kind}"' if kind else ""
    return f'<text{drawn} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("model_repository", type=Path)
    flags.add_argument("svg", type=Path)
    given = flags.parse_args()
    given.svg.write_text(picture(store.read(given.model_repository)))
