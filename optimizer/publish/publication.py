"""From finished variants to a published catalog: decoding, quality, floors, golden logits, cards."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.backends.embedded import open_session, run, run_labels
from gateway.catalog import store
from gateway.catalog.candidate import Terms
from gateway.catalog.schema import (
    Decoding,
    GoldenLabelLogits,
    GoldenLogits,
    Plan,
    Precision,
    Variant,
)
from gateway.catalog.store import Catalog, GoldenInput, GoldenTexts, Origin, Task
from gateway.domain import Question, Texts
from gateway.errors import BertierError
from gateway.qa.codec import SpanEncoder
from optimizer.certify import certification, looking
from optimizer.certify.certification import Evidence
from optimizer.certify.measured_agreement import expected
from optimizer.certify.plans import plans_of
from optimizer.data import question_sets
from optimizer.data.question_sets import Split
from optimizer.evaluation import decoding
from optimizer.models import student
from optimizer.onnx import profile
from optimizer.publish import cards, checks, repository, tasks
from optimizer.students.exported import Exported
from optimizer.students.study import Study
from optimizer.study import provenance
from optimizer.study.config import PruneConfig

log = logging.getLogger(__name__)

GOLDEN_INPUTS = (
    GoldenInput(
        "Who designed the bridge?",
        "The bridge over the gorge was designed by Ada Brunner and opened in 1931. Its single arch"
        " spans 142 metres and carries two lanes of traffic and a tramway.",
    ),
    GoldenInput(
        "How many lighthouses did the survey count?",
        "In spring the coastal survey visited every harbour between Vík and São Tomé. It noted the"
        " depth of the water, the state of the piers and the names of the pilots. A second team"
        " walked the cliffs, drew maps, and wrote down what the fishermen told them about storms.",
    ),
    GoldenInput(
        "What does the enzyme break down?",
        "Amylase breaks down starch into sugars.",
    ),
)
MAX_BATCH_INVARIANT_GAP = 1e-4
WRITTEN = {
    Precision.INT8_DYNAMIC: "dynamic INT8",
    Precision.FP16: "FP16, for a GPU",
    Precision.FP32: "FP32",
}


class NothingToPublish(BertierError):
    """The study's variants cannot be published as they are."""


def catalog_of(study: Study, target: Path) -> Catalog:
    """Return the part of the catalog, of the study's task, that publishing this study into `target` would write."""
    check_target(study, target)
    evidence = certification.evidence_of(study)
    variants = [variant_of(study, name, target, evidence) for name in study.variant_names]
    if not variants:
        raise NothingToPublish("the study has no variant")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    before = store.read(target).looks if (target / store.CATALOG).exists() else ()
    evidence, looks = looking.spend(evidence, variants, study.config.name, date, before)
    looked = plans_of(variants, evidence)
    origin = Origin(
        study=study.config.name,
        commit=provenance.commit(),
        date=date,
        seed=study.config.seed,
        data_sha256=study.questions.hashes(),
        split_version=question_sets.SPLIT_VERSION,
        trained_on=tuple(Path(d.source).name for d in study.config.data),
    )
    classes = tasks_of(study, origin)
    catalog = Catalog(
        schema_version=store.version_of(classes),
        origin=origin,
        tokenizer_sha256=store.sha256_of(study.tokenizer),
        variants=tuple(variants),
        plans=tuple(rated.plan for rated in looked.kept),
        golden_inputs=() if classes else GOLDEN_INPUTS,
        looks=looks,
        tasks=classes,
    )
    return expected(catalog, evidence, looked.n_looked_at)


def tasks_of(study: Study, origin: Origin) -> tuple[Task, ...]:
    """Return the study's classification as the catalog has it; none: it answers questions."""
    task = study.config.task
    if task is None:
        return ()
    pair = task.text_pair is not None
    return (Task(task.name, study.questions.labels, pair, golden_texts(pair=pair), origin),)


def golden_texts(*, pair: bool) -> tuple[GoldenTexts, ...]:
    """Return the golden inputs of a classification: the texts of those of question answering."""
    return tuple(
        GoldenTexts(g.question, g.context) if pair else GoldenTexts(g.context)
        for g in GOLDEN_INPUTS
    )


def check_target(study: Study, target: Path) -> None:
    """Fail before hours of training. Raises: RepositoryError for names or labels that the repository has otherwise."""
    present = store.read(target) if (target / store.CATALOG).exists() else None
    task = study.config.task
    tasks.check_name(present, tasks.name_of(study.config), study.variant_names)
    if task is not None and tasks.task_in(present, task.name):
        pair = task.text_pair is not None
        tasks.check_labels(present, task.name, study.questions.labels, pair=pair)


