"""What search and distillation are worth against what one would do without, and what a candidate cost."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import median

from optimizer.benchmarks import results
from optimizer.benchmarks.results import QUIET, Contest, Interval, Labels, Pair, Reference
from optimizer.report import analysis, charts
from optimizer.report.analysis import Economy
from optimizer.report.inputs import Inputs
from optimizer.report.tables import no_trials, none, plain, share, table

ELASTIC, STUDENTS = "elastic", "students/"
TWIN = ".labels"  # in the name of a student that labels alone trained


def searches(inputs: Inputs) -> str:
    """Hypervolume over minutes, one line a method, and the paired differences."""
    contest = inputs.contest
    if contest is None:
        file = inputs.run_dir / results.SEARCHES
        return none("searches of the same budget", file, "compare searches")
    lines = {m: analysis.progress(contest.of(m)) for m in contest.methods}
    drawn = {
        name: [(m.minutes, m.low, m.middle, m.high) for m in moments]
        for name, moments in lines.items()
        if moments
    }
    chart = charts.bands(drawn, "minutes", "share of the box dominated") if drawn else ""
    return (
        f"<p>{_scale(contest)}</p>{_names(list(drawn))}"
        f'<div class="wide">{chart}</div>{_runs(contest)}{_against(contest)}'
    )


def _scale(contest: Contest) -> str:
    cap = contest.minutes_cap
    return (
        "A line is the median over the seeds of the share of the box that a run's front dominates;"
        " around it their range. Every run is charged what its evaluations took when they were made,"
        f" and its sampler's time; {contest.elastic_minutes:.1f} minutes are the elastic student's"
        f" training, in every run that slices it. The box reaches from F1 0 to 1, to a p95 of"
        f" {contest.p95_ms} ms and {contest.size_bytes} bytes, what the largest candidate costs; F1 on"
        f" {contest.questions} questions. The method <em>trainings</em> trains each candidate by"
        f" itself from a truncated teacher, for {contest.training_epochs:g} epochs, in the minutes"
        f" that {escape(contest.first)} took with that seed"
        + (f", at most {cap:g}: a run's own evaluations are capped there." if cap else ".")
    )


def _names(names: Sequence[str]) -> str:
    buttons = "".join(
        f'<li><button aria-pressed="true" data-of="series-{i % charts.N_COLOURS}">'
        f'<span class="dot series-{i % charts.N_COLOURS}"></span>{escape(name)}</button></li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{buttons}</ul>'


def _runs(contest: Contest) -> str:
    rows = []
    for method in contest.methods:
        runs = contest.of(method)
        volumes = [run.hypervolume for run in runs]
        rows.append(
            [
                *(method, len(runs), f"{median(r.candidates for r in runs):g}"),
                *(f"{median(r.scored for r in runs):g}", f"{median(r.minutes for r in runs):.1f}"),
                *(share(v) for v in (median(volumes), min(volumes), max(volumes))),
            ]
        )
    heads = ("method", "runs", "candidates", "with F1", "minutes", "hypervolume", "from", "to")
    return table(heads, rows)


def _against(contest: Contest) -> str:
    rows = [[a.method, a.at, a.seeds, a.wins, *_interval(a.difference)] for a in contest.against]
    if not rows:
        return ""
    heads = ("method", "after as many", "seeds", "larger in", "difference", "from", "to (95 %)")
    first = escape(contest.first)
    return f"<h3>{first} less each other, paired by seed</h3>" + table(heads, rows)


def _interval(found: Interval | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    return share(found.mean), share(found.low), share(found.high)


def labels(inputs: Inputs) -> str:
    """Each student beside its twin that learned from labels alone."""
    if not inputs.labels:
        file = inputs.run_dir / results.LABELS
        return none("students that labels alone trained", file, "compare labels")
    return "".join(_labels(found) for found in inputs.labels)


def _labels(found: Labels) -> str:
    starts = {
        "slice": "where the student started: the difference is the last training's",
        "teacher": "as the teacher cut to its shape: no distillation went into it",
    }
    heads = (
        *("student", "epochs", "data", "questions", "F1", "labels alone"),
        *("difference", "from", "to (95 %)"),
        *("forced F1", "labels alone", "difference", "from", "to (95 %)"),
    )
    rows = [[p.first, found.epochs.get(p.first, "-"), *_scores(p)] for p in found.pairs]
    said = escape(starts.get(found.start, found.start))
    return (
        f"<p>The twin of a student has its shape, rows, steps and seed, and starts {said}.</p>"
        f'<div class="scroll">{table(heads, rows)}</div>'
    )


def _scores(pair: Pair) -> list[object]:
    forced = pair.forced_f1 or (None, None)
    return [
        *(pair.data, pair.n, share(pair.f1[0]), share(pair.f1[1])),
        *_interval(pair.f1_difference),
        *(share(forced[0]), share(forced[1])),
        *_interval(pair.forced_difference),
    ]


def fp32(inputs: Inputs) -> str:
    """How many times faster and smaller the published are, with which share of the accuracy."""
    found = inputs.fp32
    if found is None:
        file = inputs.run_dir / results.REFERENCE
        return none("ratios to the fp32 teacher", file, "reference")
    lengths = sorted({t.tokens: t.bucket for t in found.timings}.items())
    padded = ", ".join(f"{n} tokens as {bucket}" for n, bucket in lengths)
    return (
        f"<p>{escape(found.teacher)} in fp32 has {found.size_bytes} bytes. Latencies: one window, one"
        f" thread, {padded}, all models in turn in each of {found.rounds} rounds; the ratio is of the"
        f" minima, in brackets of the medians.</p>{_disturbed(found)}"
        + _headlines(found, [n for n, _ in lengths])
        + _timings(found)
        + _int8(found)
    )


def _disturbed(found: Reference) -> str:
    if found.disturbed <= QUIET:
        return ""
    return (
        '<p class="warn">The host was busy: least latencies are above CPU time, and longer runs are'
        " disturbed more. Ratios of CPU time are in the last columns; measure again when it is"
        " quiet.</p>"
    )


def _headlines(found: Reference, lengths: Sequence[int]) -> str:
    faster = (f"times faster, {n} tokens" for n in lengths)
    busy = found.disturbed > QUIET
    by_cpu = [f"by CPU time, {n}" for n in lengths] if busy else []
    heads = ("variant", "MB", "times smaller", *faster, "forced F1", "of fp32's", "data", *by_cpu)
    rows = [
        [
            *(line.variant, f"{line.size_bytes / 1e6:.2f}", f"{line.times_smaller:.1f}"),
            *(f"{line.times_faster[n]:.2f} ({line.times_faster_median[n]:.2f})" for n in lengths),
            *(share(line.forced_f1), _percent(line.share_of_forced_f1), line.data or "-"),
            *(f"{line.times_faster_cpu[n]:.2f}" for n in lengths if busy),
        ]
        for line in found.headlines
    ]
    return table(heads, rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _timings(found: Reference) -> str:
    rows = [[t.model, t.tokens, t.bucket, t.min_ms, t.median_ms, t.cpu_ms] for t in found.timings]
    return table(("model", "tokens", "bucket", "ms, least", "ms, median", "ms of CPU, least"), rows)


def _int8(found: Reference) -> str:
    heads = (
        *("as published, INT8", "data", "questions", "F1", "fp32", "difference", "from"),
        *("to (95 %)", "forced F1", "fp32", "difference", "from", "to (95 %)"),
    )
    rows = [[p.first, *_scores(p)] for p in found.int8]
    return f"<h3>What quantizing costs</h3>{table(heads, rows)}" if rows else ""


def economy(inputs: Inputs) -> str:
    """How many candidates were judged, and for how much less than by their own training."""
    if not inputs.trials:
        return no_trials(inputs)
    seconds = {stage.name: stage.seconds for stage in inputs.stages}
    trainings = [s for n, s in seconds.items() if s and n.startswith(STUDENTS) and TWIN not in n]
    found = analysis.economy(inputs.trials, seconds.get(ELASTIC), trainings)
    return (
        "<p>From recorded seconds, of which a training that was killed has only those of its last"
        " run. A training of its own is the median of the finished students', which start from a"
        " slice that has learned already.</p>" + table(("", "value"), _economy(found))
    )


def _economy(found: Economy) -> list[list[object]]:
    return [
        ["candidates through the cost gate", found.candidates],
        ["candidates with an F1 as slices", found.scored],
        ["seconds a candidate with F1, median", plain(found.candidate_s)],
        ["its share of the elastic student's training, s", _rounded(found.elastic_share_s)],
        ["seconds of a training of its own, median", plain(found.training_s)],
        ["times cheaper", _rounded(found.times_cheaper)],
        ["times cheaper, with the elastic student's share", _rounded(found.times_cheaper_in_all)],
    ]


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
