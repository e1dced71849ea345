"""Sections of the report: search and distillation against simpler methods, and the cost of a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import median

from optimizer.benchmarks import results
from optimizer.benchmarks.results import QUIET, Contest, Interval, Labels, Pair, ReferenceComparison
from optimizer.report import analysis, charts
from optimizer.report.analysis import Economy
from optimizer.report.inputs import Inputs
from optimizer.report.tables import no_trials, none, plain, share, table

ELASTIC, STUDENTS = "elastic", "students/"
TWIN = ".labels"  # suffix of a student that was trained on labels alone


def searches(inputs: Inputs) -> str:
    """Return hypervolume over minutes, one line a method, and the paired differences."""
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
        "Each line shows the share of the box that a run's Pareto front dominates: the median over the"
        " seeds, with their range. A run's minutes are those that its evaluations took when they were"
        f" first made, plus its sampler's time; runs that slice the elastic student include the"
        f" {contest.elastic_minutes:.1f} minutes of its training. The box spans F1 from 0 to 1, p95 up to"
        f" {contest.p95_ms} ms and size up to {contest.size_bytes} bytes (the cost of the largest"
        f" candidate); F1 is measured on {contest.questions} questions. The method <em>trainings</em>"
        f" trains each candidate separately from a truncated teacher, for {contest.training_epochs:g}"
        f" epochs, within the minutes that {escape(contest.first)} took with the same seed"
        + (f", and at most {cap:g} minutes for a run's own evaluations." if cap else ".")
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
    heads = ("method", "compared at equal", "seeds", "larger in", "difference", "from", "to (95 %)")
    first = escape(contest.first)
    return (
        f"<h3>Hypervolume of {first} minus that of each other method, paired by seed</h3>"
        + table(heads, rows)
    )


def _interval(found: Interval | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    return share(found.mean), share(found.low), share(found.high)


def labels(inputs: Inputs) -> str:
    """Return each student beside its twin that was trained on labels alone."""
    if not inputs.labels:
        file = inputs.run_dir / results.LABELS
        return none("students trained on labels alone", file, "compare labels")
    return "".join(_labels(found) for found in inputs.labels)


def _labels(found: Labels) -> str:
    starts = {
        "slice": "from the same slice, so the difference is due to the last training",
        "teacher": "from the teacher cut to its shape, without any distillation",
    }
    heads = (
        *("student", "epochs", "data", "questions", "F1", "labels alone"),
        *("difference", "from", "to (95 %)"),
        *("forced F1", "labels alone", "difference", "from", "to (95 %)"),
    )
    rows = [[p.first, found.epochs.get(p.first, "-"), *_scores(p)] for p in found.pairs]
    start = escape(starts.get(found.start, found.start))
    return (
        f"<p>Each twin has the shape, training rows, steps and seed of its student. It starts {start}.</p>"
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
    """Return how much faster and smaller the variants are than in fp32, and their share of its F1."""
    found = inputs.fp32
    if found is None:
        file = inputs.run_dir / results.REFERENCE
        return none("ratios to the fp32 teacher", file, "reference")
    lengths = sorted({t.tokens: t.bucket for t in found.timings}.items())
    padded = ", ".join(f"{n} tokens as {bucket}" for n, bucket in lengths)
    return (
        f"<p>{escape(found.teacher)} in fp32 has {found.size_bytes} bytes. Latencies are of one window on"
        f" one thread ({padded}); all models take turns in each of {found.rounds} rounds. Ratios are of"
        f" the minima, those in brackets of the medians.</p>{_disturbed(found)}"
        + _headlines(found, [n for n, _ in lengths])
        + _timings(found)
        + _int8(found)
    )


def _disturbed(found: ReferenceComparison) -> str:
    if found.disturbed <= QUIET:
        return ""
    return (
        '<p class="warn">The host was busy: even the least latencies are above the CPU time, most for'
        " slow models. The last columns show ratios of CPU time; measure again on an idle host.</p>"
    )


def _headlines(found: ReferenceComparison, lengths: Sequence[int]) -> str:
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


def _timings(found: ReferenceComparison) -> str:
    rows = [[t.model, t.tokens, t.bucket, t.min_ms, t.median_ms, t.cpu_ms] for t in found.timings]
    return table(("model", "tokens", "bucket", "least ms", "median ms", "least CPU ms"), rows)


def _int8(found: ReferenceComparison) -> str:
    heads = (
        *("as published, INT8", "data", "questions", "F1", "fp32", "difference", "from"),
        *("to (95 %)", "forced F1", "fp32", "difference", "from", "to (95 %)"),
    )
    rows = [[p.first, *_scores(p)] for p in found.int8]
    return f"<h3>Loss of F1 by quantization</h3>{table(heads, rows)}" if rows else ""


def economy(inputs: Inputs) -> str:
    """Return how many candidates were judged, and their cost relative to separate trainings."""
    if not inputs.trials:
        return no_trials(inputs)
    seconds = {stage.name: stage.seconds for stage in inputs.stages}
    trainings = [s for n, s in seconds.items() if s and n.startswith(STUDENTS) and TWIN not in n]
    found = analysis.economy(inputs.trials, seconds.get(ELASTIC), trainings)
    return (
        "<p>From recorded seconds; a training that was killed and resumed counts only its last run. The"
        " separate training is the median over the finished students, which start from a trained"
        " slice.</p>" + table(("", "value"), _economy(found))
    )


def _economy(found: Economy) -> list[list[object]]:
    return [
        ["candidates that reached the cost gate", found.candidates],
        ["candidates scored as slices", found.scored],
        ["seconds per scored candidate, median", plain(found.candidate_s)],
        ["its share of the elastic student's training, seconds", _rounded(found.elastic_share_s)],
        ["seconds of a separate training, median", plain(found.training_s)],
        ["times cheaper", _rounded(found.times_cheaper)],
        [
            "times cheaper, including the elastic student's share",
            _rounded(found.times_cheaper_in_all),
        ],
    ]


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