def publish(
    study: Study,
    target: Path,
    terms: Terms | None = None,
    *,
    allow_dominated: bool = False,
    allow_constant: bool = False,
) -> Catalog:
    """Publish the study's variants to a model repository, but for members of the Pareto front that turn out dominated.

    `terms`: of a candidate, which is tried beside the current catalog. Returns the part of the study's task; what the
    repository has for other tasks stays. Raises: NothingToPublish when a gate is closed.
    """
    catalog = catalog_of(study, target)
    if study.config.publish.leave_out_weak:
        catalog = without_weak(catalog, allow_constant=allow_constant)
    elif not allow_dominated:
        catalog = without_dominated(catalog, study.members)
    if not allow_constant:
        check_constant(catalog)
    check_publishable(catalog, study.config.certify.min_floor, allow_dominated=allow_dominated)
    publications = [
        repository.Publication(
            variant,
            Exported(study, variant.name).file,
            cards.card(
                variant,
                catalog.direct(variant.name),
                catalog.origin,
                tasks.task_in(catalog, variant.task),
            ),
        )
        for variant in catalog.variants
    ]
    present = store.read(target) if (target / store.CATALOG).exists() else None
    whole = tasks.beside(catalog, present)
    repository.publish(target, publications, whole, study.tokenizer, terms)
    return catalog


def check_constant(catalog: Catalog) -> None:
    """Raises: NothingToPublish for a variant that is no better than always answering "no answer", or one label."""
    score, constant = _words_of(catalog)
    if found := checks.no_better_than_silence(catalog):
        named = "; ".join(
            f"{name}: {score} {certificate.f1:.4f}, always {constant} {certificate.constant_f1:.4f}"
            for name, certificate in found.items()
        )
        raise NothingToPublish(
            f"not published: no better than always answering {constant} on the certifying split:"
            f" {named}. Train them longer or remove them from the study file. To try the pipeline, add"
            " --allow-constant"
        )


def _words_of(catalog: Catalog) -> tuple[str, str]:
    """Return what the score of one task's variants and its constant answer are called."""
    return ("accuracy", "the most frequent label") if catalog.tasks else ("F1", "'no answer'")


def without_dominated(catalog: Catalog, members: Collection[str]) -> Catalog:
    """Return the catalog without members of the search's Pareto front that another variant dominates.

    The search picked them by their F1 as slices; the study file does not name them. The remaining floors
    still hold: they were certified jointly with those left out.
    """
    if checks.unprofiled(catalog):
        return catalog  # not comparable; `check_publishable` reports it
    found = {name: by for name, by in checks.dominated(catalog).items() if name in members}
    for name, by in found.items():
        log.warning(
            "%s is not published: %s is no slower, no larger and has no lower floor", name, by
        )
    return _without(catalog, found)


def without_weak(catalog: Catalog, *, allow_constant: bool) -> Catalog:
    """Return the catalog without variants that another one beats, or that are no better than "no answer".

    One at least stays: where none is better than "no answer", all stay for `check_constant` to refuse.
    """
    silent = {} if allow_constant else checks.no_better_than_silence(catalog)
    if len(silent) == len(catalog.variants):
        return catalog
    score, constant = _words_of(catalog)
    for name, certificate in silent.items():
        log.warning(
            "%s is not published: %s %.3f is no better than always answering %s",
            *(name, score, certificate.f1, constant),
        )
    catalog = _without(catalog, silent)
    return without_dominated(catalog, [v.name for v in catalog.variants])


def _without(catalog: Catalog, gone: Collection[str]) -> Catalog:
    """Return the catalog without these variants, and without the plans that ask them."""
    plans = [p for p in catalog.plans if not set(gone) & set(p.variants)]
    return replace(
        catalog,
        variants=tuple(v for v in catalog.variants if v.name not in gone),
        plans=tuple(_not_compared_to(p, gone) for p in plans),
    )


def _not_compared_to(plan: Plan, gone: Collection[str]) -> Plan:
    """Return the plan without its loss to, or agreement with, a variant that was left out."""
    paired, agreement = plan.certificate.paired, plan.agreement
    if paired is not None and paired.to in gone:
        plan = replace(plan, certificate=replace(plan.certificate, paired=None))
    if agreement is not None and agreement.reference in gone:
        plan = replace(plan, agreement=None)
    return plan


