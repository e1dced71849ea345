"""Model cards: what a reader must know of a variant before using it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.catalog.schema import Certificate, Check, Plan, Quality, Shape, Variant
from gateway.catalog.store import Origin, Task
from optimizer.data.class_scores import F1, MACRO_F1, MATTHEWS
from optimizer.models.weights import MIN_KEPT

CARD = """\
# {name}

Extractive question answering (English): given a question and a context, the span that answers it,
or nothing. {layers} layers, hidden width {hidden}, feed-forward width {ffn}, {parameters:.1f} M
parameters, {precision}, {words}, {size:.1f} MB.{tokens} {recipe}

| data | questions | EM | F1 (95 %) | F1 answerable | F1 unanswerable | F1 forced |
|---|---|---|---|---|---|---|
{quality}

Certified: mean F1 >= {floor:.3f} on questions like those of `{data}`, with {confidence:.0%} confidence
jointly for all plans of the catalog ({n_contexts} contexts, {n_questions} questions).{unit}{constant}{bounds}
{scopes}{strata}
{served}

**Trained on** {sources}. Start, unless the study named another: `sentence-transformers/all-mpnet-base-v2`
for `mpnet` and `all-MiniLM-L6-v2` for `minilm` (both Apache-2.0). When they were made, both saw SQuAD's
training questions beside their passages, without answers: that may flatter floors from these articles a
little, and not the figures on SQuAD's dev set. SQuAD is CC BY-SA 4.0, QAMR and PolicyQA MIT, FairytaleQA Apache-2.0;
SQuADShifts states no licence: it was trained on and is not redistributed.

**Limits**: English only, lower-cased. Weak on questions that need reasoning over several sentences,
arithmetic, or knowledge that the context does not hold. The null threshold gives up
neither answerable nor unanswerable questions: where nearly every question has an answer, ask for
`top_k` alternatives and read `no_answer_probability`. The certificate speaks of questions like the
calibration data's, not of yours: evaluate on your own with `bertier-optimize evaluate --data FILE`.
"""

CLASS_CARD = """\
# {name}

Text classification (English), task `{task}`: {what} gets one of the labels {labels}. {layers} layers, hidden width
{hidden}, feed-forward width {ffn}, {parameters:.1f} M parameters, {precision}, {words}, {size:.1f} MB. {recipe}

| data | texts | accuracy (95 %) | F1 | macro F1 | Matthews |
|---|---|---|---|---|---|
{quality}

Certified: accuracy >= {floor:.3f} on texts like those of `{data}`, with {confidence:.0%} confidence
jointly for all plans of this task ({n_clusters} groups or texts, {n_questions} texts). Always answering the most
frequent label scores {constant:.3f} there.{bounds}
{strata}
{served}

**Trained on** {sources}.

**Limits**: English only, lower-cased. Of texts longer than 384 tokens the longer one is cut at its end. The
certificate speaks of texts like the calibration data's, not of yours: evaluate on your own with
`bertier-optimize evaluate --task {task} --data FILE`.
"""
CLASS_ROW = "| {q.data} | {q.n} | {q.f1:.3f} ({q.f1_low:.3f} to {q.f1_high:.3f}) | {others} |"
CLASS_STRATA = """
| texts | n | accuracy | certified accuracy >= |{heads}
|---|---|---|---|{rules}
{rows}

The floors of the parts hold jointly with the whole's.{others}{shifts}
"""

ALONE = """\
**Served one request at a time** in its length bucket: its rounding depends on everything in a batch,
so batching would change answers."""
BATCHED = """\
**Served in batches** of one length bucket: answers do not depend on what else is in a batch."""

UNIT = """ The unit is an article
where its title is known, a context elsewhere ({n_clusters} in all)."""
OLD_UNIT = (
    " Contexts of one article are alike, so for a new article the floor is\nsomewhat optimistic."
)
CONSTANT = ' Always answering "no answer" scores {constant:.3f} there.'
SCOPES = """
| scope | articles or contexts | questions | F1 | certified F1 >= |
|---|---|---|---|---|
{rows}

Routing uses the lower floor. Contexts whose article is not known may be of articles that were partly
trained on; the titled articles were not.
"""

STRATA = """
| questions | contexts | F1 | certified F1 >= |{heads}
|---|---|---|---|{rules}
{rows}

