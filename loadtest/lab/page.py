"""The lab's report as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from loadtest.lab import frontier, oracle, tables
from loadtest.lab.contenders import OURS
from loadtest.lab.grid import Cell
from loadtest.lab.tables import COLUMNS, Mean
from loadtest.lab.verdicts import Verdict

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:12px;margin:.5rem 0 1.5rem;display:block;overflow-x:auto}
th,td{border-bottom:1px solid #ddd;padding:.2rem .5rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}tr.ours{background:#fff7ed}
.fails{color:#b91c1c;font-weight:600}small{color:#777}"""


def html(cells: Sequence[Cell], verdicts: Sequence[Verdict], facts: Mapping[str, str]) -> str:
    """Return the whole page; `facts`: what the run was made of, in words."""
    return "".join(
        [
            "<!doctype html><html lang='en'><meta charset='utf-8'><title>bertier policy lab</title>",
            f"<style>{STYLE}</style><h1>Policy lab</h1>",
            "<p>" + "<br>".join(f"{escape(k)}: {escape(v)}" for k, v in facts.items()) + "</p>",
            *_loads(cells),
            "<h2>Classes, ours</h2>",
            *_classes(cells),
            "<h2>Claims</h2>",
            _verdicts(verdicts),
            "<h2>Every spot: joint attainment</h2>",
            _spots(cells),
            "</html>",
        ]
    )


def _loads(cells: Sequence[Cell]) -> Iterator[str]:
    for load, policies in tables.by_load(cells).items():
        yield f"<h2>Load {load:g}</h2>" + frontier.svg(policies, f"load {load:g} of capacity")
        head = "".join(f"<th>{escape(h)}</th>" for _, h, _ in COLUMNS)
        yield f"<table><tr><th>policy</th>{head}</tr>"
        for policy, means in sorted(policies.items(), key=lambda x: -x[1]["joint"].value):
            row = "".join(f"<td>{shown(means[n], digits)}</td>" for n, _, digits in COLUMNS)
            mark = " class='ours'" if policy == OURS else ""
            yield f"<tr{mark}><td>{escape(policy)}</td>{row}</tr>"
        yield "</table>"


def _classes(cells: Sequence[Cell]) -> Iterator[str]:
    for load, classes in tables.classes_of(cells, OURS).items():
        names = list(next(iter(classes.values())))
        head = "".join(f"<th>{escape(n)}</th>" for n in names)
        yield f"<table><tr><th>load {load:g}</th>{head}</tr>"
        for name, means in classes.items():
            row = "".join(f"<td>{shown(means[n], 3)}</td>" for n in names)
            yield f"<tr><td>{escape(name)}</td>{row}</tr>"
        yield "</table>"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = "".join(
        f"<tr><td>{escape(v.claim)}</td><td>{escape(v.spot)}</td>"
        f"<td{'' if v.holds else ' class=fails'}>{'holds' if v.holds else 'fails'}</td>"
        f"<td>{escape(v.details)}</td></tr>"
        for v in verdicts
    )
    return f"<table><tr><th>claim</th><th>spot</th><th></th><th></th></tr>{rows}</table>"


def _spots(cells: Sequence[Cell]) -> str:
    policies = list(dict.fromkeys(c.policy for c in cells))
    head = "".join(f"<th>{escape(p)}</th>" for p in policies)
    rows = "".join(
        f"<tr><td>{escape(f'{s.mix}, {s.arrival}, {s.load:g}')}</td>"
        + "".join(f"<td>{shown(s.mean(p, 'joint'), 3)}</td>" for p in policies)
        + "</tr>"
        for s in tables.spots(cells)
    )
    return (
        f"<table><tr><th>spot</th>{head}</tr>{rows}</table><p><small>{escape(_note())}</small></p>"
    )


def _note() -> str:
    return f"{oracle.NAME}: {' '.join((oracle.__doc__ or '').split())}"


def plain(mean: Mean, digits: int) -> str:
    """Return a mean without its interval; `-`: there is none."""
    return "-" if mean.value != mean.value else f"{mean.value:.{digits}f}"


def shown(mean: Mean, digits: int) -> str:
    """Return a mean with its interval, as the page writes it."""
    half = f" <small>&plusmn; {mean.half:.{digits}f}</small>" if mean.half == mean.half else ""
    return plain(mean, digits) + half
