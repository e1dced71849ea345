"""Certifies the variants of a published repository again: makes new plans, changes no model file.

Needs the repository and the question sets only, not the run folder that the models come from.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.errors import RepositoryError
from gateway.qa.codec import Reading
from optimizer.certify import certification, looking, plans
from optimizer.certify.certification import Evidence, QuestionSet
from optimizer.certify.measured_agreement import expected
from optimizer.certify.plans import RatedPlan
from optimizer.data import lineage
from optimizer.data.splits import StudyQuestions
from optimizer.evaluation import cached
from optimizer.publish import cards, repository
from optimizer.study.config import StudyConfig


def certify(
    published: Path, config: StudyConfig, data_dir: Path, folder: Path
) -> tuple[Catalog, list[RatedPlan]]:
    """Return the catalog with newly certified plans, and the plans with their costs.

    `folder` caches answers by model and host, so a killed run resumes. Raises: RepositoryError, DataError.
    """
    catalog = store.read(published)
    problems = store.check_files(published, catalog)
    if problems:
        raise RepositoryError("not certified: " + "; ".join(problems))
    evidence = evidence_of(published, catalog, config, data_dir, folder)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    evidence, looks = looking.spend(evidence, catalog.variants, config.name, date, catalog.looks)
    looked = plans.plans_of(catalog.variants, evidence)
    found = replace(catalog, plans=tuple(r.plan for r in looked.kept), looks=looks)
    return expected(found, evidence, looked.n_looked_at), looked.kept


def evidence_of(
    published: Path, catalog: Catalog, config: StudyConfig, data_dir: Path, folder: Path
) -> Evidence:
    """Return the study's questions, answered by the published files."""
    questions = StudyQuestions(config, data_dir)
    hashes = questions.hashes()
    sources = [Path(d.source).name for d in config.data if d.certifies]
    lineage.check_catalog(catalog.origin, {s: hashes[s] for s in sources if s in hashes})
    tokenizer = published / store.TOKENIZER

    def ask(name: str, questions: QuestionSet) -> tuple[list[Reading], list[float]]:
        variant = catalog.variant(name)
        file = store.model_path(published, variant)
        model = cached.Model(file, variant.sha256, tokenizer, variant.precision)
        return cached.readings(
            model, folder / "published" / name, questions.name, questions.examples
        )

    return certification.gather(config, questions, tokenizer, ask)


def write(published: Path, catalog: Catalog) -> None:
    """Write the catalog, and model cards with its floors."""
    texts = {
        v.name: cards.card(v, catalog.direct(v.name), catalog.origin) for v in catalog.variants
    }
    repository.recertify(published, catalog, texts)
