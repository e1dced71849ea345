"""The sections of a study's page. Every text from outside is escaped; every number is an input's.

The page opens from disk and asks the network for nothing: style and script are in it, and its policy
lets nothing else in.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from math import sqrt
from pathlib import Path

from gateway.published import Check, Plan, Variant
from optimizer import findings
from optimizer.findings import Trial
from optimizer.page import charts
from optimizer.page.charts import Mark, Thread
from optimizer.report import TRIALS, Inputs, Stage
from optimizer.stages import LOSSES

HERE = Path(__file__).parent
MIN_RADIUS, MAX_RADIUS = 2.5, 15.0
TOKENS = 192  # where no search says at which length latency counts

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src '{style_hash}'; script-src '{script_hash}'">
<title>{name}: report of a study</title>
<style>{style}</style>
</head>
<body>
<h1>{name}</h1>
<p class="soft">{about}</p>
<nav>{nav}</nav>
{warning}{sections}
<div id="tip" role="tooltip"></div>
<script>{script}</script>
</body>
</html>
"""


def page(inputs: Inputs) -> str:
    """Return the whole page."""
    style, script = ((HERE / f"page.{kind}").read_text() for kind in ("css", "js"))
    sections = {
        "pareto": ("Accuracy, latency, size", pareto(inputs)),
        "knobs": ("Candidates by knob", knobs(inputs)),
        "infeasible": ("Infeasible trials", infeasible(inputs)),
        "volume": ("Hypervolume over trials", volume(inputs)),
        "ranks": ("Supernet against finished", ranks(inputs)),
        "curves": ("Learning curves", curves(inputs)),
        "certificates": ("Certificates", certificates(inputs)),
        "provenance": ("What it ran on", provenance(inputs)),
    }
    return PAGE.format(
        name=escape(inputs.config.name),
        about=_about(inputs),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        nav="".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items()),
        warning=_warning(inputs),
        sections="\n".join(
            f'<section id="{key}"><h2>{title}</h2>\n{inside}</section>'
            for key, (title, inside) in sections.items()
        ),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _about(inputs: Inputs) -> str:
    said = [f"{len(inputs.trials)} trials, {len(inputs.front)} on the front"]
    if inputs.catalog:
        origin = inputs.catalog.origin
        said.append(f"{len(inputs.catalog.variants)} variants published {escape(origin.date)}")
        said.append(f"commit {escape(origin.commit)}, seed {origin.seed}")
    return "; ".join(said)


def _warning(inputs: Inputs) -> str:
    if inputs.catalog is None or inputs.catalog.origin.study == inputs.config.name:
        return ""
    return (
        f'<p class="warn">The catalog in {escape(str(inputs.repository))} is of the study'
        f" {escape(inputs.catalog.origin.study)}, not of {escape(inputs.config.name)}.</p>"
    )


def _none(what: str, file: Path, command: str) -> str:
    return (
        f'<p class="none">No data yet: {escape(what)} come from <code>{escape(str(file))}</code>,'
        f" which <code>bertier-optimize {escape(command)}</code> writes.</p>"
    )


def _no_trials(inputs: Inputs) -> str:
    return _none("trials", inputs.run_dir / TRIALS, "search")


# Pareto


def pareto(inputs: Inputs) -> str:
    """F1 over p95, with the size as area, and F1 over size."""
    scored = [t for t in inputs.trials if t.scored]
    variants = inputs.catalog.variants if inputs.catalog else ()
    if not scored and not variants:
        return _no_trials(inputs) + _no_catalog(inputs)
    over_p95, over_size = _marks(inputs, scored, variants)
    tokens = _tokens(inputs)
    charts_ = (
        charts.scatter(over_p95, f"p95 ms, {tokens} tokens, log", "F1", log_x=True),
        charts.scatter(over_size, "size MB, log", "F1", log_x=True),
    )
    missing = ("" if inputs.trials else _no_trials(inputs)) + (
        "" if variants else _no_catalog(inputs)
    )
    return (
        "<p>The area of a circle is the size of the model. Trials: F1 on part of the search split,"
        " without training of their own. Published variants: F1 on the calibrate split, the line"
        " down to the certified floor.</p>"
        f"{_legend(over_p95)}{missing}"
        f'<div class="pair">{"".join(charts_)}</div>{_variants(variants, tokens)}'
    )


def _tokens(inputs: Inputs) -> int:
    return inputs.config.search.tokens if inputs.config.search else TOKENS


def _no_catalog(inputs: Inputs) -> str:
    return _none("published variants", inputs.repository / "catalog.json", "publish")


