"""What variants answered to named sets of questions, for `bertier-loadtest drift`: derived numbers, no texts.

Of each question: its text and cluster, its length, whether it has an answer, how each variant's answer stands
to the largest variant's, and how sure each variant is.

Legend: n questions.
"""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from gateway.catalog.schema import Plan
from gateway.catalog.store import Catalog
from gateway.domain import Answer
from gateway.errors import BertierError
from gateway.monitoring.sequential_tests import Comparison, compare
from optimizer.certify.expected_agreement import largest
from optimizer.data import clusters
from optimizer.data.question_sets import Example

RECORDED = Path("runs/drift.json.xz")  # a repository has models of its own: each records its own
FORMAT = 3
CERTIFIED, UNSHIFTED = (
    "certified",
    "unshifted",
)  # what floors are made from, and its held-out articles
SEARCH = "search"  # the certifying set's search split: what the statistic is chosen on
SHIFTED, REPORT = "shifted", "report"
DECIMALS = 4  # of a confidence


class DriftError(BertierError):
    """A recording that cannot be used; the message says what to do."""


class Relation(StrEnum):
    """How two answers stand to each other; finer than what the gateway tells apart."""

    SAME = "s"
    OVERLAPPING = "v"  # other texts, some place of the context in both
    DISJOINT = "d"
    ONE_SILENT = "o"
    BOTH_SILENT = "b"


RELATIONS = tuple(Relation)
SILENT = RELATIONS.index(Relation.BOTH_SILENT)
COMPARED = {
    Comparison.SAME: Relation.SAME,
    Comparison.DIFFERENT: Relation.DISJOINT,
    Comparison.ONE_SILENT: Relation.ONE_SILENT,
    Comparison.BOTH_SILENT: Relation.BOTH_SILENT,
}


def relation(ours: Answer, theirs: Answer) -> Relation:
    """Compare two answers to the same question."""
    found = compare(ours.text, theirs.text)
    return (
        Relation.OVERLAPPING
        if _overlap(ours, theirs) and found is Comparison.DIFFERENT
        else COMPARED[found]
    )


def _overlap(ours: Answer, theirs: Answer) -> bool:
    places = (ours.start, ours.end, theirs.start, theirs.end)
    if None in places:
        return False
    a, b, c, d = (place or 0 for place in places)
    return a < d and c < b


@dataclass(frozen=True, slots=True)
class AnsweredSet:
    """A set of questions and what every variant answered."""

    examples: Sequence[Example]  # (n,)
    tokens: Sequence[int]  # (n,) of question and context together
    answers: Mapping[str, Sequence[Answer]]  # by variant: (n,)


@dataclass(frozen=True, slots=True)
class Series:
    """What was recorded of one set of questions."""

    texts: np.ndarray  # (n,) int, from 0: which context
    clusters: np.ndarray  # (n,) int, from 0: what certificates count as one
    tokens: np.ndarray  # (n,) int, of question and context together
    answerable: np.ndarray  # (n,) bool
    compared: Mapping[str, np.ndarray]  # by variant: (n,) indices into RELATIONS
    confidence: Mapping[str, np.ndarray]  # by variant: (n,)

    def of_plan(self, plan: Plan, reference: str) -> np.ndarray:  # (n,)
        """Return how the plan's answers compare; where the reference gave them, as a silence: no evidence."""
        found = self.compared[plan.variants[0]].copy()
        doubted = np.ones(len(found), dtype=bool)
        for i, threshold in enumerate(plan.thresholds):
            doubted &= self.confidence[plan.variants[i]] < threshold
            further = plan.variants[i + 1]
            found[doubted] = SILENT if further == reference else self.compared[further][doubted]
        return found

    def part(self, rows: np.ndarray) -> Series:  # (k,) int
        """Return these questions alone, with their texts and clusters numbered anew."""
        return Series(
            np.unique(self.texts[rows], return_inverse=True)[1],
            np.unique(self.clusters[rows], return_inverse=True)[1],
            self.tokens[rows],
            self.answerable[rows],
            {name: found[rows] for name, found in self.compared.items()},
            {name: found[rows] for name, found in self.confidence.items()},
        )

    @property
    def unanswerable(self) -> float:
        """The share of questions without an answer."""
        return float(1 - self.answerable.mean())

    def with_unanswerable(self, share: float, seed: int) -> Series:
        """Leave out unanswerable questions at random until no more than a share is left. Raises: DriftError."""
        with_answer, without = np.flatnonzero(self.answerable), np.flatnonzero(~self.answerable)
        wanted = round(len(with_answer) * share / (1 - share))
        if wanted > len(without):
            raise DriftError(
                f"only {self.unanswerable:.1%} of the recorded questions have no answer; ask for a smaller"
                f" share than {share:.1%}"
            )
        kept = np.random.default_rng(seed).choice(without, wanted, replace=False)
        return self.part(np.sort(np.concatenate([with_answer, kept])))


