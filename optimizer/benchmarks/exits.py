"""What early exit could save at most: published variants as prefixes of the largest, beside cascades of them.

A plan with an exit runs the first layers of a model, gives that answer where it is sure of it, and otherwise runs the
other layers on the same states. A cascade runs the largest model from the start. A smaller variant stands in for the
prefix. That favours the exit: all its layers were trained for its own answers, and the rest for the largest model's.
Sources: Xin et al. 2020 (DeeBERT), section 3.2 (exit by confidence); Zhou et al. 2020 (PABEE).

Legend: n questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gateway.catalog import store
from gateway.catalog.schema import QA, Variant
from optimizer.benchmarks import pairs
from optimizer.benchmarks.results import ComparisonError, Deferral, Deferring, ExitComparison
from optimizer.certify import expected_agreement
from optimizer.certify.cascades import VariantAnswers
from optimizer.data import evaluate, question_sets
from optimizer.data.question_sets import DataError, Example
from optimizer.publish import tasks
from optimizer.search import scoring
from optimizer.study import provenance

SHARES = tuple(i / 100 for i in range(101))  # of the questions that are deferred
RESAMPLES = 1000  # of each share's interval


def run(repository: Path, data: str, limit: int | None) -> ExitComparison:
    """Ask all published variants, and defer from each to the largest. Raises: BertierError."""
    variants = tasks.part_of(store.read(repository), QA).variants
    examples = scoring.sample(question_sets.load(data))[:limit]
    if not examples:
        raise DataError(f"{data}: contains no questions")
    largest = expected_agreement.largest(variants)
    others = [v for v in variants if v is not largest]
    if not others:
        raise ComparisonError(f"{repository}: has one variant, so there is none to defer from")
    whole = answered(repository, largest, examples)
    contexts = [e.context for e in examples]
    return ExitComparison(
        data=Path(data).name.split(".")[0],
        n=len(examples),
        n_contexts=len(set(contexts)),
        largest=largest.name,
        f1=float(whole.f1.mean()),
        plans=tuple(
            deferring(answered(repository, v, examples), whole, prefix_of(v, largest), contexts)
            for v in others
        ),
        ran_on=provenance.ran_on(),
    )


def answered(repository: Path, variant: Variant, examples: Sequence[Example]) -> VariantAnswers:
    """Return a variant's F1, score and CPU time of each question, as served."""
    model, words = store.model_path(repository, variant), repository / store.TOKENIZER
    readings, cpu_ms = evaluate.read_timed(model, words, examples, variant.precision)
    said = [e.answer_of(r, variant.decoding) for e, r in zip(examples, readings, strict=True)]
    f1 = np.array([e.value_of(a.text) for e, a in zip(examples, said, strict=True)])
    return VariantAnswers(variant.name, f1, np.array([a.score for a in said]), np.array(cpu_ms))


def prefix_of(variant: Variant, largest: Variant) -> float | None:
    """Return the share of the largest's layers that a variant could be the first of; None: it is of another shape."""
    ours, theirs = variant.shape, largest.shape
    alike = (ours.hidden, ours.heads, ours.ffn) == (theirs.hidden, theirs.heads, theirs.ffn)
    alike &= ours.relative_positions == theirs.relative_positions
    return ours.layers / theirs.layers if alike and ours.layers < theirs.layers else None


def deferring(
    small: VariantAnswers, largest: VariantAnswers, prefix: float | None, contexts: Sequence[str]
) -> Deferring:
    """Return what each share of deferred questions, the least sure first, scores and costs.

    `prefix`: of the largest's layers that the smaller one stands for; None: it is no prefix.
    """
    order, n = np.argsort(small.score, kind="stable"), len(small.score)
    whole_ms = float(largest.cost_ms.sum())
    points = []
    for share in SHARES:
        deferred = np.zeros(n, dtype=bool)
        deferred[order[: round(share * n)]] = True
        f1 = np.where(deferred, largest.f1, small.f1)
        again = float(largest.cost_ms[deferred].sum()) / whole_ms
        points.append(
            Deferral(
                share=share,
                f1=float(f1.mean()),
                loss=pairs.over_contexts(contexts, largest.f1 - f1, RESAMPLES),
                cascade=float(small.cost_ms.sum()) / whole_ms + again,
                exit=None if prefix is None else prefix + (1 - prefix) * again,
            )
        )
    return Deferring(small.name, prefix, tuple(points))


def cheapest(found: ExitComparison, loss: float) -> tuple[Deferral | None, Deferral | None]:
    """Return the cheapest exit and the cheapest cascade that lose so much at most; None: none does."""
    points = [p for plan in found.plans for p in plan.points if p.loss.mean <= loss]
    exits = [p for p in points if p.exit is not None]
    return (
        min(exits, key=lambda p: p.exit or 0.0, default=None),
        min(points, key=lambda p: p.cascade, default=None),
    )