def _marks(
    inputs: Inputs, scored: Sequence[Trial], variants: Sequence[Variant]
) -> tuple[list[Mark], list[Mark]]:
    largest = max([t.size_bytes or 0 for t in scored] + [v.size_bytes for v in variants])
    over_p95, over_size = [], []
    for trial in scored:
        assert trial.scored
        f1, p95_ms, size = trial.scored
        kind, tip, radius = _kind(inputs, trial), _tip(trial), _radius(size, largest)
        over_p95.append(Mark(p95_ms, f1, kind, tip, trial.number, radius))
        over_size.append(Mark(size / 1e6, f1, kind, tip, trial.number, radius))
    floors = {p.name: p.certified_f1 for p in inputs.catalog.plans} if inputs.catalog else {}
    for variant in (v for v in variants if v.quality):
        f1, floor = variant.quality[0].f1, floors.get(variant.name)
        p95_ms = variant.profile.cell(_tokens(inputs)).p95_ms
        tip = (
            f"{variant.name}\nF1 {f1:.4f} ({variant.quality[0].data}), certified {floor}"
            f"\np95 {p95_ms} ms, {variant.size_bytes / 1e6:.2f} MB"
        )
        radius = _radius(variant.size_bytes, largest)
        at_size = variant.size_bytes / 1e6
        over_p95.append(Mark(p95_ms, f1, "published", tip, None, radius, floor))
        over_size.append(Mark(at_size, f1, "published", tip, None, radius, floor))
    return over_p95, over_size


def _radius(size: int, largest: int) -> float:
    return max(MIN_RADIUS, MAX_RADIUS * sqrt(size / largest))


def _kind(inputs: Inputs, trial: Trial) -> str:
    if not trial.feasible:
        return "infeasible"
    return "front" if trial.number in inputs.front else "trial"


def _tip(trial: Trial) -> str:
    lines = [f"trial {trial.number}: {trial.candidate.label}"]
    if trial.f1 is not None:
        on = f" on {trial.n_questions} questions" if trial.n_questions else ""
        lines.append(f"F1 {trial.f1:.4f}{on}")
    if trial.p95_ms is not None and trial.size_bytes is not None:
        lines.append(f"p95 {trial.p95_ms:.2f} ms, {trial.size_bytes / 1e6:.2f} MB")
    if trial.reason:
        lines.append(trial.reason)
    return "\n".join(lines)


def _legend(marks: Sequence[Mark | Thread]) -> str:
    count = Counter(m.kind for m in marks)
    buttons = (
        f'<li><button aria-pressed="true" data-of="{kind}"><span class="dot {kind}"></span>'
        f"{kind} ({count[kind]})</button></li>"
        for kind in ("published", "front", "trial", "infeasible")
        if count[kind]
    )
    return f'<ul class="legend">{"".join(buttons)}</ul>'


def _variants(variants: Sequence[Variant], tokens: int) -> str:
    if not variants:
        return ""
    heads = (
        *("variant", "layers", "heads", "ffn", "bits", "precision", "MB"),
        *("p50 ms, 128 tokens", f"p95 ms, {tokens} tokens", "p95 ms, 384 tokens"),
    )
    rows = [
        [
            *(v.name, v.shape.layers, v.shape.heads, v.shape.ffn, v.shape.embedding_bits),
            *(v.precision.value, f"{v.size_bytes / 1e6:.2f}", v.profile.cell(128).p50_ms),
            *(v.profile.cell(tokens).p95_ms, v.profile.cell(384).p95_ms),
        ]
        for v in variants
    ]
    quality = [
        [v.name, q.data, q.n, *(_share(s) for s in (q.exact, q.f1, q.f1_low, q.f1_high))]
        + [_share(s) for s in (q.has_answer_f1, q.no_answer_f1, q.forced_f1)]
        for v in variants
        for q in v.quality
    ]
    of_quality = (
        *("variant", "data", "questions", "EM", "F1", "from", "to (95 %)"),
        *("F1 answerable", "F1 unanswerable", "F1 forced"),
    )
    return _table(heads, rows) + _table(of_quality, quality)


# Trials


def knobs(inputs: Inputs) -> str:
    """Parallel coordinates, and how much each knob explains."""
    if not inputs.trials:
        return _no_trials(inputs)
    labels = (*findings.KNOBS, "p95 ms", "MB", "F1")
    threads = [Thread(t.number, _kind(inputs, t), _tip(t), _values(t)) for t in inputs.trials]
    return (
        "<p>A line is a candidate. Drag along an axis to keep those that pass there, here and in the"
        " charts above; click the axis to let all through.</p>"
        f'{_legend(threads)}<div class="wide">{charts.parallel(labels, threads)}</div>'
        f"{_importance(inputs.trials)}"
    )


