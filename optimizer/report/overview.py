"""Section of the report: accuracy, latency and size of all trials and published variants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from gateway.catalog.schema import Quality, Variant
from gateway.catalog.store import Catalog
from optimizer.report import charts
from optimizer.report.analysis import Trial
from optimizer.report.charts import Mark, Thread
from optimizer.report.inputs import Inputs
from optimizer.report.tables import no_catalog, no_trials, share, table

MIN_RADIUS, MAX_RADIUS = 2.5, 15.0
KINDS = ("published", "before", "fp32", "front", "trial", "infeasible")  # of marks
TOKENS = 192  # length bucket of latencies when the study has no search


def pareto(inputs: Inputs) -> str:
    """Return F1 over p95, with the size as area, and F1 over size."""
    scored = [t for t in inputs.trials if t.scored]
    variants = inputs.catalog.variants if inputs.catalog else ()
    if not scored and not _others(inputs, variants):
        return no_trials(inputs) + no_catalog(inputs)
    over_p95, over_size = _marks(inputs, scored, variants)
    tokens = _tokens(inputs)
    charts_ = (
        charts.scatter(over_p95, f"p95 ms, {tokens} tokens, log", "F1", log_x=True),
        charts.scatter(over_size, "size MB, log", "F1", log_x=True),
    )
    missing = ("" if inputs.trials else no_trials(inputs)) + (
        "" if variants else no_catalog(inputs)
    )
    return (
        "<p>The area of a circle is the size of the model. F1 of trials is measured on part of the search"
        " split, before they are trained on their own. F1 of published variants (now and before) and of"
        " the fp32 teacher is measured on the calibrate split; the line ends at the certified"
        " floor.</p>"
        f"{legend(over_p95)}{missing}"
        f'<div class="pair">{"".join(charts_)}</div>{_variants(variants, tokens)}'
    )


def _tokens(inputs: Inputs) -> int:
    return inputs.config.search.tokens if inputs.config.search else TOKENS


def _marks(
    inputs: Inputs, scored: Sequence[Trial], variants: Sequence[Variant]
) -> tuple[list[Mark], list[Mark]]:
    others = _others(inputs, variants)
    largest = max([t.size_bytes or 0 for t in scored] + [o.size_bytes for o in others])
    over_p95, over_size = [], []
    for trial in scored:
        assert trial.scored
        f1, p95_ms, size = trial.scored
        kind, tip, radius = kind_of(inputs, trial), tip_of(trial), _radius(size, largest)
        over_p95.append(Mark(p95_ms, f1, kind, tip, trial.number, radius))
        over_size.append(Mark(size / 1e6, f1, kind, tip, trial.number, radius))
    for other in others:
        radius, at_size = _radius(other.size_bytes, largest), other.size_bytes / 1e6
        over_p95.append(
            Mark(other.p95_ms, other.f1, other.kind, other.tip, None, radius, other.floor)
        )
        over_size.append(Mark(at_size, other.f1, other.kind, other.tip, None, radius, other.floor))
    return over_p95, over_size


@dataclass(frozen=True, slots=True)
class _Other:
    """A model of the chart that is not a trial."""

    name: str
    kind: str
    quality: Quality
    p95_ms: float
    size_bytes: int
    floor: float | None

    @property
    def f1(self) -> float:
        return self.quality.f1

    @property
    def tip(self) -> str:
        floor = "" if self.kind == "fp32" else f", certified {self.floor}"
        return (
            f"{self.name}\nF1 {self.f1:.4f} ({self.quality.data}){floor}"
            f"\np95 {self.p95_ms} ms, {self.size_bytes / 1e6:.2f} MB"
        )


def _others(inputs: Inputs, variants: Sequence[Variant]) -> list[_Other]:
    """Return the variants published now and before, and the fp32 teacher."""
    tokens = _tokens(inputs)
    found = _published(inputs.catalog, variants, "published", tokens)
    before = inputs.before.variants if inputs.before else ()
    found += _published(inputs.before, before, "before", tokens)
    if inputs.fp32 and inputs.fp32.quality:
        fp32 = inputs.fp32
        p95_ms = fp32.profile.cell(tokens).p95_ms
        name = f"{fp32.teacher} in fp32"
        found.append(_Other(name, "fp32", fp32.quality[0], p95_ms, fp32.size_bytes, None))
    return found


def _published(
    catalog: Catalog | None, variants: Sequence[Variant], kind: str, tokens: int
) -> list[_Other]:
    floors = {p.name: p.certified_f1 for p in catalog.plans} if catalog else {}
    return [
        _Other(
            v.name if kind == "published" else f"before: {v.name}",
            kind,
            v.quality[0],
            v.profile.cell(tokens).p95_ms,
            v.size_bytes,
            floors.get(v.name),
        )
        for v in variants
        if v.quality
    ]


def _radius(size: int, largest: int) -> float:
    return max(MIN_RADIUS, MAX_RADIUS * sqrt(size / largest))


def kind_of(inputs: Inputs, trial: Trial) -> str:
    if not trial.feasible:
        return "infeasible"
    return "front" if trial.number in inputs.front else "trial"


def tip_of(trial: Trial) -> str:
    lines = [f"trial {trial.number}: {trial.candidate.label}"]
    if trial.f1 is not None:
        on = f" on {trial.n_questions} questions" if trial.n_questions else ""
        lines.append(f"F1 {trial.f1:.4f}{on}")
    if trial.p95_ms is not None and trial.size_bytes is not None:
        lines.append(f"p95 {trial.p95_ms:.2f} ms, {trial.size_bytes / 1e6:.2f} MB")
    if trial.reason:
        lines.append(trial.reason)
    return "\n".join(lines)


def legend(marks: Sequence[Mark | Thread]) -> str:
    count = Counter(m.kind for m in marks)
    buttons = (
        f'<li><button aria-pressed="true" data-of="{kind}"><span class="dot {kind}"></span>'
        f"{kind} ({count[kind]})</button></li>"
        for kind in KINDS
        if count[kind]
    )
    return f'<ul class="legend">{"".join(buttons)}</ul>'


def _of_layers(widths: Sequence[int], largest: int) -> str:
    """Return one width, or that of each layer where they differ."""
    return ", ".join(map(str, widths or (largest,)))


def _variants(variants: Sequence[Variant], tokens: int) -> str:
    if not variants:
        return ""
    heads = (
        *("variant", "layers", "heads", "ffn", "bits", "precision", "MB"),
        *("p50 ms, 128 tokens", f"p95 ms, {tokens} tokens", "p95 ms, 384 tokens"),
    )
    rows = [
        [
            *(v.name, v.shape.layers, _of_layers(v.shape.layer_heads, v.shape.heads)),
            *(_of_layers(v.shape.layer_ffn, v.shape.ffn), v.shape.embedding_bits),
            *(v.precision.value, f"{v.size_bytes / 1e6:.2f}", v.profile.cell(128).p50_ms),
            *(v.profile.cell(tokens).p95_ms, v.profile.cell(384).p95_ms),
        ]
        for v in variants
    ]
    quality = [
        [v.name, q.data, q.n, *(share(s) for s in (q.exact, q.f1, q.f1_low, q.f1_high))]
        + [share(s) for s in (q.has_answer_f1, q.no_answer_f1, q.forced_f1)]
        for v in variants
        for q in v.quality
    ]
    of_quality = (
        *("variant", "data", "questions", "EM", "F1", "from", "to (95 %)"),
        *("F1 answerable", "F1 unanswerable", "F1 forced"),
    )
    return table(heads, rows) + table(of_quality, quality)
