"""What a search tried, and what training made of it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from optimizer.report import analysis, charts
from optimizer.report.analysis import Trial
from optimizer.report.charts import Mark, Thread
from optimizer.report.inputs import Inputs
from optimizer.report.overview import kind_of, legend, tip_of
from optimizer.report.tables import megabytes, no_trials, none, pair, plain, table
from optimizer.study.stages import LOSSES


def knobs(inputs: Inputs) -> str:
    """Parallel coordinates, and how much each knob explains."""
    if not inputs.trials:
        return no_trials(inputs)
    names = _varied(inputs.trials)
    labels = (*names, "p95 ms", "MB", "F1")
    threads = [
        Thread(t.number, kind_of(inputs, t), tip_of(t), _values(t, names)) for t in inputs.trials
    ]
    return (
        "<p>A line is a candidate. Drag along an axis to keep those that pass there, here and in the"
        " charts above; click the axis to let all through.</p>"
        f'{legend(threads)}<div class="wide">{charts.parallel(labels, threads)}</div>'
        f"{_importance(inputs.trials)}"
    )


def _varied(trials: Sequence[Trial]) -> list[str]:
    """Return the knobs of which more than one value was tried: an axis for others would say nothing."""
    values = {name: {knob(t.candidate) for t in trials} for name, knob in analysis.KNOBS.items()}
    return [name for name, found in values.items() if len(found) > 1]


def _values(trial: Trial, names: Sequence[str]) -> tuple[float | str | None, ...]:
    knobs_ = (analysis.KNOBS[name](trial.candidate) for name in names)
    size_mb = None if trial.size_bytes is None else trial.size_bytes / 1e6
    return *knobs_, trial.p95_ms, size_mb, trial.f1


def _importance(trials: Sequence[Trial]) -> str:
    found = analysis.importance(trials)
    varied = _varied(trials)
    if not found or not varied:
        return ""
    rows = [[name, *(f"{share:.0%}" for share in found[name])] for name in varied]
    return (
        "<h3>What a knob alone explains</h3><p>Share of the variance among the trials with an F1"
        " (eta squared). A sampler does not try values evenly, so read it as a hint.</p>"
        + table(("knob", "of F1", "of p95", "of size"), rows)
    )


def infeasible(inputs: Inputs) -> str:
    """Which trials were of no use, and why."""
    if not inputs.trials:
        return no_trials(inputs)
    found = [t for t in inputs.trials if not t.feasible]
    if not found:
        return "<p>None: every candidate kept every limit.</p>"
    rows = [
        [
            *(t.number, t.candidate.label, plain(t.p95_ms), megabytes(t.size_bytes)),
            *(plain(t.f1), plain(t.rung), t.reason or "-"),
        ]
        for t in found
    ]
    return f"<p>{len(found)} of {len(inputs.trials)} trials.</p>" + table(
        ("trial", "candidate", "p95 ms", "MB", "F1", "rung", "reason"), rows
    )


def volume(inputs: Inputs) -> str:
    """How fast the search got how far."""
    if not inputs.trials:
        return no_trials(inputs)
    reference = inputs.reference
    found = list(analysis.hypervolumes(inputs.trials, reference)) if reference else []
    if not reference or not found:
        return '<p class="none">No data yet: no feasible trial has an F1.</p>'
    questions = analysis.top_rung(inputs.trials)[0].n_questions
    last = max(t.number for t in inputs.trials)
    line = charts.curves(
        {"this search": _stairs(found, last)}, "trial", "share of the box dominated"
    )
    return (
        f"<p>Share of the box from F1 0 to 1, and up to a p95 of {reference.p95_ms} ms and"
        f" {reference.size_bytes} bytes, that feasible trials with"
        f" an F1 on {plain(questions)} questions dominate. At the end {found[-1][1]:.4f}.</p>"
        f'<div class="wide">{line}</div>'
    )


def _stairs(found: Sequence[tuple[int, float]], last: int) -> list[tuple[float, float]]:
    """A share holds until the trial that raises it."""
    steps: list[tuple[float, float]] = []
    for i, (number, share) in enumerate(found):
        if i:
            steps.append((number, found[i - 1][1]))
        steps.append((number, share))
    return [*steps, (last, found[-1][1])]


def ranks(inputs: Inputs) -> str:
    """Does the supernet's F1 put candidates in the order that training confirms?"""
    variants = inputs.catalog.variants if inputs.catalog else ()
    pairs = analysis.finished(inputs.students, inputs.trials, variants)
    if not pairs:
        return (
            '<p class="none">No data yet: needs trials with an F1 whose candidates were finished'
            " and published (<code>bertier-optimize search</code>, then <code>run</code>).</p>"
        )
    before = [t.f1 for t, _ in pairs if t.f1 is not None]
    after = [v.quality[0].f1 for _, v in pairs]
    found = analysis.rank_correlation(before, after)
    said = f"Spearman's rank correlation {found:.3f}" if found is not None else "Too few to rank"
    marks = [
        Mark(b, a, "published", f"{v.name}, trial {t.number}\n{b} -> {a:.4f}", t.number, 6)
        for (t, v), b, a in zip(pairs, before, after, strict=True)
    ]
    rows = [
        [v.name, t.number, b, f"{a:.4f}"] for (t, v), b, a in zip(pairs, before, after, strict=True)
    ]
    chart = charts.scatter(marks, "F1 of the slice, search split", "F1 finished, calibrate split")
    return f"<p>{said} over {len(pairs)}.</p>" + pair(
        chart, table(("variant", "trial", "F1 before", "F1 after"), rows)
    )


def curves(inputs: Inputs) -> str:
    """Whether trainings had converged."""
    found = {name: curve for name, curve in inputs.curves.items() if curve.points}
    if not found:
        file = inputs.run_dir / "teacher" / LOSSES
        return none("losses", file, "teacher") + "<p>Trainings of earlier versions left none.</p>"
    drawn = [
        f"<div><h3>{escape(name)}</h3>"
        f'<p class="soft">{curve.points[-1][0]} of {curve.steps} steps,'
        f" loss {curve.points[-1][1]}</p>{charts.curves({name: curve.points}, 'step', 'loss')}</div>"
        for name, curve in found.items()
    ]
    return pair(*drawn)
