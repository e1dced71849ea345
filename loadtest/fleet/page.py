"""A study of fleets as one HTML page that opens from disk; charts and style are those of load tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from loadtest.drive import charts
from loadtest.drive.charts import Points
from loadtest.fleet import tables
from loadtest.fleet.study import Result, Study
from loadtest.fleet.tables import Rows
from optimizer.report.shell import document
from optimizer.report.tables import table

METHOD = """<p>Gateways, Tritons and hosts are simulated on a virtual clock. Policy, prediction, admission, the choice of
a Triton, breakers and retries are the code that serves. Every host has a gateway and a Triton; a gateway shares
nothing with others and sees their load only in the statistics of its Tritons. <em>Attained</em>: of the requests that
some plan could meet, the share answered in time by a plan certified for the floor asked for. Load 1: the most
expensive variant answers everything, and the host is full. The network takes no time; polls cost nothing.</p>"""


def html(study: Study, facts: Mapping[str, str]) -> str:
    """Return the whole page; `facts`: what was simulated, in words."""
    sections = {
        "method": ("Method", METHOD),
        "day": ("A day", _day(study)),
        "choice": ("How a gateway chooses a Triton", _choice(study)),
        "age": ("What stale views cost", _age(study)),
        "zone": ("A lost zone", _zone(study)),
        "rollout": ("A catalog rolls through the fleet", _rollout(study)),
        "cost": ("A million requests", _cost(study)),
    }
    about = "<br>".join(f"{escape(k)}: {escape(v)}" for k, v in facts.items())
    return document("bertier fleets", "Past one host", about, sections)


def _day(study: Study) -> str:
    series: dict[str, Points] = {}
    for r in study.of("day"):
        points = list(series.get(name := f"{r.run.kind.name}, {r.run.hosts:,} hosts", ()))
        series[name] = [*points, (r.run.piece.hour, r.found.attained)]
    text = """<p>Each hour's load is simulated for about the seconds in the last column, of which the first quarter is not
counted; the crowd of a fleet of more than ten hosts is simulated with ten.</p>"""
    return text + _chart(series, "hour of the day", "attained") + _table(tables.days(study))


def _choice(study: Study) -> str:
    text = """<p><em>Least of own</em> is what a gateway does: the Triton with the least work that this gateway has in
flight, ties in turn. <em>Two</em>: the less busy of two drawn at random. <em>Own</em>: what this gateway has there;
<em>polled</em>: that, and what others had before the last poll; <em>all</em>: everything that is there now, which no
gateway knows. A dash: the slice is too short for three polls.</p>"""
    return text + _table(tables.choices(study))


def _age(study: Study) -> str:
    series: dict[str, Points] = {}
    for r in study.of("age"):
        if "polled" in r.run.choice:
            series[str(r.run.choice)] = [
                *series.get(str(r.run.choice), ()),
                (r.run.poll_ms, r.found.attained),
            ]
    return _chart(series, "ms between polls, log", "attained", log_x=True) + _table(
        tables.ages(study)
    )


def _zone(study: Study) -> str:
    text = """<p>A third of the hosts is gone for ten seconds of the peak hour. <em>Refused</em>: connections
break and new ones are refused. <em>Silent</em>: nothing answers, so that calls hang until their deadline or until a
breaker opens, and a second passes before the balancer knows.</p>"""
    return text + _events(study.of("zone")) + _table(tables.zones(study))


def _rollout(study: Study) -> str:
    text = """<p>On each host a new catalog takes one core while its models load and while every gateway that asks this
Triton asks its golden inputs.</p>"""
    return text + _events(study.of("rollout")) + _table(tables.rollouts(study))


def _cost(study: Study) -> str:
    prices = ", ".join(f"{k.name}: USD {k.price_per_hour:g} an hour" for k in study.kinds)
    text = f"""<p>Assumed prices, {escape(prices)}. A day of the whole fleet, its idle hours included, is shared among
the classes by the compute spent on them. Requests that no plan can meet are sent on purpose, 5 % of all.</p>"""
    return text + _table(tables.costs(study))


def _events(results: Sequence[Result]) -> str:
    series = {
        f"{r.run.name}, {r.run.choice}" if len(results) > 2 else r.run.name: r.points
        for r in results
    }
    return _chart(series, "s", "attained, half a second each")


def _chart(series: Mapping[str, Points], x: str, y: str, *, log_x: bool = False) -> str:
    if not any(series.values()):
        return "<p>Not simulated for fleets this small.</p>"
    return charts.legend(list(series)) + charts.lines(series, x, y, log_x=log_x)


def _table(rows: Rows) -> str:
    if not rows.rows:
        return ""
    return f'<div class="scroll">{table(rows.heads, rows.rows)}</div>'
