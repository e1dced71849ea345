"""What a catalog says of itself so that a gateway can see whether it still holds. Pure.

How each plan agrees with the largest variant, and how each variant's confidence is spread, on the questions
that floors are made from. All are rates of requests, every question asked alike: that is what a gateway sees.

Legend: n questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from gateway.catalog.schema import Agreement, Confidence, Host, Plan, Spread, Variant
from gateway.catalog.store import Catalog
from gateway.domain import Answer
from optimizer.certify.bounds import betting_floor, ratio_floor
from optimizer.certify.strata import LENGTH_EDGES, rounded_down
from optimizer.data import clusters
from optimizer.data.question_sets import Example

DECILES = np.linspace(0.1, 0.9, 9)
DECIMALS = 4
# A cluster with more questions counts for as many: a bound must know the most beforehand.
MOST_QUESTIONS = 16
WORTH_WATCHING = 0.05  # a floor under both rates below this would watch nothing
MOST_TOKENS = (*LENGTH_EDGES, 1_000_000_000)  # of each length that confidence is told by

Answers = Mapping[str, Sequence[Answer]]  # by variant, (n,)


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions that floors are made from."""

    examples: Sequence[Example]  # (n,)
    tokens: np.ndarray  # (n,) int, of question and context together


def with_expectations(
    catalog: Catalog,
    asked: Asked,
    answers: Answers,
    host: Host,
    delta: float,
    n_looked_at: int,
) -> Catalog:
    """Return the catalog with what to expect of plans and variants; `host`: that answered.

    The bounds of all plans looked at hold jointly at 1 - delta; those of all variants do, too.
    """
    reference = largest(catalog.variants).name
    shares = delta / n_looked_at, delta / len(catalog.variants)
    plans = tuple(
        replace(
            plan, agreement=agreement(plan, asked.examples, answers, reference, host, shares[0])
        )
        for plan in catalog.plans
    )
    variants = tuple(
        replace(v, confidence=confidence(asked, _scores(answers[v.name]), host, shares[1]))
        for v in catalog.variants
    )
    return replace(catalog, plans=plans, variants=variants)


def largest(variants: Sequence[Variant]) -> Variant:
    """Return the variant that judges the others, and that losses are certified to.

    By parameters: bytes tell of the precision, too, and FP16 makes a student larger than an INT8 teacher.
    """
    return max(variants, key=lambda v: (v.parameters, v.size_bytes))


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
    number = clusters.numbers(examples)
    both_answer, both_floor = rate(number, some, both, delta / 2)
    same_answer, same_floor = rate(number, both, ours == theirs, delta / 2)
    if max(both_floor, same_floor) < WORTH_WATCHING:
        return None
    return Agreement(
        reference=reference,
        n_contexts=len({e.context for e, kept in zip(examples, some, strict=True) if kept}),
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
    asked: Asked,
    scores: np.ndarray,  # (n,)
    host: Host,
    delta: float,
) -> Confidence:
    """Return how scores are spread between their deciles, with bounds that hold jointly at 1 - delta.

    Half of delta is for all questions, half for those of each length: a variant is not sent every length.
    """
    edges = np.unique(np.round(np.quantile(scores, DECILES), DECIMALS))
    number = clusters.numbers(asked.examples)
    parts = [(n, among) for n, among in _by_length(asked.tokens) if among.any()]
    whole = _spread(number, np.ones(len(scores), dtype=bool), scores, edges, delta / 2)
    each = delta / 2 / len(parts)
    return Confidence(
        edges=tuple(edges.tolist()),
        shares=whole.shares,
        low=whole.low,
        high=whole.high,
        n_contexts=len({e.context for e in asked.examples}),
        n_questions=whole.n_questions,
        host=host,
        by_length=tuple(
            replace(_spread(number, among, scores, edges, each), max_tokens=most)
            for most, among in parts
        ),
    )


def _by_length(tokens: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return the most tokens of each length, and which questions are of it."""
    return [
        (most, (tokens > least) & (tokens <= most)) for least, most in pairwise((0, *MOST_TOKENS))
    ]


def _spread(
    number: np.ndarray, among: np.ndarray, scores: np.ndarray, edges: np.ndarray, delta: float
) -> Spread:
    """Return the shares of scores up to each edge among some questions, bounded on both sides."""
    each = delta / (2 * len(edges))
    low = [rate(number, among, scores <= edge, each) for edge in edges]
    above = [rate(number, among, scores > edge, each) for edge in edges]
    return Spread(
        max_tokens=0,
        shares=tuple(share for share, _ in low),
        low=tuple(floor for _, floor in low),
        high=tuple(1 - floor for _, floor in above),
        n_questions=int(among.sum()),
    )


def rate(
    number: np.ndarray,  # (n,) int, of the cluster
    among: np.ndarray,  # (n,) bool
    hits: np.ndarray,  # (n,) bool, of any questions
    delta: float,
) -> tuple[float, float]:
    """Return the rate of hits among some questions, each asked alike, and a floor under it.

    The floor is one under the mean of the clusters' rates as well: a gateway counts one factor a text, and
    sees some or all of the questions on it. Of a cluster with more than MOST_QUESTIONS, each of its
    questions weighs accordingly less.
    """
    weights = np.minimum(1.0, MOST_QUESTIONS / np.maximum(1, np.bincount(number)))
    counts, hit = (weights * np.bincount(number, kept) for kept in (among, among & hits))
    some = counts > 0
    hit, counts = np.minimum(hit, counts)[some], np.minimum(counts, MOST_QUESTIONS)[some]
    floor = ratio_floor(hit, counts, MOST_QUESTIONS, delta / 2)
    of_clusters = betting_floor(hit / counts, delta / 2)
    return float(hit.sum() / counts.sum()), rounded_down(min(floor, of_clusters))


def _scores(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([a.score for a in answers])
