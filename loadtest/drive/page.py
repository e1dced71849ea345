"""A run as one HTML page that opens from disk; charts and style are a study's (optimizer.page)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import isfinite

from loadtest.drive import charts
from loadtest.drive.attainment import Attainment, Summary
from loadtest.drive.charts import Points
from loadtest.drive.open_loop import Run
from loadtest.drive.outcomes import Outcome, Result
from optimizer.report.shell import document
from optimizer.report.tables import table

WINDOWS = 40  # of a run, at most
MIN_WINDOW_S = 1.0
CDF_POINTS = 200
COLUMNS: Sequence[tuple[str, str, int]] = (
    ("in_time", "in time", 3),
    ("floor_met", "floor met", 2),
    ("joint", "joint", 3),
    ("joint_feasible", "joint, feasible", 3),
    ("strict_met", "strict met", 3),
    ("by_certificate", "by certificate", 3),
    ("f1", "F1", 3),
    ("f1_error", "+-", 3),
    ("floor", "floor", 3),
    ("shed", "shed", 3),
    ("refused", "refused", 3),
    ("expired", "expired", 3),
    ("failed", "failed", 3),
    ("p50_ms", "p50 ms", 1),
    ("p95_ms", "p95 ms", 1),
    ("p99_ms", "p99 ms", 1),
)

Measure = Callable[[Sequence[Result]], float]


def html(run: Run, summary: Summary, facts: Mapping[str, str], complaint: str) -> str:
    """Return the whole page; `complaint`: why the run is not valid, empty: it is."""
    window_s = max(MIN_WINDOW_S, _length_s(run) / WINDOWS)
    sections = {
        "classes": ("SLO attainment, by class", _classes(summary)),
        "latency": ("Latency", _cdf(run, summary)),
        "attainment": (
            "Attainment over time",
            _by_class(run, summary, window_s, "in time", _in_time),
        ),
        "plans": ("Plans", _plans(run, summary, window_s)),
        "f1": ("F1 of the answers over time", _by_class(run, summary, window_s, "F1", _f1)),
        "sheds": ("What was not answered", _sheds(run, summary, window_s)),
        "client": ("The client", _client(run, window_s)),
    }
    about = "<br>".join(f"{escape(k)}: {escape(v)}" for k, v in facts.items())
    warning = f'<p class="warn">Not valid: {escape(complaint)}.</p>' if complaint else ""
    return document("bertier load test", "Load test", about, sections, warning)


def shown(value: float, digits: int) -> str:
    """Return a number as tables have it; `-`: there is none."""
    return f"{value:.{digits}f}" if isfinite(value) else "-"


def row(found: Attainment) -> list[str]:
    """Return the cells of COLUMNS."""
    return [shown(getattr(found, name), digits) for name, _, digits in COLUMNS]


def _classes(summary: Summary) -> str:
    rows = [
        [name, found.n, *row(found)]
        for name, found in [*summary.classes.items(), ("all", summary.every)]
    ]
    heads = ["class", "n", *(head for _, head, _ in COLUMNS)]
    return (
        "<p>Shares are of the class's requests. Floor met: the mean F1 of its answers is at least"
        " the floor asked for (of all: the share of requests of such classes). Joint: in time, and of"
        " such a class; what was not answered is a miss. By certificate: in time, by a plan whose"
        f' certified floor is what was asked for.</p><div class="scroll">{table(heads, rows)}</div>'
    )


def _cdf(run: Run, summary: Summary) -> str:
    series = {}
    for name in summary.classes:
        latencies = sorted(r.latency_ms for r in _of(run, name) if r.answered)
        n = sum(1 for _ in _of(run, name))
        ranks = sorted(
            {round(i * (len(latencies) - 1) / CDF_POINTS) for i in range(CDF_POINTS + 1)}
        )
        series[name] = [(latencies[i], (i + 1) / n) for i in ranks] if latencies else []
    return (
        "<p>Share of each class's requests answered within so many ms of when they were due. A line"
        " that ends below 1 was not answered in full.</p>"
        + charts.legend(list(series))
        + charts.lines(series, "ms from when it was due, log", "share", log_x=True)
    )


def _by_class(run: Run, summary: Summary, window_s: float, label: str, measure: Measure) -> str:
    series = {name: _over_time(_of(run, name), window_s, measure) for name in summary.classes}
    return charts.legend(list(series)) + charts.lines(
        series, "s", f"{label}, {window_s:.3g} s each"
    )


def _plans(run: Run, summary: Summary, window_s: float) -> str:
    parts = _windows(run.results, window_s)
    series = {
        plan: [
            (at, _mean([r.reply.plan == plan for r in found if r.answered])) for at, found in parts
        ]
        for plan in summary.plans
    }
    rows = [
        [plan, n, shown(_f1([r for r in run.results if r.reply.plan == plan]), 3)]
        for plan, n in summary.plans.items()
    ]
    heads = ["plan", "answers", "F1"]
    stacked = charts.stacked(series, "s", "share of the answers")
    return charts.legend(list(series)) + stacked + table(heads, rows)


def _sheds(run: Run, summary: Summary, window_s: float) -> str:
    parts = _windows(run.results, window_s)
    series: dict[str, Points] = {"sent": [(at, len(found) / window_s) for at, found in parts]}
    for outcome in Outcome:
        if str(outcome) in summary.outcomes:
            series[str(outcome)] = [
                (at, sum(r.reply.outcome is outcome for r in found) / window_s)
                for at, found in parts
            ]
    rows = list(summary.failures.items())
    failed = table(["failure", "times"], rows) if rows else "<p>Nothing failed.</p>"
    return charts.legend(list(series)) + charts.lines(series, "s", "requests/s") + failed


def _client(run: Run, window_s: float) -> str:
    client = run.client
    series = {
        "worst of the window": _over_time(
            run.results, window_s, lambda found: max(r.lag_ms for r in found)
        )
    }
    return (
        f"<p>Requests were sent {client.lag_p50_ms:.2f} ms late (median), {client.lag_p99_ms:.2f}"
        f" (p99), {client.lag_max_ms:.2f} (worst); the client took {client.cpu_share:.0%} of a core."
        " Latency counts from when a request was due, so that being late hides nothing.</p>"
        + charts.lines(series, "s", "ms sent late")
    )


def _of(run: Run, slo_class: str) -> Sequence[Result]:
    return [r for r in run.results if r.request.slo.slo_class == slo_class]


def _length_s(run: Run) -> float:
    return run.results[-1].request.at_ms / 1e3 if run.results else 0.0


def _windows(results: Sequence[Result], window_s: float) -> list[tuple[float, list[Result]]]:
    """Return the requests of each window by when they were due; windows without any are left out."""
    parts: dict[int, list[Result]] = {}
    for result in results:
        parts.setdefault(int(result.request.at_ms / 1e3 / window_s), []).append(result)
    return [((i + 0.5) * window_s, found) for i, found in sorted(parts.items())]


def _over_time(results: Sequence[Result], window_s: float, measure: Measure) -> Points:
    values = [(at, measure(found)) for at, found in _windows(results, window_s)]
    return [(at, value) for at, value in values if isfinite(value)]


def _in_time(results: Sequence[Result]) -> float:
    return _mean([r.in_time for r in results])


def _f1(results: Sequence[Result]) -> float:
    answered = [r.f1 for r in results if r.answered]
    return _mean(answered) if answered else float("nan")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
