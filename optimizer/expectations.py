"""What a catalog says of itself so that a gateway can see whether it still holds. Pure.

How each plan agrees with the largest variant, and how each variant's confidence is spread, on the questions
that floors are made from.

Legend: n questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gateway.catalog import Catalog
from gateway.domain import Answer
from gateway.published import Agreement, Confidence, Host, Plan, Variant
from optimizer.certify import Bound, ceiling
from optimizer.data import Example
from optimizer.evaluate import means_by_context
from optimizer.strata import rounded_down

DECILES = np.linspace(0.1, 0.9, 9)
DECIMALS = 4
# Means over contexts stand for the rates of requests only where nearly every context holds such questions.
MIN_CONTEXTS = 0.75

Answers = Mapping[str, Sequence[Answer]]  # by variant, (n,)


def with_expectations(
    catalog: Catalog,
    examples: Sequence[Example],  # (n,)
    answers: Answers,
    host: Host,
    bound: Bound,
    delta: float,
) -> Catalog:
    """Return the catalog with what to expect of plans and variants; `host`: that answered.

    The bounds of all plans hold jointly at 1 - delta; those of all variants do, too.
    """
    reference = largest(catalog.variants).name
    shares = delta / len(catalog.plans), delta / len(catalog.variants)
    plans = tuple(
        replace(
            plan, agreement=agreement(plan, examples, answers, reference, host, bound, shares[0])
        )
        for plan in catalog.plans
    )
    variants = tuple(
        replace(
            v, confidence=confidence(examples, _scores(answers[v.name]), host, bound, shares[1])
        )
        for v in catalog.variants
    )
    return replace(catalog, plans=plans, variants=variants)


def largest(variants: Sequence[Variant]) -> Variant:
    """Return the variant that judges the others, and that losses are certified to."""
    return max(variants, key=lambda v: v.size_bytes)


def agreement(
    plan: Plan,
    examples: Sequence[Example],  # (n,)
    answers: Answers,
    reference: str,
    host: Host,
    bound: Bound,
    delta: float,
) -> Agreement | None:
    """Return how a plan agrees with the reference; None where too little is answered by others to tell."""
    ours, by_another = played(plan, answers, reference)
    theirs = np.array([a.text for a in answers[reference]], dtype=object)
    some = by_another & ((ours != "") | (theirs != ""))
    both = some & (ours != "") & (theirs != "")
    contexts = {examples[i].context for i in np.flatnonzero(some).tolist()}
    every = {example.context for example in examples}
    if not both.any() or len(contexts) < MIN_CONTEXTS * len(every):
        return None
    both_answer, both_floor = _rate(examples, some, both, bound, delta / 2)
    same_answer, same_floor = _rate(examples, both, ours == theirs, bound, delta / 2)
    n = int(some.sum())
    return Agreement(
        reference, len(contexts), n, both_answer, both_floor, same_answer, same_floor, host
    )


def played(plan: Plan, answers: Answers, reference: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the plan's texts (n,), and where they are another variant's than the reference's (n,)."""
    stages = [answers[name] for name in plan.variants]
    texts = np.array([a.text for a in stages[0]], dtype=object)
    by = np.zeros(len(texts), dtype=int)
    for i, threshold in enumerate(plan.thresholds):
        doubted = (by == i) & (_scores(stages[i]) < threshold)
        by[doubted] = i + 1
        texts[doubted] = np.array([a.text for a in stages[i + 1]], dtype=object)[doubted]
    return texts, np.array([name != reference for name in plan.variants])[by]


def confidence(
    examples: Sequence[Example],  # (n,)
    scores: np.ndarray,  # (n,)
    host: Host,
    bound: Bound,
    delta: float,
) -> Confidence:
    """Return how scores are spread between their deciles, with bounds that hold jointly at 1 - delta."""
    edges = np.unique(np.round(np.quantile(scores, DECILES), DECIMALS))
    means = [means_by_context(examples, scores <= edge) for edge in edges]
    each = delta / (2 * len(edges))
    low = [rounded_down(bound(m, each)) for m in means]
    high = [1 - rounded_down(1 - ceiling(bound, m, each)) for m in means]
    return Confidence(
        edges=tuple(edges.tolist()),
        shares=tuple(float(m.mean()) for m in means),
        low=tuple(low),
        high=tuple(high),
        n_contexts=len(means[0]),
        n_questions=len(examples),
        host=host,
    )


def _rate(
    examples: Sequence[Example], among: np.ndarray, hits: np.ndarray, bound: Bound, delta: float
) -> tuple[float, float]:
    """Return the mean over contexts of a rate among some of their questions, and a floor under it."""
    rows = np.flatnonzero(among).tolist()
    means = means_by_context([examples[i] for i in rows], hits[rows].astype(float))
    return float(means.mean()), rounded_down(bound(means, delta))


def _scores(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([a.score for a in answers])
