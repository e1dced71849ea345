"""Asks published or finished variants for what their catalog lets gateways expect."""

from __future__ import annotations

import numpy as np

from gateway.catalog.store import Catalog
from gateway.qa import codec
from optimizer.certify import expected_agreement, strata
from optimizer.certify.certification import Evidence
from optimizer.certify.expected_agreement import Asked
from optimizer.onnx import profile


def expected(catalog: Catalog, evidence: Evidence, n_looked_at: int | None = None) -> Catalog:
    """Return the catalog with what to expect of its plans and variants on the questions of its floors.

    `n_looked_at`: of how many plans those of the catalog were kept; none given: of so many.
    """
    asked = evidence.calibrate
    made = strata.makes_floors(asked.examples, hold_out=evidence.hold_out)
    answers = {}
    for variant in catalog.variants:
        readings, _ = evidence.ask(variant.name, asked)
        kept = (r for r, keep in zip(readings, made, strict=True) if keep)
        answers[variant.name] = [codec.answer_of(reading, variant.decoding) for reading in kept]
    rows = np.flatnonzero(made)
    examples = [asked.examples[i] for i in rows.tolist()]
    return expected_agreement.with_expectations(
        catalog,
        Asked(examples, asked.tokens[rows]),
        answers,
        profile.here(),
        evidence.budget,
        n_looked_at or len(catalog.plans),
    )