def check_publishable(catalog: Catalog, min_floor: float | None, *, allow_dominated: bool) -> None:
    """Raises: NothingToPublish; the message says what to do."""
    if unprofiled := checks.unprofiled(catalog):
        raise NothingToPublish(
            f"not published: no latency at {' and '.join(map(str, checks.BUCKETS))} tokens of"
            f" {', '.join(unprofiled)}; remove variants/<name>/profile from the run folder and"
            " publish again"
        )
    if unmet := checks.unmet(catalog, min_floor):
        raise NothingToPublish(f"not published: {unmet}")
    dominated = checks.dominated(catalog)
    if dominated and not allow_dominated:
        named = ", ".join(f"{name} (by {other})" for name, other in dominated.items())
        raise NothingToPublish(
            f"not published: dominated by a variant that is no slower, no larger and certified no"
            f" lower: {named}; remove them from the study file, or add --allow-dominated"
        )


def variant_of(study: Study, name: str, target: Path, evidence: Evidence) -> Variant:
    """Return the catalog's entry of a finished variant."""
    exported = Exported(study, name).export()
    how = decoding_of(study, name)
    bits = study.embedding_bits(name)
    precision = study.precision(name)
    variant = Variant(
        name=name,
        version=repository.next_version(target, name, exported["sha256"]),
        sha256=exported["sha256"],
        size_bytes=exported["size_bytes"],
        parameters=exported["parameters"],
        shape=student.shape_of(study.model(name), bits),
        precision=precision,
        recipe=_recipe(study, name),
        batch_invariant=is_batch_invariant(precision, exported["batch_variance"]),
        instances=repository.INSTANCES,
        decoding=how,
        quality=(),
        profile=Exported(study, name).profile(),
        golden=golden_logits(study, name),
        golden_tolerance=study.config.certify.golden_tolerance,
        task=tasks.name_of(study.config),
    )
    quality = certification.qualities_of(variant, evidence)
    return replace(variant, quality=quality)


def is_batch_invariant(precision: Precision, gap: float) -> bool:
    """Return whether answers may be batched; dynamic INT8 rounds by the whole batch, so it never may."""
    return precision is not Precision.INT8_DYNAMIC and gap <= MAX_BATCH_INVARIANT_GAP


def decoding_of(study: Study, name: str) -> Decoding:
    """Return the variant's decoding, fitted on the search split."""
    examples = study.questions.certifying(Split.SEARCH)
    readings = Exported(study, name).readings("search", examples)
    if study.config.task is not None:
        return decoding.fit_temperature(examples, readings)
    return decoding.fit_answers(examples, readings)


def golden_logits(
    study: Study, name: str
) -> tuple[GoldenLogits, ...] | tuple[GoldenLabelLogits, ...]:
    """Return the logits of the model for the golden inputs on this host, without padding."""
    session = open_session(Exported(study, name).file, precision=study.precision(name))
    encoder = SpanEncoder.from_file(study.tokenizer)
    if (task := study.config.task) is not None:
        texts = golden_texts(pair=task.text_pair is not None)
        asked = [
            run_labels(session, encoder.encode_texts(Texts(t.text, t.text_pair))) for t in texts
        ]
        return tuple(GoldenLabelLogits(_rounded(found.labels[0])) for found in asked)
    found = []
    for golden in GOLDEN_INPUTS:
        windows = encoder.encode(Question(golden.question, golden.context))
        logits = run(session, windows)
        start, end = logits.start[0, : windows.n_tokens], logits.end[0, : windows.n_tokens]
        found.append(GoldenLogits(_rounded(start), _rounded(end)))
    return tuple(found)


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)


def _recipe(study: Study, name: str) -> str:
    config, written = study.student(name), WRITTEN[study.precision(name)]
    if config is None:
        taught = study.config.outside_teachers
        if study.config.finished or not taught:
            return f"Fine-tuned, then {written}: the largest model of its study."
        return f"Fine-tuned on the answers of {', '.join(taught)}, then {written}."
    layers = ", ".join(str(layer) for layer in config.layers)
    base = config.base or config.start or study.config.student_weights or study.config.largest_name
    teachers = ", ".join(study.config.outside_teachers) or study.config.largest_name
    pruned = _pruned(config.prune) if config.prune else ""
    return (
        f"Distilled from {teachers}; cut from {base}: its layers {layers}{pruned}; then {written}."
    )


def _pruned(how: PruneConfig) -> str:
    if how.weights is None:
        return f", pruned by {how.method} while it learned"
    chosen = f"chosen by {how.ticket}" if how.ticket else "the smallest"
    return f" ({100 * how.weights:g} % of the weights are 0, {chosen})"


def reprofiled(published: Path) -> Catalog:
    """Return a repository's catalog with latency profiles measured again on this host."""
    catalog = store.read(published)
    files = {v.name: store.model_path(published, v) for v in catalog.variants}
    variants = [
        replace(v, profile=profile.profile(files[v.name], precision=v.precision))
        for v in catalog.variants
    ]
    return replace(catalog, variants=tuple(variants))
