"""The results of a study as rows, for the terminal and the page alike. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from loadtest.fleet.choices import Choice
from loadtest.fleet.engine import ZoneLost
from loadtest.fleet.measures import recovered_s, total
from loadtest.fleet.study import Result, Study


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: its title, heads and cells."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def all_of(study: Study) -> list[Rows]:
    """Return every table that has rows."""
    found = [days(study), choices(study), ages(study), zones(study), rollouts(study), costs(study)]
    return [table for table in found if table.rows]


def days(study: Study) -> Rows:
    """One row a fleet."""
    rows = []
    for kind in study.kinds:
        for hosts in study.options.hosts:
            classes = study.day(kind, hosts)
            everything = total(classes.values())
            hours = [r for r in study.of("day") if (r.run.kind, r.run.hosts) == (kind, hosts)]
            peak = max(hours, key=lambda r: r.run.piece.load)
            small = min(hosts, 10)
            crowd = [r for r in study.of("crowd") if (r.run.kind, r.run.hosts) == (kind, small)]
            rows.append(
                [
                    kind.name,
                    f"{hosts:,}",
                    f"{everything.n / 1e6:,.1f}",
                    share(everything.share),
                    share(peak.found.attained),
                    ms(peak.found.p99_ms),
                    share(crowd[0].found.attained) if crowd else "-",
                    f"{peak.run.piece.seconds:.1f}",
                ]
            )
    heads = (
        *(
            "kind",
            "hosts",
            "million requests a day",
            "attained",
            "at the peak hour",
            "p99 ms there",
        ),
        *("in a crowd", "s of the slice"),
    )
    return Rows("A day", heads, rows)


def choices(study: Study) -> Rows:
    """One row a fleet and load, one column a way to choose: attainment and p99."""
    found = [*study.of("choice"), *study.of("all")]
    keys = dict.fromkeys(
        (r.run.kind.name, r.run.hosts, r.run.layout.tritons_each, r.run.piece.load) for r in found
    )
    rows = []
    for key in keys:
        by_choice = {
            r.run.choice: r.found
            for r in found
            if (r.run.kind.name, r.run.hosts, r.run.layout.tritons_each, r.run.piece.load) == key
        }
        kind, hosts, each, load = key
        cells = [
            f"{share(by_choice[c].attained)} / {ms(by_choice[c].p99_ms)}" if c in by_choice else "-"
            for c in Choice
        ]
        rows.append([kind, f"{hosts:,}", f"{each:,}", f"{load:g}", *cells])
    heads = ("kind", "hosts", "Tritons a gateway", "load", *(str(c) for c in Choice))
    return Rows("Choosing a Triton: attained / p99 ms", heads, rows)


def ages(study: Study) -> Rows:
    """One row a view."""
    rows = [
        [
            str(r.run.choice),
            f"{r.run.poll_ms:g}" if "polled" in r.run.choice else "-",
            share(r.found.attained),
            ms(r.found.p50_ms),
            ms(r.found.p99_ms),
        ]
        for r in study.of("age")
    ]
    return Rows(
        "How old a view may be", ("choice", "polled every ms", "attained", "p50 ms", "p99 ms"), rows
    )


def zones(study: Study) -> Rows:
    """One row a way to choose and a way to be gone."""
    rows = []
    for r in study.of("zone"):
        (event,) = r.run.events
        assert isinstance(event, ZoneLost)
        lost_s, back_s = event.at_ms / 1e3, event.back_ms / 1e3
        before = _mean(r, 1.0, lost_s)
        rows.append(
            [
                r.run.name,
                str(r.run.choice),
                share(before),
                share(_least(r, lost_s, back_s)),
                share(_mean(r, back_s - 4.0, back_s)),
                share(_mean(r, r.run.piece.seconds - 3.0, r.run.piece.seconds)),
                _seconds(recovered_s(r.points, back_s, before)),
                share(r.found.lost),
            ]
        )
    heads = (
        *("zone is", "choice", "before", "worst half second", "last 4 s without it"),
        *("last 3 s with it", "recovered after s", "without any answer"),
    )
    return Rows("A lost zone", heads, rows)


def rollouts(study: Study) -> Rows:
    """One row a way to roll."""
    rows = []
    for r in study.of("rollout"):
        (event,) = r.run.events
        begin_s, end_s = event.at_ms / 1e3, r.run.piece.seconds
        rows.append(
            [
                r.run.name,
                share(_mean(r, 1.0, begin_s)),
                share(_mean(r, begin_s, end_s)),
                share(_least(r, begin_s, end_s)),
                f"{end_s - begin_s:.0f}",
            ]
        )
    heads = ("new catalog", "attained before", "while it rolls", "worst half second", "s")
    return Rows("A catalog rolls through the fleet", heads, rows)


def costs(study: Study) -> Rows:
    """One row a class of each fleet."""
    rows = []
    for kind in study.kinds:
        for hosts in study.options.hosts:
            for name, cost in study.costs(kind, hosts).items():
                rows.append(
                    [
                        kind.name,
                        f"{hosts:,}",
                        name,
                        f"{cost.requests / 1e6:,.2f}",
                        share(cost.share),
                        money(cost.per_million),
                        money(cost.per_million_met),
                    ]
                )
    heads = (
        *("kind", "hosts", "class", "million requests a day", "of the compute"),
        *("USD a million", "USD a million that met their SLO"),
    )
    return Rows("Cost", heads, rows)


def share(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else "-"


def ms(value: float) -> str:
    return f"{value:.0f}" if isfinite(value) else "-"


def money(value: float) -> str:
    return f"{value:.2f}" if isfinite(value) else "-"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if isfinite(value) else "not within the slice"


def _within(result: Result, begin_s: float, end_s: float) -> Iterator[float]:
    return (value for at, value in result.points if begin_s <= at < end_s)


def _mean(result: Result, begin_s: float, end_s: float) -> float:
    values = list(_within(result, begin_s, end_s))
    return sum(values) / len(values) if values else nan


def _least(result: Result, begin_s: float, end_s: float) -> float:
    return min(_within(result, begin_s, end_s), default=nan)