def joined(one: Series, other: Series) -> Series:
    """Return the questions of both, which have no text and no cluster in common."""
    return Series(
        np.concatenate([one.texts, other.texts + one.texts.max() + 1]),
        np.concatenate([one.clusters, other.clusters + one.clusters.max() + 1]),
        np.concatenate([one.tokens, other.tokens]),
        np.concatenate([one.answerable, other.answerable]),
        {name: np.concatenate([one.compared[name], other.compared[name]]) for name in one.compared},
        {
            name: np.concatenate([one.confidence[name], other.confidence[name]])
            for name in one.confidence
        },
    )


def write(path: Path, catalog: Catalog, sets: Mapping[str, AnsweredSet]) -> None:
    """Write a recording by one rename."""
    reference = largest(catalog.variants).name
    kept = {
        "format": FORMAT,
        "reference": reference,
        "sha256": {v.name: v.sha256 for v in catalog.variants},
        "sets": {name: _derived(answered, reference) for name, answered in sets.items()},
    }
    part = path.with_suffix(".part")
    with lzma.open(part, "wt", preset=9) as file:
        json.dump(kept, file, separators=(",", ":"))
    os.replace(part, path)


def read(path: Path, catalog: Catalog) -> tuple[dict[str, Series], str]:
    """Return the recorded sets, and which variant the others were compared with. Raises: DriftError."""
    try:
        with lzma.open(path, "rt") as file:
            kept: dict[str, Any] = json.load(file)
    except FileNotFoundError as exc:
        raise DriftError(f"{path}: no recording yet; make one with --record") from exc
    except (OSError, EOFError, lzma.LZMAError, ValueError) as exc:
        raise DriftError(f"{path}: not readable ({exc}); record it again with --record") from exc
    if kept.get("format") != FORMAT:
        raise DriftError(f"{path}: not of format {FORMAT}; record it again with --record")
    if kept["sha256"] != {v.name: v.sha256 for v in catalog.variants}:
        raise DriftError(f"{path}: not of the variants of this repository; give --record")
    return {name: _series(found) for name, found in kept["sets"].items()}, kept["reference"]


def _derived(answered: AnsweredSet, reference: str) -> dict[str, Any]:
    examples, answers = answered.examples, answered.answers
    number = {context: i for i, context in enumerate(dict.fromkeys(e.context for e in examples))}
    return {
        "texts": [number[e.context] for e in examples],
        "clusters": clusters.numbers(examples).tolist(),
        "tokens": list(answered.tokens),
        "answerable": "".join("01"[e.answerable] for e in examples),
        "compared": {
            name: "".join(
                relation(ours, theirs)
                for ours, theirs in zip(found, answers[reference], strict=True)
            )
            for name, found in answers.items()
        },
        "confidence": {
            name: [round(a.score * 10**DECIMALS) for a in found] for name, found in answers.items()
        },
    }


def _series(kept: Mapping[str, Any]) -> Series:
    index = {code.value: i for i, code in enumerate(RELATIONS)}
    return Series(
        np.array(kept["texts"]),
        np.array(kept["clusters"]),
        np.array(kept["tokens"]),
        np.array([mark == "1" for mark in kept["answerable"]]),
        {name: np.array([index[c] for c in found]) for name, found in kept["compared"].items()},
        {name: np.array(found) / 10**DECIMALS for name, found in kept["confidence"].items()},
    )