def _values(trial: Trial) -> tuple[float | str | None, ...]:
    knobs_ = (knob(trial.candidate) for knob in findings.KNOBS.values())
    size_mb = None if trial.size_bytes is None else trial.size_bytes / 1e6
    return *knobs_, trial.p95_ms, size_mb, trial.f1


def _importance(trials: Sequence[Trial]) -> str:
    found = findings.importance(trials)
    if not found:
        return ""
    rows = [[name, *(f"{share:.0%}" for share in shares)] for name, shares in found.items()]
    return (
        "<h3>What a knob alone explains</h3><p>Share of the variance among the trials with an F1"
        " (eta squared). A sampler does not try values evenly, so read it as a hint.</p>"
        + _table(("knob", "of F1", "of p95", "of size"), rows)
    )


def infeasible(inputs: Inputs) -> str:
    """Which trials were of no use, and why."""
    if not inputs.trials:
        return _no_trials(inputs)
    found = [t for t in inputs.trials if not t.feasible]
    if not found:
        return "<p>None: every candidate kept every limit.</p>"
    rows = [
        [
            *(t.number, t.candidate.label, _plain(t.p95_ms), _megabytes(t.size_bytes)),
            *(_plain(t.f1), _plain(t.rung), t.reason or "-"),
        ]
        for t in found
    ]
    return f"<p>{len(found)} of {len(inputs.trials)} trials.</p>" + _table(
        ("trial", "candidate", "p95 ms", "MB", "F1", "rung", "reason"), rows
    )


