"""Certifies the variants of a published repository again: makes new plans, changes no model file.

Needs the repository and the question sets only, not the run folder that the models come from.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.catalog import store
from gateway.catalog.schema import Plan, Variant
from gateway.catalog.store import Catalog
from gateway.domain import Answer
from gateway.errors import RepositoryError
from optimizer.certify import certification, looking, plans, strata
from optimizer.certify.certification import Evidence, QuestionSet
from optimizer.certify.measured_agreement import expected
from optimizer.certify.plans import RatedPlan
from optimizer.data import lineage
from optimizer.data.splits import StudyQuestions
from optimizer.evaluation import cached
from optimizer.publish import cards, repository, tasks
from optimizer.study.config import StudyConfig


def certify(
    published: Path, config: StudyConfig, data_dir: Path, folder: Path
) -> tuple[Catalog, list[RatedPlan]]:
    """Return the catalog with newly certified plans, and the plans with their costs.

    `folder` caches answers by model and host, so a killed run resumes. Raises: RepositoryError, DataError.
    """
    catalog = _sound(published, config)
    evidence = evidence_of(published, catalog, config, data_dir, folder)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    evidence, looks = looking.spend(evidence, catalog.variants, config.name, date, catalog.looks)
    looked = plans.plans_of(catalog.variants, evidence)
    found = replace(catalog, plans=tuple(r.plan for r in looked.kept), looks=looks)
    return expected(found, evidence, looked.n_looked_at), looked.kept


def certify_as_they_are(
    published: Path, config: StudyConfig, data_dir: Path, folder: Path
) -> Catalog:
    """Return the catalog with its own plans certified again: nothing is chosen anew.

    Asks only the questions that floors are made from. What was measured on test data stays, beside the new
    floors. Raises: RepositoryError, DataError.
    """
    catalog = _sound(published, config)
    evidence = replace(evidence_of(published, catalog, config, data_dir, folder), reports=())
    date = datetime.now(UTC).isoformat(timespec="seconds")
    evidence, looks = looking.spend(evidence, catalog.variants, config.name, date, catalog.looks)
    answers = {v.name: _answers(v, evidence) for v in catalog.variants}
    n_cascades = plans.most_cascades(len(catalog.variants))  # some may have been left out since
    found = plans.certified_as_they_are(
        catalog.plans, catalog.variants, answers, evidence, n_cascades
    )
    kept = tuple(_with_checks(*each) for each in zip(found, catalog.plans, strict=True))
    variants = tuple(_with_quality(v, evidence) for v in catalog.variants)
    again = replace(catalog, variants=variants, plans=kept, looks=looks)
    n_looked_at = max(len(kept), len(variants) + n_cascades)
    return expected(again, evidence, n_looked_at)


def _sound(published: Path, config: StudyConfig) -> Catalog:
    """Return the part of the study's task. Raises: RepositoryError."""
    catalog = store.read(published)
    if problems := store.check_files(published, catalog):
        raise RepositoryError("not certified: " + "; ".join(problems))
    return tasks.part_of(catalog, tasks.name_of(config))


def _answers(variant: Variant, evidence: Evidence) -> list[Answer]:
    readings, _ = evidence.ask(variant.name, evidence.calibrate)
    asked = zip(evidence.calibrate.examples, readings, strict=True)
    return [item.answer_of(reading, variant.decoding) for item, reading in asked]


def _with_quality(variant: Variant, evidence: Evidence) -> Variant:
    """Return the variant with its scores on the questions that make floors now."""
    found = certification.qualities_of(variant, evidence)
    names = {quality.data for quality in found}
    others = (quality for quality in variant.quality if quality.data not in names)
    return replace(variant, quality=(*found, *others))


def _with_checks(plan: Plan, before: Plan) -> Plan:
    """Return the plan with its former reach, and the measured values of its former checks on test data."""
    certificate, old = plan.certificate, before.certificate
    floors = {s.name: s.floor for s in certificate.strata} | {strata.ALL: certificate.floor}
    checks = tuple(
        replace(check, floor=floors[check.stratum], shift="")
        for check in old.checks
        if check.data not in strata.HELD_OUT_NAMES and check.stratum in floors
    )
    paired = certificate.paired
    if paired is not None and old.paired is not None:
        kept = (c for c in old.paired.checks if c.data not in strata.HELD_OUT_NAMES)
        paired = replace(paired, checks=tuple(replace(c, certified=paired.loss) for c in kept))
    checked = replace(certificate, checks=checks, paired=paired)
    return replace(plan, certificate=checked, reach=before.reach)


def evidence_of(
    published: Path, catalog: Catalog, config: StudyConfig, data_dir: Path, folder: Path
) -> Evidence:
    """Return the study's questions, answered by the published files."""
    questions = StudyQuestions(config, data_dir)
    hashes = questions.hashes()
    sources = [Path(d.source).name for d in config.data if d.certifies]
    lineage.check_catalog(catalog.origin, {s: hashes[s] for s in sources if s in hashes})
    tokenizer = published / store.TOKENIZER

    def ask(name: str, questions: QuestionSet) -> tuple[list[Any], list[float]]:
        variant = catalog.variant(name)
        file = store.model_path(published, variant)
        model = cached.Model(file, variant.sha256, tokenizer, variant.precision)
        return cached.readings(
            model, folder / "published" / name, questions.name, questions.examples
        )

    return certification.gather(config, questions, tokenizer, ask)


def write(published: Path, catalog: Catalog) -> None:
    """Write the catalog, of one task, beside what the repository has for others, and model cards with its floors."""
    texts = {
        v.name: cards.card(
            v, catalog.direct(v.name), catalog.origin, tasks.task_in(catalog, v.task)
        )
        for v in catalog.variants
    }
    repository.recertify(published, tasks.beside(catalog, store.read(published)), texts)
