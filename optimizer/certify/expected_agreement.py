"""Expected agreement and confidence, which let a gateway see whether certificates still hold. Pure.

Measured on the questions that floors are made from: how often each plan agrees with the largest variant,
and how each variant's confidence is distributed. All rates are per question, as a gateway sees them.

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
from optimizer.certify.cascades import last_stages
from optimizer.certify.strata import LENGTH_EDGES, rounded_down
from optimizer.data import clusters
from optimizer.data.items import Item

DECILES = np.linspace(0.1, 0.9, 9)
DECIMALS = 4
# A cluster with more questions counts as this many: the bound needs a maximum fixed beforehand.
MOST_QUESTIONS = 16
WORTH_WATCHING = 0.05  # if both floors are below this, no alarm could ever be raised
MOST_TOKENS = (
    *LENGTH_EDGES,
    1_000_000_000,
)  # upper edges of the lengths that confidence is grouped by

AnswersByVariant = Mapping[str, Sequence[Answer]]  # by variant, (n,)


@dataclass(frozen=True, slots=True)
class FloorQuestions:
    """The questions that floors are made from."""

    examples: Sequence[Item]  # (n,)
    tokens: np.ndarray  # (n,) int, of question and context together


def with_expectations(
    catalog: Catalog,
    questions: FloorQuestions,
    answers: AnswersByVariant,
    host: Host,
    delta: float,
    n_looked_at: int,
) -> Catalog:
    """Return the catalog with expected agreement and confidence; `host`: where the answers were made.

    The bounds of all plans looked at hold jointly at 1 - delta; so do those of all variants.
    """
    reference = largest(catalog.variants).name
    shares = delta / n_looked_at, delta / len(catalog.variants)
    plans = tuple(
        replace(
            plan, agreement=agreement(plan, questions.examples, answers, reference, host, shares[0])
        )
        for plan in catalog.plans
    )
    variants = tuple(
        replace(v, confidence=confidence(questions, _scores(answers[v.name]), host, shares[1]))
        for v in catalog.variants
    )
    return replace(catalog, plans=plans, variants=variants)


def largest(variants: Sequence[Variant]) -> Variant:
    """Return the reference variant: agreement and losses are relative to it.

    Compared by parameters, not bytes: an FP16 student may have more bytes than an INT8 teacher.
    """
    return max(variants, key=lambda v: (v.parameters, v.size_bytes))


def agreement(
    plan: Plan,
    examples: Sequence[Item],  # (n,)
    answers: AnswersByVariant,
    reference: str,
    host: Host,
    delta: float,
) -> Agreement | None:
    """Return a plan's agreement with the reference; None when too few answers come from other variants."""
    ours, by_another = played(plan, answers, reference)
    theirs = np.array([a.text for a in answers[reference]], dtype=object)
    some = by_another & ((ours != "") | (theirs != ""))
    both = some & (ours != "") & (theirs != "")
    found = rates(clusters.numbers(examples), some, both, ours == theirs, delta)
    if found is None:
        return None
    (both_answer, both_floor), (same_answer, same_floor) = found
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


def rates(
    number: np.ndarray,  # (n,) int, of the cluster
    some: np.ndarray,  # (n,) bool, at least one of both answers
    both: np.ndarray,  # (n,) bool, both answer
    same: np.ndarray,  # (n,) bool, of any questions
    delta: float,
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return both rates of agreement, each with its lower bound; None where no alarm could ever be raised."""
    if not both.any():
        return None
    found = rate(number, some, both, delta / 2), rate(number, both, same, delta / 2)
    return None if max(floor for _, floor in found) < WORTH_WATCHING else found


def played(plan: Plan, answers: AnswersByVariant, reference: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the plan's answers (n,), and which of them a variant other than the reference gave (n,)."""
    variants = [answers[name] for name in plan.variants]
    stage = last_stages([_scores(found) for found in variants], plan.thresholds)
    texts = np.choose(
        stage, [np.array([a.text for a in found], dtype=object) for found in variants]
    )
    return texts, np.array([name != reference for name in plan.variants])[stage]


def confidence(
    questions: FloorQuestions,
    scores: np.ndarray,  # (n,)
    host: Host,
    delta: float,
) -> Confidence:
    """Return the distribution of scores over their deciles, with bounds that hold jointly at 1 - delta.

    Half of delta is for all questions together, half for the groups by length: routing depends on length.
    """
    edges = np.unique(np.round(np.quantile(scores, DECILES), DECIMALS))
    number = clusters.numbers(questions.examples)
    parts = [(n, among) for n, among in _by_length(questions.tokens) if among.any()]
    whole = _spread(number, np.ones(len(scores), dtype=bool), scores, edges, delta / 2)
    each = delta / 2 / len(parts)
    return Confidence(
        edges=tuple(edges.tolist()),
        shares=whole.shares,
        low=whole.low,
        high=whole.high,
        n_contexts=len({e.context for e in questions.examples}),
        n_questions=whole.n_questions,
        host=host,
        by_length=tuple(
            replace(_spread(number, among, scores, edges, each), max_tokens=most)
            for most, among in parts
        ),
    )


def _by_length(tokens: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return each length group: its largest number of tokens, and a mask of its questions."""
    return [
        (most, (tokens > least) & (tokens <= most)) for least, most in pairwise((0, *MOST_TOKENS))
    ]


def _spread(
    number: np.ndarray, among: np.ndarray, scores: np.ndarray, edges: np.ndarray, delta: float
) -> Spread:
    """Return the shares of scores up to each edge among some questions, with bounds on both sides."""
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
    """Return the rate of hits among some questions, and a lower bound on it.

    The bound also holds for the mean of the clusters' rates: a gateway counts each text once and may see
    any number of the questions on it. Questions of a cluster with more than MOST_QUESTIONS weigh less.
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
