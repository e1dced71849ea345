"""`bertier-optimize compare` and `reference`: comparisons of searches, distillation and variants."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from optimizer.benchmarks.results import (
    QUIET,
    Contest,
    Deferral,
    Deferring,
    ExitComparison,
    Interval,
    Labels,
    Pair,
    PrecisionComparison,
    ReferenceComparison,
    Rounding,
    StudentComparison,
    StudentResult,
)
from optimizer.study import config as configs

METHODS = "gp,random,tpe,nsga2,bort,trainings"
EPOCHS = 0.1
ROUNDS = 60
PRECISION_FOLDER = Path("runs") / "precision"
LOSSES = (0.005, 0.01, 0.02, 0.05)  # of F1, for which `exits` shows the least compute


def add(
    commands: Any, options: argparse.ArgumentParser, study_of: Callable[[argparse.Namespace], Any]
) -> None:
    """Register both commands; `options` are those of every command on a study."""
    text = "compare distillation and search with simpler methods"
    compare = commands.add_parser("compare", help=text, description=text)
    kinds = compare.add_subparsers(required=True, metavar="WHAT")
    _add_labels(kinds, options, study_of)
    _add_students(kinds, options, study_of)
    _add_searches(kinds, options, study_of)
    _add_exits(kinds)
    _add_precision(kinds)
    text = "compare all published variants with the fp32 teacher: how much faster, how much smaller"
    reference = commands.add_parser("reference", parents=[options], help=text, description=text)
    reference.add_argument(
        "--rounds",
        type=int,
        default=ROUNDS,
        help=f"rounds of interleaved latency measurements; default: {ROUNDS}",
    )
    reference.set_defaults(run=lambda args: _reference(args, study_of(args)))


def _add_labels(kinds: Any, options: argparse.ArgumentParser, study_of: Any) -> None:
    text = "compare each finished student with a twin of the same shape, trained on labels alone"
    command = kinds.add_parser("labels", parents=[options], help=text, description=text)
    command.add_argument(
        "--from-teacher",
        action="store_true",
        help="start each twin from the teacher cut to its shape instead of from the student's slice",
    )
    command.set_defaults(run=lambda args: _labels(args, study_of(args)))


def _add_students(kinds: Any, options: argparse.ArgumentParser, study_of: Any) -> None:
    text = (
        "compare all variants of a distilled study with one of its students: size, latency, F1, cost of"
        " training, and a verdict; prints Markdown"
    )
    command = kinds.add_parser("students", parents=[options], help=text, description=text)
    command.add_argument(
        "--against", metavar="NAME", help="student to compare with; default: the study's first"
    )
    command.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="compare only this variant; several times for several; default: all",
    )
    command.set_defaults(run=lambda args: _students(args, study_of(args)))


def _add_searches(kinds: Any, options: argparse.ArgumentParser, study_of: Any) -> None:
    text = "compare search methods with equal budgets by hypervolume, over several seeds"
    command = kinds.add_parser("searches", parents=[options], help=text, description=text)
    command.add_argument("--seeds", type=int, default=5, help="runs of each method; default: 5")
    command.add_argument("--trials", type=int, help="candidates per run; default: the study file's")
    command.add_argument(
        "--methods",
        default=METHODS,
        help="comma-separated; the first is compared with each other one. `trainings` trains each"
        " candidate separately from a truncated teacher, within the minutes that the first method took;"
        f" default: {METHODS}",
    )
    command.add_argument(
        "--minutes", type=float, help="limit on the minutes of a run's own evaluations"
    )
    command.add_argument(
        "--epochs",
        type=float,
        default=EPOCHS,
        help=f"epochs of each training of `trainings`; default: {EPOCHS}",
    )
    command.add_argument(
        "--elastic-minutes",
        type=float,
        help="minutes that training the elastic student took; default: from its manifest, which counts"
        " only the last run of a resumed training",
    )
    command.set_defaults(run=lambda args: _searches(args, study_of(args)))


def _add_questions(command: Any) -> None:
    """Add the options for published variants and the questions they are asked."""
    command.add_argument("--model-repository", type=Path, default=configs.REPOSITORY)
    command.add_argument(
        "--data", required=True, help="SQuAD-format file, or a known name such as squad_v2_dev"
    )
    command.add_argument(
        "--questions",
        type=int,
        help="ask this many, in a fixed order across articles; default: all",
    )


def _add_exits(kinds: Any) -> None:
    text = (
        "estimate the most that early exit could save, with smaller variants in place of the largest model's first"
        " layers, beside cascades; prints Markdown"
    )
    command = kinds.add_parser("exits", help=text, description=text)
    _add_questions(command)
    command.set_defaults(run=_exits)


def _add_precision(kinds: Any) -> None:
    text = (
        "measure how much F1 INT8 costs each published variant, by layer, and what layers in float would cost;"
        " prints Markdown"
    )
    command = kinds.add_parser("precision", help=text, description=text)
    _add_questions(command)
    command.add_argument(
        "--layer-questions",
        type=int,
        help="ask this many of them with one layer rounded; default: all of them",
    )
    command.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="compare this variant; several times for several",
    )
    command.add_argument(
        "--run-dir",
        type=Path,
        default=PRECISION_FOLDER,
        help=f"where logits are kept, so that a killed run continues; default: {PRECISION_FOLDER}",
    )
    command.set_defaults(run=_precision)


def _precision(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.benchmarks import precision

    found = precision.run(
        args.model_repository,
        args.data,
        args.run_dir,
        args.questions,
        args.layer_questions,
        args.only or (),
    )
    Console().print(precision_table(found), markup=False, highlight=False, soft_wrap=True)
    return asdict(found)


def _exits(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.benchmarks import exits

    found = exits.run(args.model_repository, args.data, args.questions)
    least = {loss: exits.cheapest(found, loss) for loss in LOSSES}
    Console().print(exits_table(found, least), markup=False, highlight=False, soft_wrap=True)
    return asdict(found)


def _labels(args: argparse.Namespace, study: Any) -> dict[str, Any]:
    from optimizer.benchmarks import labels

    found = labels.run(study, from_teacher=args.from_teacher)
    Console().print(labels_table(found))
    return asdict(found)


def _students(args: argparse.Namespace, study: Any) -> dict[str, Any]:
    from optimizer.benchmarks import students

    found = students.run(study, args.against, args.only)
    table = students_table(found)
    Console().print(table, markup=False, highlight=False, soft_wrap=True)
    return asdict(found)


def _searches(args: argparse.Namespace, study: Any) -> dict[str, Any]:
    from optimizer.benchmarks import searches
    from optimizer.search import stage

    plan = searches.ComparisonPlan(
        methods=tuple(dict.fromkeys(args.methods.split(","))),
        seeds=args.seeds,
        candidates=stage.how_of(study).trials if args.trials is None else args.trials,
        minutes_cap=args.minutes,
        epochs=args.epochs,
        elastic_minutes=args.elastic_minutes,
    )
    found = searches.run(study, plan)
    console = Console()
    console.print(runs_table(found))
    console.print(against_table(found))
    console.print(scale_of(found), highlight=False)
    runs = [asdict(run) | {"hypervolume": run.hypervolume} for run in found.runs]
    for run in runs:
        del run["curve"]  # hundreds of steps: in searches.json
    return asdict(found) | {"runs": runs}


def _reference(args: argparse.Namespace, study: Any) -> dict[str, Any]:
    from optimizer.benchmarks import reference

    found = reference.run(study, study.config.publish.repository, args.rounds)
    console = Console()
    console.print(reference_table(found))
    if found.disturbed > QUIET:
        console.print(
            f"the host was busy: least latencies are up to {found.disturbed:.0%} above CPU time, and"
            " longer runs are disturbed more; measure again when it is quiet",
            highlight=False,
        )
    for pair in found.int8:
        said = f"{pair.first} less {pair.second} on {pair.data}: F1 {interval(pair.f1_difference)}"
        console.print(said, markup=False, highlight=False)
    shown = {key: value for key, value in asdict(found).items() if key != "profile"}
    return shown | {"disturbed": round(found.disturbed, 4)}


def interval(found: Interval | None) -> str:
    """Return a difference with its 95 % interval."""
    return "-" if found is None else f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def labels_table(found: Labels) -> Table:
    start = "the same slice" if found.start == "slice" else "the teacher, cut"
    title = f"distilled beside labels alone, from {start}; 95 % intervals over contexts"
    table = Table("student", "data", "n", "F1", "labels", "difference", "forced", title=title)
    for pair in found.pairs:
        table.add_row(*_row(pair))
    return table


def _row(pair: Pair) -> Sequence[str]:
    scores = (f"{pair.f1[0]:.4f}", f"{pair.f1[1]:.4f}", interval(pair.f1_difference))
    return pair.first, pair.data, str(pair.n), *scores, interval(pair.forced_difference)


def exits_table(
    found: ExitComparison, least: Mapping[float, tuple[Deferral | None, Deferral | None]]
) -> str:
    """Return two tables in Markdown: every tenth share of each plan, and the least compute for a loss.

    F1 in percent, losses in points, compute relative to the largest variant's.
    """
    heads = ("from", "deferred", "F1", "loss", "compute, exit", "compute, cascade")
    rows = [_deferral_row(plan, p) for plan in found.plans for p in plan.points[::10]]
    losses = ("loss at most", "compute, exit", "compute, cascade")
    scale = (
        f"To {found.largest} (F1 {100 * found.f1:.1f}); {found.data}: {found.n} questions on"
        f" {found.n_contexts} contexts, which give the 95 % intervals; compute 1: {found.largest} alone."
    )
    each = [
        (
            f"{100 * loss:g}",
            _compute(None if by_exit is None else by_exit.exit),
            _compute(None if by_cascade is None else by_cascade.cascade),
        )
        for loss, (by_exit, by_cascade) in least.items()
    ]
    return "\n\n".join([markdown(heads, rows), markdown(losses, each), scale])


def _deferral_row(plan: Deferring, at: Deferral) -> tuple[str, ...]:
    return (
        f"`{plan.variant}`",
        f"{at.share:.0%}",
        f"{100 * at.f1:.1f}",
        points_of(at.loss),
        _compute(at.exit),
        _compute(at.cascade),
    )


def _compute(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"


def precision_table(found: PrecisionComparison) -> str:
    """Return a table in Markdown of each variant's graphs, then of its layers.

    F1 in percent, differences in points, errors in standard deviations of the float graph's logits.
    """
    heads = ("variant", "graph", "n", "error", "F1", "forced F1", "beside", "F1 difference")
    rows = [
        _rounding_row(of.variant, graph)
        for of in found.variants
        for graph in (*of.graphs, *of.layers)
    ]
    first = found.variants[0].graphs[0].beside
    scale = (
        f"{first.data}: {first.n} questions on {first.n_contexts} contexts, which give the 95 % intervals;"
        " p50 and least CPU time of one window on one core."
    )
    skipped = [f"`{name}` is not compared: it {why}." for name, why in found.skipped.items()]
    table = markdown((*heads, "forced difference", "p50 ms", "CPU ms"), rows)
    return "\n\n".join([table, scale, *skipped])


def _rounding_row(variant: str, graph: Rounding) -> tuple[str, ...]:
    pair, time = graph.beside, graph.timing
    is_reference = pair.first == pair.second
    forced, forced_less = pair.forced_f1, pair.forced_difference
    return (
        f"`{variant}`",
        pair.first,
        str(pair.n),
        f"{graph.error:.3f}",
        f"{100 * pair.f1[0]:.1f}",
        "-" if forced is None else f"{100 * forced[0]:.1f}",
        "-" if is_reference else pair.second,
        "-" if is_reference else points_of(pair.f1_difference),
        "-" if is_reference or forced_less is None else points_of(forced_less),
        *(("-", "-") if time is None else (f"{time.median_ms:.1f}", f"{time.cpu_ms:.1f}")),
    )


def points_of(found: Interval) -> str:
    """Return a difference of F1 in points, with its 95 % interval."""
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for the documentation."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def students_table(found: StudentComparison) -> str:
    """Return a table in Markdown; F1 in percent, differences in points."""
    heads = ("student", "MB", "p50 ms", "p95 ms", "F1 forced", "F1", f"F1 minus `{found.against}`")
    teacher = (
        "" if found.teacher_s is None else f"; the teacher's answers, once: {found.teacher_s:.0f} s"
    )
    scale = (
        f"{found.data}: {found.n} questions on {found.n_contexts} contexts, which give the 95 % intervals;"
        f" latency of {found.tokens} tokens on one core{teacher}."
    )
    rows = [_student_row(student) for student in found.students]
    table = markdown((*heads, "steps", "training s", "verdict"), rows)
    return f"{table}\n\n{scale}"


def _student_row(student: StudentResult) -> tuple[str, ...]:
    less = student.f1_difference
    return (
        f"`{student.name}`",
        f"{student.size_bytes / 1e6:.2f}",
        f"{student.p50_ms:.2f}",
        f"{student.p95_ms:.2f}",
        "-" if student.forced_f1 is None else f"{100 * student.forced_f1:.1f}",
        f"{100 * student.f1:.1f}",
        "-" if less is None else points_of(less),
        str(student.steps) if student.steps else "-",
        "-" if student.train_s is None else f"{student.train_s:.0f}",
        student.verdict,
    )


def runs_table(found: Contest) -> Table:
    title = f"hypervolume over {len({run.seed for run in found.runs})} seeds"
    columns = (
        "method",
        "runs",
        "candidates",
        "with F1",
        "minutes",
        "median",
        "from",
        "to",
        "best W",
    )
    table = Table(*columns, title=title)
    for method in found.methods:
        runs = found.of(method)
        volumes = [run.hypervolume for run in runs]
        table.add_row(
            method,
            str(len(runs)),
            f"{median(run.candidates for run in runs):g}",
            f"{median(run.scored for run in runs):g}",
            f"{median(run.minutes for run in runs):.1f}",
            *(f"{value:.4f}" for value in (median(volumes), min(volumes), max(volumes))),
            f"{median(run.best_w for run in runs):.3f}",
        )
    return table


def against_table(found: Contest) -> Table:
    title = f"{found.first} less each other, paired by seed, 95 % t interval"
    table = Table("method", "after as many", "seeds", "larger in", "difference", title=title)
    for other in found.against:
        counts = str(other.seeds), str(other.wins)
        table.add_row(other.method, other.at, *counts, interval(other.difference))
    return table


def scale_of(found: Contest) -> str:
    """Say what was compared, and at which scale."""
    cap = found.minutes_cap
    said = [
        f"{found.candidates} candidates a run",
        f"F1 on {found.questions} questions",
        f"box to F1 0, {found.p95_ms} ms and {found.size_bytes} bytes: the largest candidate's",
        f"{found.elastic_minutes:.1f} minutes for the elastic student in every run that slices it",
        f"{found.training_epochs:g} epochs for each candidate that is trained",
        f"at most {cap:g} minutes of a run's own" if cap else "no cap on a run's minutes",
    ]
    return "; ".join(said)


def reference_table(found: ReferenceComparison) -> Table:
    lengths = sorted({t.tokens: t.bucket for t in found.timings}.items())
    said = ", ".join(f"{n} tokens in a bucket of {bucket}" for n, bucket in lengths)
    title = (
        f"beside the fp32 teacher, {found.size_bytes / 1e6:.1f} MB; {said}; {found.rounds} rounds"
    )
    faster = (f"times faster, {n}" for n, _ in lengths)
    table = Table("variant", "MB", "times smaller", *faster, "forced F1", "share", title=title)
    for line in found.headlines:
        table.add_row(
            line.variant,
            f"{line.size_bytes / 1e6:.2f}",
            f"{line.times_smaller:.1f}",
            *(f"{line.times_faster[n]:.2f}" for n, _ in lengths),
            "-" if line.forced_f1 is None else f"{line.forced_f1:.4f} ({line.data})",
            "-" if line.share_of_forced_f1 is None else f"{line.share_of_forced_f1:.1%}",
        )
    return table
