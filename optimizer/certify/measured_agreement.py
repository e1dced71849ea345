"""Measures the expected agreement and confidence of published or finished variants."""

from __future__ import annotations

import numpy as np

from gateway.catalog.store import Catalog
from optimizer.certify import expected_agreement, strata
from optimizer.certify.certification import Evidence
from optimizer.certify.expected_agreement import FloorQuestions
from optimizer.onnx import profile


def expected(catalog: Catalog, evidence: Evidence, n_looked_at: int | None = None) -> Catalog:
    """Return the catalog with expected agreement and confidence, measured on the questions of its floors.

    `n_looked_at`: number of plans that the catalog's plans were chosen from; default: no others.
    """
    questions = evidence.calibrate
    made = strata.makes_floors(questions.examples, hold_out=evidence.hold_out)
    answers = {}
    for variant in catalog.variants:
        readings, _ = evidence.ask(variant.name, questions)
        asked = zip(questions.examples, readings, made, strict=True)
        answers[variant.name] = [e.answer_of(r, variant.decoding) for e, r, keep in asked if keep]
    rows = np.flatnonzero(made)
    examples = [questions.examples[i] for i in rows.tolist()]
    return expected_agreement.with_expectations(
        catalog,
        FloorQuestions(examples, questions.tokens[rows]),
        answers,
        profile.here(),
        evidence.budget,
        n_looked_at or len(catalog.plans),
    )
