"""The rules for the values of a catalog: ranges, names and consistency. Pure.

store.py checks types and unknown keys when it reads the JSON; these are the rules that types cannot express.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise

from gateway.catalog.schema import (
    QA,
    Agreement,
    Cell,
    Certificate,
    Check,
    Confidence,
    GoldenLabelLogits,
    GoldenLogits,
    Paired,
    Plan,
    Profile,
    Quality,
    Shape,
    Spread,
    Stratum,
    Variant,
)

# Folder, Triton model, metric label and header value at once.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")

Problem = tuple[str, str]  # path of the value, and what is wrong with it


def task_problems(where: str, name: str, labels: Sequence[str]) -> Iterator[Problem]:
    """Yield what is wrong with the name or the labels of a classification."""
    yield from _name(f"{where}.name", name)
    if name == QA:
        yield f"{where}.name", f"{QA!r} is question answering; give the classification another name"
    if len(labels) < 2:
        yield f"{where}.labels", f"{len(labels)}; a classification has at least two"
    if len(set(labels)) < len(labels):
        yield f"{where}.labels", "a label occurs twice"
    if not all(label.strip() for label in labels):
        yield f"{where}.labels", "a label without a visible character"


def variant_problems(
    where: str, variant: Variant, n_golden: int, n_labels: int = 0
) -> Iterator[Problem]:
    """Yield what is wrong with a variant of a task with so many golden inputs and labels."""
    yield from _name(f"{where}.name", variant.name)
    yield from _sha256(f"{where}.sha256", variant.sha256)
    for name in ("version", "size_bytes", "parameters", "instances"):
        yield from _at_least_1(f"{where}.{name}", getattr(variant, name))
    yield from _shape(f"{where}.shape", variant.shape)
    for i, quality in enumerate(variant.quality):
        yield from _quality(f"{where}.quality.{i}", quality)
    yield from _profile(f"{where}.profile", variant.profile)
    if len(variant.golden) != n_golden:
        yield f"{where}.golden", f"{len(variant.golden)} for {n_golden} golden inputs"
    for i, logits in enumerate(variant.golden):
        yield from _golden(f"{where}.golden.{i}", logits, n_labels)
    yield from _temperature(f"{where}.decoding", variant)
    if not variant.golden_tolerance > 0:
        yield f"{where}.golden_tolerance", f"{variant.golden_tolerance:g} is not more than 0"
    if variant.confidence is not None:
        yield from _confidence(f"{where}.confidence", variant.confidence)


def plan_problems(where: str, plan: Plan, variants: Sequence[Variant]) -> Iterator[Problem]:
    """Yield what is wrong with a plan over these variants."""
    yield from _name(f"{where}.name", plan.name)
    by_name = {variant.name: variant for variant in variants}
    unknown = [name for name in plan.variants if name not in by_name]
    if unknown or not plan.variants:
        yield f"{where}.variants", f"names unknown variants {unknown}"
        return
    tasks = dict.fromkeys(by_name[name].task for name in plan.variants)
    if len(tasks) > 1:
        yield f"{where}.variants", f"of several tasks: {', '.join(tasks)}; a plan has one"
    if len(set(plan.variants)) < len(plan.variants):
        yield f"{where}.variants", "a variant occurs twice; it would give the same answer again"
    if len(plan.thresholds) != len(plan.variants) - 1:
        yield f"{where}.thresholds", "one threshold per escalation is needed"
    for i, threshold in enumerate(plan.thresholds):
        yield from _share(f"{where}.thresholds.{i}", threshold)
    yield from _reach(f"{where}.reach", plan)
    yield from _certificate(f"{where}.certificate", plan.certificate)
    of_task = {name for name, variant in by_name.items() if variant.task in tasks}
    yield from _comparisons(where, plan, of_task)
    hashes = tuple(by_name[name].sha256 for name in plan.variants)
    if plan.certificate.model_sha256 != hashes:
        yield f"{where}.certificate.model_sha256", "is not of the plan's variants; certify them"


def _reach(where: str, plan: Plan) -> Iterator[Problem]:
    """Each variant is asked at most as often as the one before, the first always."""
    if not plan.reach and len(plan.variants) == 1:
        return
    if len(plan.reach) != len(plan.variants) or plan.reach[0] != 1:
        yield where, "one share per variant is needed, the first 1; certify the plan"
    for i, share in enumerate(plan.reach):
        yield from _share(f"{where}.{i}", share)
        if i and share > plan.reach[i - 1]:
            yield f"{where}.{i}", f"{share:g} is more than the {plan.reach[i - 1]:g} before it"


def _comparisons(where: str, plan: Plan, known: Container[str]) -> Iterator[Problem]:
    """Check the comparison of the plan with the largest variant."""
    paired = plan.certificate.paired
    if paired is not None and paired.to not in known:
        yield (
            f"{where}.certificate.paired.to",
            f"names an unknown variant {paired.to!r} (of the plan's task)",
        )
    if plan.agreement is not None:
        yield from _agreement(f"{where}.agreement", plan.agreement)
        if plan.agreement.reference not in known:
            yield (
                f"{where}.agreement.reference",
                "is not a variant of the plan's task in this catalog",
            )


def _agreement(where: str, agreement: Agreement) -> Iterator[Problem]:
    for name in ("n_contexts", "n_questions"):
        yield from _at_least_1(f"{where}.{name}", getattr(agreement, name))
    for name in ("both_answer", "same_answer"):
        rate, floor = getattr(agreement, name), getattr(agreement, f"{name}_floor")
        yield from _share(f"{where}.{name}", rate)
        yield from _share(f"{where}.{name}_floor", floor)
        if floor > rate:
            yield f"{where}.{name}_floor", f"{floor:g} is more than the sample's {rate:g}"


def _confidence(where: str, confidence: Confidence) -> Iterator[Problem]:
    for name in ("n_contexts", "n_questions"):
        yield from _at_least_1(f"{where}.{name}", getattr(confidence, name))
    edges = confidence.edges
    if not edges or list(edges) != sorted(set(edges)):
        yield f"{where}.edges", "are empty or do not rise"
    for i, edge in enumerate(edges):
        yield from _share(f"{where}.edges.{i}", edge)
    yield from _spread(where, confidence, len(edges))
    longest = [part.max_tokens for part in confidence.by_length]
    if longest != sorted(set(longest)):
        yield f"{where}.by_length", "max_tokens do not rise"
    for i, part in enumerate(confidence.by_length):
        yield from _spread(f"{where}.by_length.{i}", part, len(edges))


def _spread(where: str, spread: Confidence | Spread, n_edges: int) -> Iterator[Problem]:
    """Check the shares of answers up to each edge."""
    for name in ("shares", "low", "high"):
        values = getattr(spread, name)
        if len(values) != n_edges:
            yield f"{where}.{name}", f"{len(values)} for {n_edges} edges"
        for i, value in enumerate(values):
            yield from _share(f"{where}.{name}.{i}", value)
    for i, (low, high) in enumerate(zip(spread.low, spread.high, strict=False)):
        if low > high:
            yield f"{where}.low.{i}", f"{low:g} is more than high, {high:g}"


def repeated(where: str, names: Iterable[str]) -> Iterator[Problem]:
    """Yield every name that occurs a second time."""
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            yield f"{where}.{i}.name", f"{name!r} occurs twice"
        seen.add(name)


def sha256_problems(where: str, value: str) -> Iterator[Problem]:
    """Yield what is wrong with a sha256."""
    return _sha256(where, value)


def look_problems(where: str, delta: float, spent: float) -> Iterator[Problem]:
    """Yield what is wrong with what one look at a data set spent."""
    if not 0 < delta < 1:
        yield f"{where}.delta", f"{delta:g} is not between 0 and 1"
    if not 0 < spent <= delta:
        yield f"{where}.spent", f"{spent:g} is not between 0 and its delta, {delta:g}"


def _name(where: str, value: str) -> Iterator[Problem]:
    if not NAME.fullmatch(value):
        yield (
            where,
            f"{value[:120]!r} is not a name: use letters, digits and ._- after a letter or digit",
        )


def _sha256(where: str, value: str) -> Iterator[Problem]:
    if not SHA256.fullmatch(value):
        yield where, f"{value[:80]!r} is not a sha256: use 64 hexadecimal digits in lower case"


def _at_least_1(where: str, value: int) -> Iterator[Problem]:
    if value < 1:
        yield where, f"{value} is less than 1"


def _share(where: str, value: float | None) -> Iterator[Problem]:
    if value is not None and not 0 <= value <= 1:
        yield where, f"{value:g} is not from 0 to 1"


def _shape(where: str, shape: Shape) -> Iterator[Problem]:
    for name in ("layers", "hidden", "heads", "ffn", "vocabulary", "embedding_bits"):
        yield from _at_least_1(f"{where}.{name}", getattr(shape, name))
    yield from _share(f"{where}.keep", shape.keep)
    if not 0 <= shape.rank <= shape.hidden:
        yield f"{where}.rank", f"{shape.rank} is not from 0 to hidden, {shape.hidden}"
    if not 0 <= shape.drop_after < max(1, shape.layers):
        yield f"{where}.drop_after", f"{shape.drop_after} of {shape.layers} layers leaves none"
    yield from _layer_widths(f"{where}.layer_heads", shape.layer_heads, shape.layers, shape.heads)
    yield from _layer_widths(f"{where}.layer_ffn", shape.layer_ffn, shape.layers, shape.ffn)
    if shape.layer_keep:
        yield from _layer_keep(f"{where}.layer_keep", shape)


def _layer_widths(
    where: str, widths: tuple[int, ...], n_layers: int, largest: int
) -> Iterator[Problem]:
    if not widths:
        return
    if len(widths) != n_layers:
        yield where, f"{len(widths)} widths for {n_layers} layers; one for each is needed"
    if min(widths) < 1 or max(widths) != largest:
        found = f"widths from {min(widths)} to {max(widths)}"
        yield where, f"{found}; each must be at least 1, and the largest must be {largest}"


def _layer_keep(where: str, shape: Shape) -> Iterator[Problem]:
    shares = shape.layer_keep
    if len(shares) != shape.layers:
        yield where, f"{len(shares)} shares for {shape.layers} layers; one for each is needed"
    if not all(0 < share <= 1 for share in shares) or any(b > a for a, b in pairwise(shares)):
        yield where, f"{list(shares)}; each must be above 0, at most 1 and at most the one before"
    if (shares.count(1.0), shares[-1]) != (shape.drop_after, shape.keep):
        yield (
            where,
            f"{list(shares)}; must be 1.0 for the first {shape.drop_after} layers only, and end with {shape.keep:g}",
        )


def _quality(where: str, quality: Quality) -> Iterator[Problem]:
    if quality.sha256:  # empty: a split, not a file
        yield from _sha256(f"{where}.sha256", quality.sha256)
    yield from _at_least_1(f"{where}.n", quality.n)
    for name in ("exact", "f1", "f1_low", "f1_high", "has_answer_f1", "no_answer_f1", "forced_f1"):
        yield from _share(f"{where}.{name}", getattr(quality, name))
    if quality.f1_low > quality.f1_high:
        yield f"{where}.f1_low", f"{quality.f1_low:g} is more than f1_high {quality.f1_high:g}"
    for i, metric in enumerate(quality.metrics):
        if not -1 <= metric.value <= 1:
            yield f"{where}.metrics.{i}.value", f"{metric.value:g} is not from -1 to 1"


def _profile(where: str, profile: Profile) -> Iterator[Problem]:
    yield from _at_least_1(f"{where}.threads", profile.threads)
    yield from _at_least_1(f"{where}.host.cores", profile.host.cores)
    if not profile.cells:
        yield f"{where}.cells", "empty: no latency profile; profile it"
    known: set[tuple[int, int]] = set()
    for i, cell in enumerate(profile.cells):
        yield from _cell(f"{where}.cells.{i}", cell)
        if (cell.bucket, cell.batch) in known:
            yield f"{where}.cells.{i}", f"bucket {cell.bucket}, batch {cell.batch} occurs twice"
        known.add((cell.bucket, cell.batch))


def _cell(where: str, cell: Cell) -> Iterator[Problem]:
    yield from _at_least_1(f"{where}.bucket", cell.bucket)
    yield from _at_least_1(f"{where}.batch", cell.batch)
    if not cell.p50_ms > 0:
        yield f"{where}.p50_ms", f"{cell.p50_ms:g} is not more than 0"
    if cell.p95_ms < cell.p50_ms:
        yield f"{where}.p95_ms", f"{cell.p95_ms:g} is less than p50_ms {cell.p50_ms:g}"
    if cell.p99_ms < cell.p95_ms:
        yield f"{where}.p99_ms", f"{cell.p99_ms:g} is less than p95_ms {cell.p95_ms:g}"


def _golden(
    where: str, logits: GoldenLogits | GoldenLabelLogits, n_labels: int
) -> Iterator[Problem]:
    """Check the logits of one golden input; `n_labels` 0: of question answering."""
    if isinstance(logits, GoldenLabelLogits):
        if len(logits.logits) != n_labels:
            yield where, f"{len(logits.logits)} logits for {n_labels} labels"
    elif n_labels:
        yield where, f"start and end logits; a classification has `logits`, {n_labels} of them"
    elif not logits.start or len(logits.start) != len(logits.end):
        yield where, f"{len(logits.start)} start and {len(logits.end)} end logits"


def _temperature(where: str, variant: Variant) -> Iterator[Problem]:
    """A classification has a temperature and nothing else; question answering has none."""
    temperature = variant.decoding.temperature
    if not variant.classifies:
        if temperature is not None:
            yield f"{where}.temperature", "is of a classification; this variant answers questions"
    elif temperature is None:
        yield where, "no temperature; a classification is decoded by one"
    elif not temperature > 0:
        yield f"{where}.temperature", f"{temperature:g} is not more than 0"


def _certificate(where: str, certificate: Certificate) -> Iterator[Problem]:
    yield from _share(f"{where}.floor", certificate.floor)
    yield from _share(f"{where}.f1", certificate.f1)
    if certificate.floor > certificate.f1:
        yield (
            f"{where}.floor",
            f"{certificate.floor:g} is more than the sample's F1 {certificate.f1:g}",
        )
    if not 0 < certificate.delta < 1:
        yield f"{where}.delta", f"{certificate.delta:g} is not between 0 and 1"
    for name in ("n_contexts", "n_questions"):
        yield from _at_least_1(f"{where}.{name}", getattr(certificate, name))
    yield from _at_least_1(f"{where}.host.cores", certificate.host.cores)
    for i, bound in enumerate(certificate.bounds):
        yield from _share(f"{where}.bounds.{i}.floor", bound.floor)
    if certificate.paired is not None:
        yield from _paired(f"{where}.paired", certificate.paired)
    yield from _share(f"{where}.constant_f1", certificate.constant_f1)
    for place in ("scopes", "strata", "checks"):
        for i, part in enumerate(getattr(certificate, place)):
            yield from _part(f"{where}.{place}.{i}", part)


def _paired(where: str, paired: Paired) -> Iterator[Problem]:
    yield from _name(f"{where}.to", paired.to)
    for name in ("loss", "f1_loss"):
        if not -1 <= getattr(paired, name) <= 1:
            yield f"{where}.{name}", f"{getattr(paired, name):g} is not from -1 to 1"
    for i, scope in enumerate(paired.scopes):
        if not -1 <= scope.loss <= paired.loss:
            yield f"{where}.scopes.{i}.loss", f"{scope.loss:g} is not from -1 to {paired.loss:g}"
    if paired.loss < paired.f1_loss:
        yield f"{where}.loss", f"{paired.loss:g} is less than the sample's {paired.f1_loss:g}"


def _part(where: str, part: Stratum | Check) -> Iterator[Problem]:
    for name in ("n_contexts", "n_questions"):
        yield from _at_least_1(f"{where}.{name}", getattr(part, name))
    for name in ("f1", "floor"):
        yield from _share(f"{where}.{name}", getattr(part, name))
    if isinstance(part, Stratum) and part.floor > part.f1:
        yield f"{where}.floor", f"{part.floor:g} is more than the sample's F1 {part.f1:g}"
    if isinstance(part, Check):
        yield from _share(f"{where}.f1_high", part.f1_high)