The floors of the parts hold jointly with the whole's. Those of answerable and unanswerable questions are
the lower of both scopes.{others}{shifts}
"""
OTHERS = """ The columns on the right are data that no floor was made from: F1 and, where it is below
the floor, whether that is `within noise` (too few to tell) or the floor `fails`."""

ROW = "| {q.data} | {q.n} | {q.exact:.3f} | {q.f1:.3f} ({q.f1_low:.3f} to {q.f1_high:.3f}) | {parts} |"


def card(variant: Variant, plan: Plan, origin: Origin, task: Task | None = None) -> str:
    """Return the model card of a variant in Markdown; `task`: of a classifier."""
    certificate = plan.certificate
    if task is not None:
        return _class_card(variant, certificate, origin, task)
    return CARD.format(
        **_shared(variant, certificate, origin),
        tokens=_tokens(variant.shape),
        quality="\n".join(ROW.format(q=q, parts=_parts(q)) for q in variant.quality),
        n_contexts=certificate.n_contexts,
        unit=UNIT.format(n_clusters=certificate.n_clusters) if certificate.n_clusters else OLD_UNIT,
        constant=_constant(certificate),
        scopes=_scopes(certificate),
        strata=_strata(certificate),
    )


def _class_card(variant: Variant, certificate: Certificate, origin: Origin, task: Task) -> str:
    return CLASS_CARD.format(
        **_shared(variant, certificate, origin),
        task=task.name,
        what="a pair of texts" if task.pair else "a text",
        labels=", ".join(f"`{label}`" for label in task.labels),
        quality="\n".join(CLASS_ROW.format(q=q, others=_others(q)) for q in variant.quality),
        n_clusters=certificate.n_clusters,
        constant=certificate.constant_f1 or 0.0,
        strata=_strata(certificate, CLASS_STRATA),
    )


def _shared(variant: Variant, certificate: Certificate, origin: Origin) -> dict[str, Any]:
    """Return what the cards of both kinds of model say."""
    shape = variant.shape
    return {
        "name": variant.name,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "ffn": _ffn(shape),
        "parameters": variant.parameters / 1e6,
        "precision": variant.precision,
        "words": _words(shape),
        "served": BATCHED if variant.batch_invariant else ALONE,
        "size": variant.size_bytes / 1e6,
        "recipe": variant.recipe,
        "floor": certificate.floor,
        "data": certificate.data,
        "confidence": 1 - certificate.delta,
        "n_questions": certificate.n_questions,
        "bounds": _bounds(certificate),
        "sources": ", ".join(f"`{source}`" for source in _trained_on(variant, origin)),
    }


def _others(quality: Quality) -> str:
    """Return F1, macro F1 and Matthews' correlation as cells; F1 is known where there are two labels."""
    values = {metric.name: metric.value for metric in quality.metrics}
    cells = (values.get(name) for name in (F1, MACRO_F1, MATTHEWS))
    return " | ".join("-" if value is None else f"{value:.3f}" for value in cells)


def _trained_on(variant: Variant, origin: Origin) -> Sequence[str]:
    """Return the sources of the study that trained it, whatever it is certified with."""
    if origin.trained_on:
        return origin.trained_on
    reported = {quality.sha256 for quality in variant.quality}
    return [name for name, sha256 in origin.data_sha256.items() if sha256 not in reported]


def _constant(certificate: Certificate) -> str:
    value = certificate.constant_f1
    return "" if value is None else CONSTANT.format(constant=value)


def _scopes(certificate: Certificate) -> str:
    if len(certificate.scopes) < 2:
        return ""
    rows = [
        f"| {s.name} | {s.n_clusters} | {s.n_questions} | {s.f1:.3f} | {s.floor:.3f} |"
        for s in certificate.scopes
    ]
    return SCOPES.format(rows="\n".join(rows))


def _words(shape: Shape) -> str:
    rank = f" of rank {shape.rank}" if shape.rank else ""
    relative = ", relative positions" if shape.relative_positions else ""
    return f"{shape.embedding_bits}-bit embeddings{rank}{relative}"


def _ffn(shape: Shape) -> str:
    """Return the widest layer's width, and where layers differ what each of them has."""
    parts = {"widths": shape.layer_ffn, "heads": shape.layer_heads}
    each = [f"{name} {', '.join(map(str, of))}" for name, of in parts.items() if of]
    return f"{shape.ffn} (by layer: {'; '.join(each)})" if each else str(shape.ffn)


def _tokens(shape: Shape) -> str:
    """Say which tokens are dropped, in a sentence with a space before it."""
    if not shape.drop_after:
        return ""
    if shape.layer_keep:
        each = ", ".join(f"{share:.0%}" for share in shape.layer_keep)
        fewer = f"Its layers see {each} of the tokens"
    else:
        fewer = f"After {shape.drop_after} of its layers only {shape.keep:.0%} of the tokens go on"
    return f" {fewer}: the question's and those likeliest to begin or end an answer, {MIN_KEPT} at least."


def _parts(quality: Quality) -> str:
    values = (quality.has_answer_f1, quality.no_answer_f1, quality.forced_f1)
    return " | ".join("-" if value is None else f"{value:.3f}" for value in values)


def _bounds(certificate: Certificate) -> str:
    if not certificate.bounds:
        return ""
    named = " and ".join(f"{b.floor:.3f} by {b.method}" for b in certificate.bounds)
    return f" The bound is {named}; the study chose the method."


def _strata(certificate: Certificate, template: str = STRATA) -> str:
    """Return the certificate part by part, beside what other data showed."""
    if not certificate.strata:
        return ""
    what = "questions" if template is STRATA else "texts"
    found = {(check.data, check.stratum): check for check in certificate.checks}
    others = list(dict.fromkeys(check.data for check in certificate.checks))
    rows = [("all", certificate.n_contexts, certificate.f1, certificate.floor)]
    rows += [(s.name, s.n_contexts, s.f1, s.floor) for s in certificate.strata]
    lines = [
        f"| {name} | {n} | {f1:.3f} | {floor:.3f} |"
        + "".join(f" {_check(found.get((data, name)))} |" for data in others)
        for name, n, f1, floor in rows
    ]
    return template.format(
        heads="".join(f" {data} |" for data in others),
        rules="---|" * len(others),
        rows="\n".join(lines),
        others=OTHERS if others else "",
        shifts="".join(
            f"\n\nThe floor of {check.stratum} {what} fails on {check.data}: {check.shift}."
            for check in certificate.checks
            if check.shift
        ),
    )


def _check(check: Check | None) -> str:
    if check is None:
        return "-"
    verdict = "" if check.verdict == "holds" else f" {check.verdict}"
    return f"{check.f1:.3f}{verdict}"
