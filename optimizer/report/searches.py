"""Sections of the report: the trials of a search, and the trainings that followed."""

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
from optimizer.study.trials import rank_correlation


def knobs(inputs: Inputs) -> str:
    """Return parallel coordinates, and how much each knob explains."""
    if not inputs.trials:
        return no_trials(inputs)
    names = _varied(inputs.trials)
    labels = (*names, "p95 ms", "MB", "F1")
    threads = [
        Thread(t.number, kind_of(inputs, t), tip_of(t), _values(t, names)) for t in inputs.trials
    ]
    return (
        "<p>Each line is a candidate. Drag along an axis to select candidates, here and in the charts"
        " above; click the axis to reset it.</p>"
        f'{legend(threads)}<div class="wide">{charts.parallel(labels, threads)}</div>'
        f"{_importance(inputs.trials)}"
    )


def _varied(trials: Sequence[Trial]) -> list[str]:
    """Return the knobs with more than one value; an axis for the others would be empty of meaning."""
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
        "<h3>Importance of each knob</h3><p>Share of the variance among scored trials that the knob"
        " explains alone (eta squared). Samplers do not try values evenly: take it as a hint.</p>"
        + table(("knob", "of F1", "of p95", "of size"), rows)
    )


def infeasible(inputs: Inputs) -> str:
    """Return the infeasible trials and the reasons."""
    if not inputs.trials:
        return no_trials(inputs)
    found = [t for t in inputs.trials if not t.feasible]
    if not found:
        return "<p>None: every candidate is within all limits.</p>"
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
    """Return the hypervolume over trials."""
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
        f"<p>Share of a box that the feasible trials dominate: F1 from 0 to 1 on {plain(questions)}"
        f" questions, p95 up to {reference.p95_ms} ms, size up to {reference.size_bytes} bytes. At the"
        f" end {found[-1][1]:.4f}.</p>"
        f'<div class="wide">{line}</div>'
    )


def _stairs(found: Sequence[tuple[int, float]], last: int) -> list[tuple[float, float]]:
    """Return the points of a step line: a share holds until the trial that raises it."""
    steps: list[tuple[float, float]] = []
    for i, (number, share) in enumerate(found):
        if i:
            steps.append((number, found[i - 1][1]))
        steps.append((number, share))
    return [*steps, (last, found[-1][1])]


def ranks(inputs: Inputs) -> str:
    """Return how well the F1 of slices ranks candidates, compared with their F1 once finished."""
    variants = inputs.catalog.variants if inputs.catalog else ()
    pairs = analysis.finished(inputs.students, inputs.trials, variants)
    if not pairs:
        return (
            '<p class="none">No data yet: no scored trial has been finished and published'
            " (<code>bertier-optimize search</code>, then <code>run</code>).</p>"
        )
    before = [t.f1 for t, _ in pairs if t.f1 is not None]
    after = [v.quality[0].f1 for _, v in pairs]
    found = rank_correlation(before, after)
    said = (
        f"Spearman's rank correlation is {found:.3f}"
        if found is not None
        else "There are too few students for a rank correlation"
    )
    marks = [
        Mark(b, a, "published", f"{v.name}, trial {t.number}\n{b} -> {a:.4f}", t.number, 6)
        for (t, v), b, a in zip(pairs, before, after, strict=True)
    ]
    rows = [
        [v.name, t.number, b, f"{a:.4f}"] for (t, v), b, a in zip(pairs, before, after, strict=True)
    ]
    chart = charts.scatter(marks, "F1 as a slice, search split", "F1 finished, calibrate split")
    return f"<p>{said} (n = {len(pairs)}).</p>" + pair(
        chart, table(("variant", "trial", "F1 as a slice", "F1 finished"), rows)
    )


def curves(inputs: Inputs) -> str:
    """Return the loss curves, which show whether trainings converged."""
    found = {name: curve for name, curve in inputs.curves.items() if curve.points}
    if not found:
        file = inputs.run_dir / "teacher" / LOSSES
        return none("losses", file, "teacher") + "<p>Earlier versions did not record losses.</p>"
    drawn = [
        f"<div><h3>{escape(name)}</h3>"
        f'<p class="soft">{curve.points[-1][0]} of {curve.steps} steps,'
        f" loss {curve.points[-1][1]}</p>{charts.curves({name: curve.points}, 'step', 'loss')}</div>"
        for name, curve in found.items()
    ]
    return pair(*drawn)
