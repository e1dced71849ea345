"""What a catalog says of itself so that a gateway can see whether it still holds. Pure.

How each plan agrees with the largest variant, and how each variant's confidence is spread, on the questions
that floors are made from. All are rates of requests, every question asked alike: that is what a gateway sees.

Legend: n questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gateway.catalog import Catalog
from gateway.domain import Answer
from gateway.published import Agreement, Confidence, Host, Plan, Variant
from optimizer.certify import ratio_floor
from optimizer.data import Example
from optimizer.evaluate import numbered_contexts
from optimizer.strata import rounded_down

DECILES = np.linspace(0.1, 0.9, 9)
DECIMALS = 4
# A context with more questions counts for as many: a bound must know the most beforehand.
MOST_QUESTIONS = 16

Answers = Mapping[str, Sequence[Answer]]  # by variant, (n,)


def with_expectations(
    catalog: Catalog,
    examples: Sequence[Example],  # (n,)
    answers: Answers,
    host: Host,
    delta: float,
) -> Catalog:
    """Return the catalog with what to expect of plans and variants; `host`: that answered.

    The bounds of all plans hold jointly at 1 - delta; those of all variants do, too.
    """
    reference = largest(catalog.variants).name
    shares = delta / len(catalog.plans), delta / len(catalog.variants)
    plans = tuple(
        replace(plan, agreement=agreement(plan, examples, answers, reference, host, shares[0]))
        for plan in catalog.plans
    )
    variants = tuple(
        replace(v, confidence=confidence(examples, _scores(answers[v.name]), host, shares[1]))
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
    delta: float,
) -> Agreement | None:
    """Return how a plan agrees with the reference; None where too little is answered by others to tell."""
    ours, by_another = played(plan, answers, reference)
    theirs = np.array([a.text for a in answers[reference]], dtype=object)
    some = by_another & ((ours != "") | (theirs != ""))
    both = some & (ours != "") & (theirs != "")
    if not both.any():
        return None
    contexts = numbered_contexts(examples)
    both_answer, both_floor = rate(contexts, some, both, delta / 2)
    same_answer, same_floor = rate(contexts, both, ours == theirs, delta / 2)
    if not both_floor and not same_floor:
        return None
    return Agreement(
        reference=reference,
        n_contexts=len(np.unique(contexts[some])),
        n_questions=int(some.sum()),
        both_answer=both_answer,
        both_answer_floor=both_floor,
        same_answer=same_answer,
        same_answer_floor=same_floor,
        host=host,
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
    delta: float,
) -> Confidence:
    """Return how scores are spread between their deciles, with bounds that hold jointly at 1 - delta."""
    edges = np.unique(np.round(np.quantile(scores, DECILES), DECIMALS))
    contexts, every = numbered_contexts(examples), np.ones(len(scores), dtype=bool)
    each = delta / (2 * len(edges))
    low = [rate(contexts, every, scores <= edge, each) for edge in edges]
    above = [rate(contexts, every, scores > edge, each) for edge in edges]
    return Confidence(
        edges=tuple(edges.tolist()),
        shares=tuple(share for share, _ in low),
        low=tuple(floor for _, floor in low),
        high=tuple(1 - floor for _, floor in above),
        n_contexts=len(np.unique(contexts)),
        n_questions=len(examples),
        host=host,
    )


def rate(
    contexts: np.ndarray,  # (n,) int
    among: np.ndarray,  # (n,) bool
    hits: np.ndarray,  # (n,) bool, of any questions
    delta: float,
) -> tuple[float, float]:
    """Return the rate of hits among some questions, each asked alike, and a floor under it.

    Of a context with more than MOST_QUESTIONS, each of its questions weighs accordingly less.
    """
    weights = np.minimum(1.0, MOST_QUESTIONS / np.maximum(1, np.bincount(contexts)))
    counts, hit = (weights * np.bincount(contexts, kept) for kept in (among, among & hits))
    some = counts > 0
    hit, counts = np.minimum(hit, counts)[some], np.minimum(counts, MOST_QUESTIONS)[some]
    floor = ratio_floor(hit, counts, MOST_QUESTIONS, delta)
    return float(hit.sum() / counts.sum()), rounded_down(floor)


def _scores(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([a.score for a in answers])
