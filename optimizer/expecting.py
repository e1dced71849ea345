"""Asks published or finished variants for what their catalog lets gateways expect."""

from __future__ import annotations

from gateway import spans
from gateway.catalog import Catalog
from optimizer import expectations, profiling, strata
from optimizer.certification import Evidence


def expected(catalog: Catalog, evidence: Evidence) -> Catalog:
    """Return the catalog with what to expect of its plans and variants on the questions of its floors."""
    asked = evidence.calibrate
    certified = [not strata.is_fresh(e.context) for e in asked.examples]
    answers = {}
    for variant in catalog.variants:
        readings, _ = evidence.ask(variant.name, asked)
        kept = (r for r, keep in zip(readings, certified, strict=True) if keep)
        answers[variant.name] = [spans.answer_of(reading, variant.decoding) for reading in kept]
    examples = [e for e, keep in zip(asked.examples, certified, strict=True) if keep]
    return expectations.with_expectations(
        catalog, examples, answers, profiling.here(), evidence.how.delta
    )
