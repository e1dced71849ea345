"""Accounts for a look at certifying questions in the catalog's ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateway.catalog.schema import Variant
from gateway.catalog.store import Look
from optimizer.certify import ledger
from optimizer.certify.certification import Evidence, method_of
from optimizer.data.question_sets import SPLIT_VERSION


def spend(
    evidence: Evidence, variants: Sequence[Variant], study: str, date: str, looks: Sequence[Look]
) -> tuple[Evidence, tuple[Look, ...]]:
    """Return the evidence with the part of delta to spend, and the updated ledger. Raises: DataError."""
    how, keys = evidence.how, keys_of(evidence)
    claims = ledger.claims_of(variants, how.method, how.delta, evidence.data)
    look = ledger.next_look(looks, keys, claims, how.delta, study, date)
    look = ledger.by_method(look, method_of(how))
    return replace(evidence, spent=look.spent), ledger.with_look(looks, look)


def keys_of(evidence: Evidence) -> list[str]:
    """Return a key for each data set that floors are made from."""
    named = zip(evidence.data_sha256.split(", "), evidence.data.split(", "), strict=False)
    suffix = f" (split {SPLIT_VERSION})" if evidence.hold_out else ""
    return [f"{sha256 or name}{suffix}" for sha256, name in named]