def volume(inputs: Inputs) -> str:
    """How fast the search got how far."""
    if not inputs.trials:
        return _no_trials(inputs)
    reference = findings.reference_of(inputs.trials)
    found = list(findings.hypervolumes(inputs.trials, reference)) if reference else []
    if not reference or not found:
        return '<p class="none">No data yet: no feasible trial has an F1.</p>'
    questions = findings.top_rung(inputs.trials)[0].n_questions
    last = max(t.number for t in inputs.trials)
    line = charts.curves(
        {"this search": _stairs(found, last)}, "trial", "share of the box dominated"
    )
    return (
        f"<p>Share of the box from F1 0 to 1, and up to the slowest p95 ({reference.p95_ms} ms) and"
        f" the largest size ({reference.size_bytes} bytes) of any trial, that feasible trials with"
        f" an F1 on {_plain(questions)} questions dominate. At the end {found[-1][1]:.4f}.</p>"
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
    pairs = findings.finished(inputs.config, inputs.trials, variants)
    if not pairs:
        return (
            '<p class="none">No data yet: needs trials with an F1 whose candidates were finished'
            " and published (<code>bertier-optimize search</code>, then <code>run</code>).</p>"
        )
    before = [t.f1 for t, _ in pairs if t.f1 is not None]
    after = [v.quality[0].f1 for _, v in pairs]
    found = findings.rank_correlation(before, after)
    said = f"Spearman's rank correlation {found:.3f}" if found is not None else "Too few to rank"
    marks = [
        Mark(b, a, "published", f"{v.name}, trial {t.number}\n{b} -> {a:.4f}", t.number, 6)
        for (t, v), b, a in zip(pairs, before, after, strict=True)
    ]
    rows = [
        [v.name, t.number, b, f"{a:.4f}"] for (t, v), b, a in zip(pairs, before, after, strict=True)
    ]
    chart = charts.scatter(marks, "F1 of the slice, search split", "F1 finished, calibrate split")
    return f"<p>{said} over {len(pairs)}.</p>" + _pair(
        chart, _table(("variant", "trial", "F1 before", "F1 after"), rows)
    )


def curves(inputs: Inputs) -> str:
    """Whether trainings had converged."""
    found = {name: curve for name, curve in inputs.curves.items() if curve.points}
    if not found:
        file = inputs.run_dir / "teacher" / LOSSES
        return _none("losses", file, "teacher") + "<p>Trainings of earlier versions left none.</p>"
    drawn = [
        f"<div><h3>{escape(name)}</h3>"
        f'<p class="soft">{curve.points[-1][0]} of {curve.steps} steps,'
        f" loss {curve.points[-1][1]}</p>{charts.curves({name: curve.points}, 'step', 'loss')}</div>"
        for name, curve in found.items()
    ]
    return _pair(*drawn)


# Certificates


def certificates(inputs: Inputs) -> str:
    """Every floor, part by part, beside what other data showed."""
    if inputs.catalog is None:
        return _no_catalog(inputs)
    return "".join(_certificate(plan) for plan in inputs.catalog.plans)


def _certificate(plan: Plan) -> str:
    c = plan.certificate
    others = list(dict.fromkeys(check.data for check in c.checks))
    found = {(check.data, check.stratum): check for check in c.checks}
    rows = [["all", c.n_contexts, c.n_questions, _share(c.f1), c.floor]]
    rows += [[s.name, s.n_contexts, s.n_questions, _share(s.f1), s.floor] for s in c.strata]
    for row in rows:
        row += [_verdict(found.get((data, str(row[0])))) for data in others]
    bounds = "; ".join(f"{escape(b.method)} {b.floor}" for b in c.bounds)
    shifts = "".join(
        f'<p class="fails">{escape(check.stratum)} on {escape(check.data)}:'
        f" {escape(check.shift)}</p>"
        for check in c.checks
        if check.shift
    )
    parts = "" if c.strata else '<p class="none">No strata: certified by an earlier version.</p>'
    return (
        f"<h3>{escape(plan.name)}: F1 &ge; {c.floor}</h3>"
        f'<p class="soft">{escape(c.method)}; jointly wrong with probability {c.delta} at most;'
        f" {escape(c.data)}. {bounds}</p>"
        + _table(("questions", "contexts", "n", "F1", "floor", *others), rows)
        + parts
        + shifts
    )


class Raw(str):
    """HTML that is ready to be shown."""

    __slots__ = ()


def _verdict(check: Check | None) -> Raw:
    if check is None:
        return Raw("-")
    kind = check.verdict.split()[0]
    return Raw(
        f'{_share(check.f1)} <span class="{kind}">{check.verdict}</span>'
        f' <span class="soft">({check.n_contexts} contexts)</span>'
    )


# Provenance


def provenance(inputs: Inputs) -> str:
    """Commit, seeds, hashes, versions, processors."""
    return _origin(inputs) + _hosts(inputs) + _stages(inputs.stages)


def _origin(inputs: Inputs) -> str:
    seeds: list[list[object]] = [["seed of the study file", inputs.config.seed]]
    if inputs.catalog is None:
        return _table(("", "value"), seeds) + _no_catalog(inputs)
    origin = inputs.catalog.origin
    rows: list[list[object]] = [
        *seeds,
        ["published study", origin.study],
        ["its seed", origin.seed],
        ["its commit", origin.commit],
        ["published", origin.date],
    ]
    hashes = list(origin.data_sha256.items())
    return _table(("", "value"), rows) + _table(("data", "sha256"), hashes)


def _hosts(inputs: Inputs) -> str:
    if inputs.catalog is None:
        return ""
    rows = []
    for variant in inputs.catalog.variants:
        host = variant.profile.host
        rows.append([variant.name, host.cpu, host.flags, host.cores, host.gpu or "-", host.engine])
    heads = ("latency of", "processor", "instruction sets", "cores", "GPU", "engine")
    return _table(heads, rows)


def _stages(stages: Sequence[Stage]) -> str:
    known = [stage for stage in stages if stage.ran_on]
    rows: list[list[object]] = []
    for stage in known:
        on = dict(stage.ran_on)
        first = [on.pop(key, "-") or "-" for key in ("commit", "cpu", "gpu")]
        versions = ", ".join(f"{name} {version}" for name, version in on.items())
        rows.append([stage.name, _plain(stage.seconds), *first, versions])
    without = len(stages) - len(known)
    said = f'<p class="soft">{without} stages of earlier versions do not say.</p>' * bool(without)
    if not known:
        return said or '<p class="none">No data yet: no stage of the run folder is finished.</p>'
    heads = ("stage", "seconds", "commit", "processor", "GPU", "versions")
    return f'<div class="scroll">{_table(heads, rows)}</div>{said}'


# Tables


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, Raw):
        return f"<td>{value}</td>"
    kind = ' class="text"' if isinstance(value, str) and not value[:1].isdigit() else ""
    return f"<td{kind}>{escape(str(value))}</td>"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plain(value: float | str | None) -> str:
    return "-" if value is None else str(value)


def _megabytes(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.2f}"


def _pair(*parts: str) -> str:
    return f'<div class="pair">{"".join(parts)}</div>'
